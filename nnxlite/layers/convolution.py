"""Convolution, over any number of spatial axes, with the channels last."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from ..core.kinds import Param
from ..core.metadata import NO_METADATA
from ..core.rngs import Rngs
from ..functional import initializers
from ..functional.convolution import conv, conv_transpose
from ..functional.dtypes import PromoteDtype
from ..functional.kernels import Pads, Sizes, frozen
from . import lazy
from .policy import DEFAULT_POLICY, Layer, Policy, settle
from .shell import apply, check_given, parameters


class Conv(Layer):
    """A convolution; the length of `kernel_size` says over how many spatial axes.

    Arguments not described here: see `nnxlite.layers`.

    Args:
        in_features: number of channels of the inputs; None infers it.
        out_features: number of channels of the outputs.
        kernel_size: size of the window along each spatial axis; an int is one axis.
        strides: step of the window, for each spatial axis or all; None is 1, here and
            for the dilations.
        padding: 'SAME' (keeps the spatial size at stride 1), 'VALID', 'CIRCULAR',
            'REFLECT', 'CAUSAL' (one spatial axis), an int, or an int or (low, high)
            for each spatial axis; see `functional.conv`.
        input_dilation: spacing of the inputs; 2 or more is a transposed convolution,
            for which `padding` must be numbers.
        kernel_dilation: spacing of the inputs in a window.
        feature_group_count: number of groups of channels that do not mix; divides
            in_features and out_features.
        use_bias: False leaves the attribute `bias` None.
        mask: an array that multiplies the kernel, whose shape it has; or None.
        conv_general_dilated: used in place of `jax.lax.conv_general_dilated`.

    Attributes:
        kernel: Param `(*kernel_size, in_features // feature_group_count,
            out_features)`, by default `lecun_normal()`.
        bias: Param `(out_features,)`, or None.

    Raises:
        TypeError: if `rngs` is no Rngs.
        ValueError: if feature_group_count does not divide in_features.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.Conv(3, 8, (5, 5), strides=2, rngs=nnx.Rngs(0))
        >>> images = jnp.ones((10, 32, 32, 3))
        >>> layer(images).shape, layer(images[0]).shape
        ((10, 16, 16, 8), (16, 16, 8))
    """

    kernel: Param[Array]
    bias: Param[Array] | None

    def __init__(
        self,
        in_features: int | None,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: Sizes = 1,
        *,
        padding: Pads = "SAME",
        input_dilation: Sizes = 1,
        kernel_dilation: Sizes = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        mask: Array | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: lax.PrecisionLike = None,
        kernel_init: Callable[..., Any] = initializers.lecun_normal(),
        bias_init: Callable[..., Any] = initializers.zeros,
        conv_general_dilated: Callable[..., Array] = lax.conv_general_dilated,
        promote_dtype: PromoteDtype | None = None,
        preferred_element_type: DTypeLike | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        check_given(self, out_features=out_features)
        window = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
        group = _group_size(in_features, feature_group_count)
        shape = (*window, group, out_features)
        self.kernel_shape = shape
        self.in_features = in_features
        self.out_features = out_features
        self.kernel_size = window
        self.strides: Sizes = frozen(strides)
        self.padding: Pads = frozen(padding)
        self.input_dilation: Sizes = frozen(input_dilation)
        self.kernel_dilation: Sizes = frozen(kernel_dilation)
        self.feature_group_count = feature_group_count
        self.use_bias = use_bias
        self.mask = mask
        self.conv_general_dilated = conv_general_dilated
        settle(
            policy,
            self,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            promote_dtype=promote_dtype,
            preferred_element_type=preferred_element_type,
        )
        make = parameters(rngs, self.param_dtype)
        self.kernel = make(kernel_init, shape, kernel_metadata)
        self.bias = make(bias_init, (out_features,), bias_metadata, use_bias)

    def _sizes(self, inputs: Array) -> lazy.Sizes:
        size = jnp.shape(inputs)[-1]
        group = _group_size(size, self.feature_group_count)
        shape = (*self.kernel_size, group, self.out_features)
        return {"in_features": size, "kernel_shape": shape}, (group,)

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Convolves `(*batch, *spatial, in_features)`, with any number of batch axes.

        Returns:
            `(*batch, *windows, out_features)`.

        Raises:
            ValueError: if the inputs have another number of channels or too few axes,
                or the mask has not the shape of the kernel.
        """
        arrays = inputs, self.kernel, self.bias, self.mask
        return apply(self, conv, *arrays, out_sharding=out_sharding)


def _group_size(channels: int | None, groups: int) -> Any:
    """How many channels the convolution of one group sees."""
    if channels is None:
        return None
    if channels % groups:
        raise ValueError(
            f"Conv: feature_group_count={groups} does not divide in_features="
            f"{channels}. Give each group as many channels."
        )
    return channels // groups


class ConvTranspose(Layer):
    """The transpose of a convolution, which makes images larger, plus a bias.

    Arguments not described here: see `Conv` and `nnxlite.layers`.

    Args:
        strides: how far apart the windows of neighbours are; None is 1.
        padding: 'SAME', 'VALID', 'CIRCULAR', an int, or an int or (low, high) for each
            spatial axis; see `functional.conv_transpose`.
        mask: multiplies the kernel, whose shape it has.
        transpose_kernel: True makes it the gradient of a `Conv`: the window is flipped,
            and the kernel is `(*kernel_size, out_features, in_features)`.

    Attributes:
        kernel: Param `(*kernel_size, in_features, out_features)`, by default
            `lecun_normal()`.
        bias: Param `(out_features,)`, or None.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.ConvTranspose(3, 4, (3, 3), strides=2, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((1, 8, 8, 3))).shape
        (1, 16, 16, 4)
    """

    kernel: Param[Array]
    bias: Param[Array] | None

    def __init__(
        self,
        in_features: int | None,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: Sizes = None,
        *,
        padding: Pads = "SAME",
        kernel_dilation: Sizes = None,
        use_bias: bool = True,
        mask: Array | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: lax.PrecisionLike = None,
        kernel_init: Callable[..., Any] = initializers.lecun_normal(),
        bias_init: Callable[..., Any] = initializers.zeros,
        transpose_kernel: bool = False,
        promote_dtype: PromoteDtype | None = None,
        preferred_element_type: DTypeLike | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        check_given(self, out_features=out_features)
        window = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
        channels = in_features, out_features
        self.kernel_shape: tuple[int | None, ...] = window + (
            channels[::-1] if transpose_kernel else channels
        )
        self.in_features = in_features
        self.out_features = out_features
        self.kernel_size = window
        self.strides: Sizes = frozen(strides)
        self.padding: Pads = frozen(padding)
        self.kernel_dilation: Sizes = frozen(kernel_dilation)
        self.use_bias = use_bias
        self.mask = mask
        self.transpose_kernel = transpose_kernel
        settle(
            policy,
            self,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            promote_dtype=promote_dtype,
            preferred_element_type=preferred_element_type,
        )
        make = parameters(rngs, self.param_dtype)
        self.kernel = make(kernel_init, self.kernel_shape, kernel_metadata)
        self.bias = make(bias_init, (out_features,), bias_metadata, use_bias)

    def _sizes(self, inputs: Array) -> lazy.Sizes:
        size = jnp.shape(inputs)[-1]
        shape = tuple(size if n is None else n for n in self.kernel_shape)
        return {"in_features": size, "kernel_shape": shape}, (size,)

    def __call__(self, inputs: Array) -> Array:
        """Spreads `(*batch, *spatial, in_features)`, with any number of batch axes.

        Returns:
            `(*batch, *windows, out_features)`.

        Raises:
            ValueError: if the inputs have another number of channels or too few axes,
                or the mask has not the shape of the kernel.
        """
        return apply(self, conv_transpose, inputs, self.kernel, self.bias, self.mask)
