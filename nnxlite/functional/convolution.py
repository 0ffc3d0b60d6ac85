"""Convolution over any number of spatial axes, with the channels last."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from .dtypes import PromoteDtype, promote_dtype
from .kernels import Pads, Sizes, compiled, given, padding_pairs, per_axis

# Paddings that XLA does not know: how `jax.numpy.pad` fills them.
_PAD_MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect", "CAUSAL": "constant"}


@compiled(arrays=4)
def conv(
    x: Array,
    kernel: Array,
    bias: Array | None,
    mask: Array | None,
    strides: Sizes = 1,
    padding: Pads = "SAME",
    input_dilation: Sizes = 1,
    kernel_dilation: Sizes = 1,
    feature_group_count: int = 1,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    conv_general_dilated: Callable[..., Array] = lax.conv_general_dilated,
    promote_dtype: PromoteDtype = promote_dtype,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Array:
    """Correlate `x` with `kernel` along the spatial axes, plus `bias`.

    Args:
        x: `(*batch, *spatial, in_features)` with any number of batch axes or none.
        kernel: `(*window, in_features // feature_group_count, out_features)`.
        bias: `(out_features,)`, or None.
        mask: multiplies the kernel, whose shape it has; or None.
        strides: step of the window, for each spatial axis or all; None means 1, here
            and for the dilations (spacings of the inputs, and of those in a window).
        padding: 'SAME', 'VALID' (see `jax.lax.conv_general_dilated`), 'CIRCULAR' (the
            other end), 'REFLECT' (a mirror), 'CAUSAL' (zeros before the start of the
            one spatial axis), an int, or an int or (low, high) for each spatial axis.
        feature_group_count: number of groups of channels that do not mix.
        conv_general_dilated: used in place of `jax.lax.conv_general_dilated`.

    Returns:
        `(*batch, *windows, out_features)`.

    Raises:
        ValueError: if shapes do not fit, or 'CAUSAL' meets several spatial axes.

    Example:
        >>> x, kernel = jnp.array([[1.0], [2.0], [3.0]]), jnp.ones((2, 1, 1))
        >>> conv(x, kernel, None, None, padding="CAUSAL")[:, 0]
        Array([1., 3., 5.], dtype=float32)
    """
    kernel = _masked(kernel, mask)
    x, kernel, bias = promote_dtype((x, kernel, bias), dtype=dtype)
    rank, channels = kernel.ndim - 2, kernel.shape[-2] * feature_group_count
    batch, x = _images(x, kernel, rank, channels)
    dilation = per_axis(kernel_dilation, rank, "kernel_dilation")
    extents = [(kernel.shape[i] - 1) * dilation[i] + 1 for i in range(rank)]
    x, pairs = _padded(x, padding_pairs(padding, rank), extents)
    y = conv_general_dilated(
        x,
        kernel,
        per_axis(strides, rank, "strides"),
        pairs,
        lhs_dilation=per_axis(input_dilation, rank, "input_dilation"),
        rhs_dilation=dilation,
        dimension_numbers=_channels_last(rank),
        feature_group_count=feature_group_count,
        precision=precision,
        **given(
            preferred_element_type=preferred_element_type, out_sharding=out_sharding
        ),
    )
    return _biased(y.reshape(batch + y.shape[1:]), bias)


@compiled(arrays=4)
def conv_transpose(
    x: Array,
    kernel: Array,
    bias: Array | None,
    mask: Array | None,
    strides: Sizes = 1,
    padding: Pads = "SAME",
    kernel_dilation: Sizes = 1,
    transpose_kernel: bool = False,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    promote_dtype: PromoteDtype = promote_dtype,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """The transpose of a convolution: each input spreads a window, plus `bias`.

    Args:
        x: `(*batch, *spatial, in_features)` with any number of batch axes or none.
        kernel: `(*window, in_features, out_features)`.
        bias: `(out_features,)`, or None.
        mask: multiplies the kernel, whose shape it has; or None.
        strides: how far apart the windows of neighbours are, for each spatial axis or
            all; None means 1, here and for the dilation.
        padding: 'SAME' and 'VALID' (see `jax.lax.conv_transpose`), 'CIRCULAR' (windows
            go on at the other end), an int, or an int or (low, high) for each axis.
        transpose_kernel: True flips the window and takes a kernel `(*window,
            out_features, in_features)`: the gradient of `conv` with that kernel.

    Returns:
        `(*batch, *windows, out_features)`.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> x, kernel = jnp.array([[1.0], [2.0]]), jnp.ones((2, 1, 1))
        >>> conv_transpose(x, kernel, None, None, strides=2, padding="VALID")[:, 0]
        Array([1., 1., 2., 2.], dtype=float32)
    """
    kernel = _masked(kernel, mask)
    x, kernel, bias = promote_dtype((x, kernel, bias), dtype=dtype)
    rank, channels = kernel.ndim - 2, kernel.shape[-1 if transpose_kernel else -2]
    batch, x = _images(x, kernel, rank, channels)
    pairs, steps = padding_pairs(padding, rank), per_axis(strides, rank, "strides")
    y = lax.conv_transpose(
        x,
        kernel,
        steps,
        "VALID" if pairs == "CIRCULAR" else pairs,
        rhs_dilation=per_axis(kernel_dilation, rank, "kernel_dilation"),
        dimension_numbers=_channels_last(rank),
        transpose_kernel=transpose_kernel,
        precision=precision,
        **given(preferred_element_type=preferred_element_type),
    )
    if pairs == "CIRCULAR":
        periods = [n * step for n, step in zip(x.shape[1:-1], steps, strict=True)]
        y = _wrapped(y, periods, transpose_kernel)
    return _biased(y.reshape(batch + y.shape[1:]), bias)


def _wrapped(y: Array, periods: list[int], extra_at_end: bool) -> Array:
    """Adds up what lies whole periods apart; the middle of `y` stays where it is."""
    for axis, period in enumerate(periods, 1):
        missing = -(y.shape[axis] - period) % (2 * period)
        low = missing // 2 if extra_at_end else (missing + 1) // 2
        pads = [(0, 0)] * y.ndim
        pads[axis] = (low, missing - low)
        y = jnp.pad(y, pads)
        around = y.shape[:axis], y.shape[axis + 1 :]
        count = y.shape[axis] // period
        y = y.reshape(*around[0], count, period, *around[1]).sum(axis)
    return y


def _images(
    x: Array, kernel: Array, rank: int, channels: int
) -> tuple[tuple[int, ...], Array]:
    """The batch axes of `x`, and `x` with one axis in their place."""
    if x.ndim <= rank or x.shape[-1] != channels:
        raise ValueError(
            f"A kernel of shape {kernel.shape} wants x of shape (*batch, *spatial, "
            f"{channels}) with {rank} spatial axes; got {x.shape}. Channels come last: "
            "jnp.moveaxis(x, 1, -1) moves them, x[..., None] adds them; or make the "
            "layer with in_features=x.shape[-1]."
        )
    batch, image = x.shape[: x.ndim - rank - 1], x.shape[x.ndim - rank - 1 :]
    return batch, x.reshape((math.prod(batch), *image))


def _channels_last(rank: int) -> lax.ConvDimensionNumbers:
    axes = (0, rank + 1, *range(1, rank + 1))
    return lax.ConvDimensionNumbers(axes, (rank + 1, rank, *range(rank)), axes)


def _biased(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


def _masked(kernel: Array, mask: Array | None) -> Array:
    if mask is None:
        return kernel
    kernel, mask = jnp.asarray(kernel), jnp.asarray(mask)
    if mask.shape != kernel.shape:
        raise ValueError(
            f"Mask needs to have the same shape as the kernel: got {mask.shape}, wanted"
            f" {kernel.shape}. Use jnp.broadcast_to(mask, {kernel.shape})."
        )
    return kernel * mask.astype(kernel.dtype)


def _padded(x: Array, padding: Any, extents: list[int]) -> tuple[Array, Any]:
    """Pads where XLA cannot, for windows that span `extents`; returns what is left."""
    if padding not in _PAD_MODES:
        return x, padding
    pairs = [((k - 1) // 2, k // 2) for k in extents]
    if padding == "CAUSAL":
        if len(extents) != 1:
            raise ValueError(
                "Causal padding is only implemented for 1D convolutions; got "
                f"{len(extents)} spatial axes. Give (low, high) for each in its place."
            )
        pairs = [(extents[0] - 1, 0)]
    x = jnp.pad(x, ((0, 0), *pairs, (0, 0)), _PAD_MODES[padding])
    return x, ((0, 0),) * len(extents)
