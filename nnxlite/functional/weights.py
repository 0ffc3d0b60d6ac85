"""Weights: what is computed from the parameters of a layer before they are used."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from numpy.lib.array_utils import normalize_axis_tuple

from .dtypes import PromoteDtype, promote_dtype
from .kernels import compiled


@compiled(arrays=3)
def low_rank(
    x: Array,
    a: Array,
    b: Array,
    axis: int | tuple[int, ...] = -1,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
) -> Array:
    """`x @ a @ b`, a linear map of low rank (https://arxiv.org/abs/2106.09685).

    Args:
        x: `(..., in_features)`.
        a: `(in_features, rank)`; for several axes, a size for each before the rank.
        b: `(rank, out_features)`; for several axes, with a size for each.
        axis: the axes of `x` that are mapped.

    Returns:
        `(..., out_features)`.

    Raises:
        ValueError: if these axes of `x` have other sizes.

    Example:
        >>> low_rank(jnp.ones((2, 4)), jnp.ones((4, 1)), jnp.ones((1, 3)))[0]
        Array([4., 4., 4.], dtype=float32)
    """
    x, a, b = promote_dtype((x, a, b), dtype=dtype)
    axes = (axis,) if isinstance(axis, int) else axis
    sizes = tuple(x.shape[n] for n in axes if -x.ndim <= n < x.ndim)
    if sizes != a.shape[:-1]:
        wanted = f"of shape (..., {a.shape[0]})"
        if axes != (-1,):
            wanted = f"with the sizes {a.shape[:-1]} in the axes {axes}"
        raise ValueError(
            f"low_rank: a of shape {a.shape} wants inputs {wanted}; got {x.shape}."
        )
    inner = jnp.tensordot(x, a, (axes, tuple(range(len(axes)))))
    return jnp.tensordot(inner, b, 1)


@compiled(arrays=2)
def weight_norm(
    weight: Array,
    scale: Array | None,
    feature_axes: int | tuple[int, ...] | None = -1,
    epsilon: float = 1e-12,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
) -> Array:
    """A weight with length 1 for each feature, then scaled.

    The paper is https://arxiv.org/abs/1602.07868.

    Args:
        weight: of any shape.
        scale: has the shape of the weight along `feature_axes`, or None.
        feature_axes: the axes of the features; None takes the length of it all.
        epsilon: added to the square of the length.

    Returns:
        An array like the weight.

    Example:
        >>> weight_norm(jnp.array([[3.0], [4.0]]), jnp.array([10.0]))[:, 0]
        Array([6., 8.], dtype=float32)
    """
    kind = weight.dtype if scale is None else jnp.result_type(weight, scale)
    weight = weight.astype(jnp.promote_types(kind, jnp.float32))
    axes = () if feature_axes is None else feature_axes
    kept = normalize_axis_tuple(axes, weight.ndim, "feature_axes")
    others = tuple(axis for axis in range(weight.ndim) if axis not in kept)
    square = jnp.sum(jnp.square(weight), others, keepdims=True)
    weight = weight * lax.rsqrt(square + epsilon)
    if scale is not None:
        shape = [n if axis in kept else 1 for axis, n in enumerate(weight.shape)]
        weight = weight * scale.reshape(shape)
    (weight,) = promote_dtype((weight.astype(kind),), dtype=dtype)
    return weight


@compiled(arrays=2)
def spectral_norm(
    weight: Array,
    u: Array,
    steps: int = 1,
    epsilon: float = 1e-12,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
) -> tuple[Array, Array, Array]:
    """A weight divided by its largest singular value (https://arxiv.org/abs/1802.05957).

    The value is estimated by power iteration; more steps, or more calls that go on from
    the last vector, are more exact.

    Args:
        weight: a matrix, or `(..., features)`, which is taken for one.
        u: `(1, features)`, the estimate of the right singular vector so far.
        steps: how many steps of power iteration.
        epsilon: added to squared lengths.

    Returns:
        The new weight, the new `u`, and the singular value, a scalar.

    Example:
        >>> matrix = jnp.diag(jnp.array([1.0, 2.0]))
        >>> weight, u, value = spectral_norm(matrix, jnp.ones((1, 2)), 9)
        >>> weight.round(3), value.round(3)
        (Array([[0.5, 0. ],
               [0. , 1. ]], dtype=float32), Array(2., dtype=float32))
    """

    def unit(x: Array) -> Array:
        return x * lax.rsqrt(jnp.sum(jnp.square(x)) + epsilon)

    kinds = weight.dtype, u.dtype
    exact = jnp.promote_types(weight.dtype, jnp.float32)
    weight, u = weight.astype(exact), u.astype(exact)
    matrix = weight.reshape(-1, weight.shape[-1])
    v = unit(u @ matrix.T)
    for _ in range(steps - 1):
        u = unit(v @ matrix)
        v = unit(u @ matrix.T)
    if steps:
        u = unit(v @ matrix)
    u, v = lax.stop_gradient(u), lax.stop_gradient(v)
    value = (v @ matrix @ u.T)[0, 0]
    weight = (weight / jnp.where(value == 0, 1, value)).astype(kinds[0])
    (weight,) = promote_dtype((weight,), dtype=dtype)
    return weight, u.astype(kinds[1]), value.astype(kinds[1])
