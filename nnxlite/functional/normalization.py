"""Normalization: entries made comparable by their mean and variance.

Every norm is `_statistics` over some axes, then `_normalize`. Statistics have float32
or better, and keep the reduced axes with size 1. Entries that a mask leaves out count
for nothing; where nothing is left, mean and variance are 0, not nan.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from numpy.lib.array_utils import normalize_axis_tuple

from .dtypes import PromoteDtype, canonicalize_dtype, promote_dtype
from .kernels import compiled

Axes = int | tuple[int, ...]
Groups = tuple[tuple[int, ...], ...] | None


@compiled(arrays=4)
def layer_norm(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    mask: Array | None,
    epsilon: float = 1e-6,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    axis_name: Any = None,
    axis_index_groups: Groups = None,
    use_fast_variance: bool = True,
    use_mean: bool = True,
) -> Array:
    """Normalize `x` over `reduction_axes` (https://arxiv.org/abs/1607.06450).

    Args:
        x: of any shape.
        scale: `(features,)`, a factor for each position along `feature_axes`; or None.
        bias: `(features,)`, or None.
        mask: False where an entry of `x` shall not count, broadcasts to `x`; or None.
        epsilon: added to the variance.
        reduction_axes: the axes over which mean and variance are taken.
        feature_axes: the axes along which scale and bias differ.
        use_fast_variance: E|x|^2 - |E x|^2, which reads `x` once, but cancels where the
            mean is much larger than the deviation; else E|x - E x|^2.
        use_mean: False takes the mean as 0: RMSNorm (https://arxiv.org/abs/1910.07467).

    Returns:
        An array like `x`, in the type in which it was computed.

    Raises:
        ValueError: if `x` lacks an axis, or scale or bias do not fit its features.

    Example:
        >>> layer_norm(jnp.array([[1.0, 3.0]]), jnp.ones(2), None, None).round(3)
        Array([[-1.,  1.]], dtype=float32)
    """
    x, scale, bias = arrays = promote_dtype((x, scale, bias), dtype=dtype)
    axes = normalize_axis_tuple(reduction_axes, x.ndim, "reduction_axes")
    replicas = axis_name, axis_index_groups
    statistics = _statistics(x, axes, mask, replicas, use_fast_variance, use_mean)
    parameters = _along_features(feature_axes, x, scale, bias)
    y = _normalize(x, *statistics, *parameters, epsilon=epsilon)
    return y.astype(canonicalize_dtype(*arrays, dtype=dtype))


@compiled(arrays=4)
def group_norm(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    mask: Array | None,
    num_groups: int | None = 32,
    group_size: int | None = None,
    epsilon: float = 1e-6,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
    reduction_axes: Axes | None = None,
    axis_name: Any = None,
    axis_index_groups: Groups = None,
    use_fast_variance: bool = True,
) -> Array:
    """Normalize groups of neighbouring features (https://arxiv.org/abs/1803.08494).

    Args:
        x: `(batch, *spatial, features)`. Arguments not described here are those of
            `layer_norm`.
        num_groups: how many groups the features form; None if `group_size` says it.
        group_size: how many features are in a group; not used beside `num_groups`.
        reduction_axes: the axes over which mean and variance are taken, the last one
            among them (there, within each group); None is all but the first.

    Returns:
        An array like `x`, in the type in which it was computed.

    Raises:
        ValueError: if `x` lacks an axis, if the axes leave out the last one, or if
            groups, scale or bias do not fit the features.

    Example:
        >>> x = jnp.array([[1.0, 3.0, 5.0, 9.0]])
        >>> group_norm(x, None, None, None, num_groups=2).round(3)
        Array([[-1.,  1., -1.,  1.]], dtype=float32)
    """
    x, scale, bias = arrays = promote_dtype((x, scale, bias), dtype=dtype)
    last = x.ndim - 1
    axes = tuple(range(1, last)) + (last,) if reduction_axes is None else reduction_axes
    axes = normalize_axis_tuple(axes, x.ndim, "reduction_axes")
    features = x.shape[-1] if x.ndim else 0
    if num_groups is None:
        num_groups = max(features // max(group_size or 1, 1), 1)
    if last not in axes or features % num_groups:
        raise ValueError(
            f"x of shape {x.shape} cannot be normalized over its axes {axes} in "
            f"{num_groups} groups: the last axis must be among the axes, and have a "
            "multiple of that size."
        )
    grouped = (num_groups, features // num_groups)
    parameters = [
        None if p is None else p.reshape(grouped)
        for p in _along_features(-1, x, scale, bias)
    ]
    if mask is not None:
        mask = jnp.broadcast_to(mask, x.shape).reshape(*x.shape[:-1], *grouped)
    y = x.reshape(*x.shape[:-1], *grouped)
    within = tuple(axis + (axis == last) for axis in axes)
    replicas = axis_name, axis_index_groups
    statistics = _statistics(y, within, mask, replicas, use_fast_variance)
    y = _normalize(y, *statistics, *parameters, epsilon=epsilon).reshape(x.shape)
    return y.astype(canonicalize_dtype(*arrays, dtype=dtype))


@compiled(arrays=6)
def batch_norm(
    x: Array,
    mean: Array,
    var: Array,
    scale: Array | None,
    bias: Array | None,
    mask: Array | None,
    axis: int = -1,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
    axis_name: Any = None,
    axis_index_groups: Groups = None,
    use_fast_variance: bool = True,
) -> tuple[Array, Array, Array]:
    """Normalize with the statistics of the batch (https://arxiv.org/abs/1502.03167).

    Args:
        x: of any shape. Arguments not described here are those of `layer_norm`.
        mean: `(features,)`, the running mean.
        var: `(features,)`, the running variance (the biased one).
        axis: the axis of the features; statistics are taken over all others.
        momentum: the part of the running statistics to keep; an empty batch keeps all.

    Returns:
        The normalized `x`, and the new running mean and variance, without gradients.

    Raises:
        ValueError: if `x` lacks the axis, or parameters do not fit its features.

    Example:
        >>> zero, one, x = jnp.zeros(1), jnp.ones(1), jnp.array([[1.0], [3.0]])
        >>> y, mean, var = batch_norm(x, zero, one, None, None, None)
        >>> y[:, 0].round(3), mean.round(3)
        (Array([-1.,  1.], dtype=float32), Array([0.02], dtype=float32))
    """
    inputs, *_ = arrays = promote_dtype((x, mean, var, scale, bias), dtype=dtype)
    _, _, *parameters = _along_features(axis, *arrays)
    features = normalize_axis_tuple(axis, inputs.ndim)
    others = tuple(a for a in range(inputs.ndim) if a not in features)
    replicas = axis_name, axis_index_groups
    batch = _statistics(inputs, others, mask, replicas, use_fast_variance)
    y = _normalize(inputs, *batch, *parameters, epsilon=epsilon)
    keep = momentum if inputs.size else 1.0

    def update(old: Array, new: Array) -> Array:
        new = lax.stop_gradient(new).reshape(old.shape)
        return (keep * old + (1 - keep) * new).astype(old.dtype)

    y = y.astype(canonicalize_dtype(*arrays, dtype=dtype))
    return y, update(mean, batch[0]), update(var, batch[1])


@compiled(arrays=5)
def batch_norm_inference(
    x: Array,
    mean: Array,
    var: Array,
    scale: Array | None,
    bias: Array | None,
    axis: int = -1,
    epsilon: float = 1e-5,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
) -> Array:
    """Normalize with the running statistics; for arguments and errors see `batch_norm`.

    Example:
        >>> zero, one = jnp.zeros(1), jnp.ones(1)
        >>> batch_norm_inference(jnp.array([[3.0]]), zero, one, one, one).round(3)
        Array([[4.]], dtype=float32)
    """
    arrays = promote_dtype((x, mean, var, scale, bias), dtype=dtype)
    y = _normalize(arrays[0], *_along_features(axis, *arrays), epsilon=epsilon)
    return y.astype(canonicalize_dtype(*arrays, dtype=dtype))


def _statistics(
    x: Array,
    axes: tuple[int, ...],
    mask: Array | None,
    replicas: tuple[Any, Groups],
    use_fast_variance: bool,
    use_mean: bool = True,
) -> tuple[Array, Array]:
    """Mean and biased variance over `axes` and the replicas (axis_name, groups)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    where = None if mask is None else jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)

    def means(*values: Array) -> list[Array]:
        sums = [jnp.sum(v, axes, keepdims=True, where=where) for v in values]
        count: Any = float(max(math.prod(x.shape[axis] for axis in axes), 1))
        if where is not None:
            count = jnp.sum(where, axes, jnp.float32, keepdims=True)
        if replicas[0] is not None:
            name, groups = replicas
            sums, count = lax.psum((sums, count), name, axis_index_groups=groups)
        count = count if where is None else jnp.maximum(count, 1)
        return [total / count for total in sums]

    def square(v: Array) -> Array:
        return jnp.real(v * jnp.conj(v)) if jnp.iscomplexobj(v) else jnp.square(v)

    if not use_mean:
        (variance,) = means(square(x))
        return jnp.zeros_like(variance), variance
    if use_fast_variance:
        mean, mean_square = means(x, square(x))
        return mean, jnp.maximum(0, mean_square - square(mean))
    (mean,) = means(x)
    (variance,) = means(square(x - mean))
    return mean, variance


def _along_features(axes: Axes, x: Array, *parameters: Array | None) -> list[Any]:
    """The parameters, one entry for each position along `axes`, shaped to broadcast."""
    axes = normalize_axis_tuple(axes, x.ndim, "feature axes")
    shape = tuple(n if axis in axes else 1 for axis, n in enumerate(x.shape))
    features = math.prod(shape)
    for parameter in parameters:
        if parameter is not None and parameter.size != features:
            raise ValueError(
                f"Parameters of shape {parameter.shape} do not fit x of shape {x.shape}"
                f" with {features} features along its axes {axes}. Transpose x, or make"
                f" the layer with num_features={features}."
            )
    return [None if p is None else p.reshape(shape) for p in parameters]


def _normalize(
    x: Array, mean: Array, variance: Array, scale: Any, bias: Any, epsilon: float
) -> Array:
    factor = lax.rsqrt(variance + epsilon)
    y = (x - mean) * (factor if scale is None else factor * scale)
    return y if bias is None else y + bias
