"""Linear maps: contraction with a weight, and lookup in a table of embeddings."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from numpy.lib.array_utils import normalize_axis_tuple

from .dtypes import PromoteDtype, promote_dtype
from .kernels import compiled, given


@compiled(arrays=3)
def linear(
    x: Array,
    kernel: Array,
    bias: Array | None,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    dot_general: Callable[..., Array] = lax.dot_general,
    promote_dtype: PromoteDtype = promote_dtype,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
    axis: tuple[int, ...] = (-1,),
    batch_axes: tuple[int, ...] = (),
) -> Array:
    """`x` contracted with `kernel` over `axis`, plus `bias`.

    Args:
        x: `(..., in_features)`; generally with `axis` and `batch_axes` anywhere.
        kernel: `(in_features, out_features)`; generally `(*batch, *in_features,
            *out_features)` with the in_features of `axis` in ascending order.
        bias: `(out_features,)`, generally `(*batch, *out_features)`; or None.
        dot_general: used in place of `jax.lax.dot_general`.
        axis: axes of `x` to contract.
        batch_axes: axes of `x` along which each position has a weight of its own.

    Returns:
        `(*batch, ..., *out_features)`, where `...` are the other axes of `x`.

    Raises:
        ValueError: if `x` lacks an axis, or `x` and `kernel` differ in size along one.

    Example:
        >>> linear(jnp.array([[1.0, 2.0]]), jnp.ones((2, 3)), jnp.arange(3.0))
        Array([[3., 4., 5.]], dtype=float32)
    """
    x, kernel, bias = promote_dtype((x, kernel, bias), dtype=dtype)
    batch = normalize_axis_tuple(batch_axes, x.ndim, "linear: batch_axes")
    axis = tuple(sorted(normalize_axis_tuple(axis, x.ndim, "linear: axis")))
    shared, n = batch + axis, len(batch)
    got, wanted = tuple(x.shape[a] for a in shared), kernel.shape[: len(shared)]
    if got != wanted:
        raise ValueError(
            f"linear: a kernel of shape {kernel.shape} wants x to have sizes {wanted} "
            f"along its axes {shared}; got {got} in x of shape {x.shape}. Reshape x, "
            f"or make the layer with in_features={got[n:]}."
        )
    y = dot_general(
        x,
        kernel,
        ((axis, tuple(range(n, len(shared)))), (batch, tuple(range(n)))),
        precision=precision,
        **given(
            preferred_element_type=preferred_element_type, out_sharding=out_sharding
        ),
    )
    if bias is None:
        return y
    others = (1,) * (x.ndim - len(shared))
    return y + bias.reshape(bias.shape[:n] + others + bias.shape[n:])


@compiled(arrays=2)
def embed(
    indices: Array,
    embedding: Array,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
    out_sharding: Any = None,
) -> Array:
    """The rows of `embedding`, `(num_embeddings, features)`, at integer `indices`.

    Returns:
        `(*indices.shape, features)`. Negative indices count from the end; a row out of
        range is nan (in an integer type its extreme value).

    Raises:
        ValueError: if the indices are not integers.

    Example:
        >>> embed(jnp.array([2, -1]), jnp.array([[1.0], [2.0], [3.0]]))[:, 0]
        Array([3., 3.], dtype=float32)
    """
    indices = jnp.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(
            "Input type must be an integer or unsigned integer: embed looks up rows by "
            f"number, got {indices.dtype.name}. Cast with indices.astype('int32')."
        )
    (embedding,) = promote_dtype((embedding,), dtype=dtype, inexact=False)
    return embedding.at[indices].get(mode="fill", out_sharding=out_sharding)


@compiled(arrays=2)
def attend(
    query: Array,
    embedding: Array,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
    out_sharding: Any = None,
) -> Array:
    """Inner products of `query`, `(..., features)`, with all rows of `embedding`.

    Returns:
        `(..., num_embeddings)`: logits (https://arxiv.org/abs/1608.05859).

    Raises:
        ValueError: if the numbers of features differ.

    Example:
        >>> attend(jnp.array([1.0, 2.0]), jnp.eye(3, 2))
        Array([1., 2., 0.], dtype=float32)
    """
    query, embedding = promote_dtype((query, embedding), dtype=dtype)
    if query.shape[-1:] != embedding.shape[-1:]:
        raise ValueError(
            f"attend: an embedding of shape {embedding.shape} wants a query of shape "
            f"(..., {embedding.shape[-1]}); got {query.shape}. Project it to that size."
        )
    return jnp.dot(query, embedding.T, out_sharding=out_sharding)
