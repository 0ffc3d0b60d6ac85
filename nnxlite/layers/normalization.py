"""Normalization: layers that give activations mean 0 and variance 1, then a new scale
and bias.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from numpy.lib.array_utils import normalize_axis_tuple

from ..core.errors import name_of
from ..core.kinds import BatchStat, Param
from ..core.metadata import NO_METADATA
from ..core.rngs import Rngs
from ..functional import initializers
from ..functional.dtypes import PromoteDtype
from ..functional.kernels import frozen
from ..functional.normalization import (
    batch_norm,
    batch_norm_inference,
    group_norm,
    layer_norm,
)
from .lazy import Sizes
from .policy import DEFAULT_POLICY, Layer, Policy, settle
from .shell import apply, initial, mode, parameters

Groups = Sequence[Sequence[int]] | None


def _zeros(key: None, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.zeros(shape, dtype)


def _ones(key: None, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.ones(shape, dtype)


def _features(x: Array, axes: Any) -> Sizes:
    """How many features inputs have."""
    shape = jnp.shape(x)
    axes = normalize_axis_tuple(axes, len(shape), "feature axes")
    size = math.prod(shape[axis] for axis in axes)
    return {"num_features": size}, (size,)


def _begin(
    self: Any,
    *,
    num_features: int | None,
    rngs: Rngs,
    policy: Policy,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike | None,
    promote_dtype: PromoteDtype | None,
    use_scale: bool,
    scale_init: Callable[..., Any],
    scale_metadata: Mapping[str, Any],
    use_bias: bool = False,
    bias_init: Callable[..., Any] = initializers.zeros,
    bias_metadata: Mapping[str, Any] = NO_METADATA,
    **attributes: Any,
) -> None:
    """What all constructors do: keeps the arguments, makes scale and bias."""
    self.num_features = num_features
    self.use_scale = use_scale
    self.use_bias = use_bias
    for name, value in attributes.items():
        setattr(self, name, frozen(value))
    settle(
        policy, self, dtype=dtype, param_dtype=param_dtype, promote_dtype=promote_dtype
    )
    make = parameters(rngs, self.param_dtype)
    self.scale = make(scale_init, (num_features,), scale_metadata, use_scale)
    self.bias = make(bias_init, (num_features,), bias_metadata, use_bias)


class BatchNorm(Layer):
    """Normalizes each feature over the batch (https://arxiv.org/abs/1502.03167).

    Training uses the statistics of the batch and moves the running ones towards them;
    `model.eval()` makes it use the running ones.

    Arguments not described here: see `nnxlite.layers`.

    Args:
        num_features: size of the axis of the features; None infers it.
        use_running_average: whether to use the running statistics, which then stay as
            they are; None leaves it to each call.
        axis: the axis of the features; statistics are taken over all others.
        momentum: the part of the running statistics that one call keeps.
        epsilon: added to the variance.
        use_bias: False leaves the attribute `bias` None.
        use_scale: False leaves the attribute `scale` None.
        axis_name: of the devices or `vmap` lanes over which the batch is spread; see
            `jax.lax.pmean`. None takes the statistics of each by itself.
        axis_index_groups: the groups of them that share statistics.
        use_fast_variance: E|x|^2 - |E x|^2, which reads `x` once, but cancels where the
            mean is much larger than the deviation; else E|x - E x|^2.

    Attributes:
        mean: BatchStat `(num_features,)`, float32, at first 0.
        var: BatchStat `(num_features,)`, float32, at first 1; the biased variance.
        scale: Param `(num_features,)`, or None.
        bias: Param `(num_features,)`, or None.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.BatchNorm(1, momentum=0.5, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[1.0], [3.0]]))[:, 0].round(3), layer.mean.value
        (Array([-1.,  1.], dtype=float32), Array([1.], dtype=float32))
        >>> layer = layer.eval()
        >>> layer(jnp.array([[1.0], [3.0]]))[:, 0].round(3)
        Array([0., 2.], dtype=float32)
    """

    axis: int
    mean: BatchStat[Array]
    var: BatchStat[Array]
    scale: Param[Array] | None
    bias: Param[Array] | None

    def __init__(
        self,
        num_features: int | None,
        *,
        use_running_average: bool | None = False,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Callable[..., Any] = initializers.zeros,
        scale_init: Callable[..., Any] = initializers.ones,
        axis_name: str | None = None,
        axis_index_groups: Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtype | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        _begin(**locals())
        shape = (num_features,)
        self.mean = BatchStat(initial(_zeros, None, shape, jnp.float32))
        self.var = BatchStat(initial(_ones, None, shape, jnp.float32))

    def _sizes(self, x: Array) -> Sizes:
        return _features(x, self.axis)

    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,
        *,
        mask: Array | None = None,
    ) -> Array:
        """Normalizes `x`, of any shape with `num_features` along `axis`.

        Args:
            x: the activations.
            use_running_average: in place of the attribute, if not None.
            mask: False where an entry of `x` shall not count, broadcasts to `x`.

        Raises:
            ValueError: if `x` has another number of features, or if
                `use_running_average` is None here and in the layer.
        """
        arrays = x, self.mean, self.var, self.scale, self.bias
        if mode(self, "use_running_average", use_running_average):
            return apply(self, batch_norm_inference, *arrays)
        y, mean, var = apply(self, batch_norm, *arrays, mask)
        self.mean.value, self.var.value = mean, var
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """`use_running_average`: whether to use the running statistics."""
        if use_running_average is not None:
            self.use_running_average = use_running_average


class LayerNorm(Layer):
    """Normalizes the features of each example (https://arxiv.org/abs/1607.06450).

    Arguments not described here: see `nnxlite.layers`.

    Args:
        num_features: number of features: product of the sizes of `feature_axes`; None
            infers it.
        epsilon: added to the variance.
        use_bias: False leaves the attribute `bias` None.
        use_scale: False leaves the attribute `scale` None.
        reduction_axes: the axes over which mean and variance are taken.
        feature_axes: the axes along which scale and bias differ.
        axis_name: of the devices or `vmap` lanes over which `reduction_axes` are
            spread; see `jax.lax.pmean`.
        axis_index_groups: the groups of them that share statistics.
        use_fast_variance: see `BatchNorm`.

    Attributes:
        scale: Param `(num_features,)`, or None.
        bias: Param `(num_features,)`, or None.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.LayerNorm(3, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[1.0, 2.0, 3.0]])).round(3)
        Array([[-1.225,  0.   ,  1.225]], dtype=float32)
    """

    feature_axes: int | tuple[int, ...]
    scale: Param[Array] | None
    bias: Param[Array] | None

    def __init__(
        self,
        num_features: int | None,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Callable[..., Any] = initializers.zeros,
        scale_init: Callable[..., Any] = initializers.ones,
        reduction_axes: int | Sequence[int] = -1,
        feature_axes: int | Sequence[int] = -1,
        axis_name: str | None = None,
        axis_index_groups: Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtype | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        _begin(**locals())

    def _sizes(self, x: Array) -> Sizes:
        return _features(x, self.feature_axes)

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        """Normalizes `x`, by default of shape `(..., num_features)`.

        Args:
            x: the activations.
            mask: False where an entry of `x` shall not count, broadcasts to `x`.

        Raises:
            ValueError: if `x` lacks an axis or has another number of features.
        """
        return apply(self, layer_norm, x, self.scale, self.bias, mask)


class RMSNorm(Layer):
    """Divides the features of each example by their root mean square.

    The paper is https://arxiv.org/abs/1910.07467. Arguments not described here: see
    `LayerNorm` and `nnxlite.layers`.

    Attributes:
        scale: Param `(num_features,)`, or None.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.RMSNorm(2, rngs=nnx.Rngs(0))
        >>> (layer(jnp.array([[1.0, 7.0]])) * 5).round(2)
        Array([[1., 7.]], dtype=float32)
    """

    feature_axes: int | tuple[int, ...]
    scale: Param[Array] | None

    def __init__(
        self,
        num_features: int | None,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        use_scale: bool = True,
        scale_init: Callable[..., Any] = initializers.ones,
        reduction_axes: int | Sequence[int] = -1,
        feature_axes: int | Sequence[int] = -1,
        axis_name: str | None = None,
        axis_index_groups: Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtype | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        _begin(**locals())

    def _sizes(self, x: Array) -> Sizes:
        return _features(x, self.feature_axes)

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Normalizes `x`, by default of shape `(..., num_features)`.

        Args:
            x: the activations.
            mask: False where an entry of `x` shall not count, broadcasts to `x`.

        Raises:
            ValueError: if `x` lacks an axis or has another number of features.
        """
        return apply(self, layer_norm, x, self.scale, None, mask, use_mean=False)


def _divided(features: int, groups: int | None, size: int | None) -> tuple[int, int]:
    """How many groups of channels, and how large they are, of which one is given."""
    groups = features // max(size or 0, 1) if groups is None else groups
    size = features // max(groups, 1) if size is None else size
    if groups * size != features:
        raise ValueError(
            f"GroupNorm: {features} features cannot be divided into {groups} groups of "
            f"{size}: choose a divisor."
        )
    return groups, size


class GroupNorm(Layer):
    """Normalizes groups of features over space (https://arxiv.org/abs/1803.08494).

    Arguments not described here: see `LayerNorm` and `nnxlite.layers`.

    Args:
        num_features: size of the last axis of the inputs; None infers it.
        num_groups: how many groups of neighbouring features; None if `group_size` is
            given.
        group_size: the features of each group, in place of `num_groups=None`.
        reduction_axes: the axes over which mean and variance are taken, the last one
            among them; None is all but the first.

    Attributes:
        scale: Param `(num_features,)`, or None.
        bias: Param `(num_features,)`, or None.

    Raises:
        TypeError: if `rngs` is no Rngs.
        ValueError: if both or none of `num_groups` and `group_size` are given, or they
            do not divide the features.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[1.0, 3.0, 5.0, 9.0]])).round(3)
        Array([[-1.,  1., -1.,  1.]], dtype=float32)
    """

    num_groups: int | None
    group_size: int | None
    scale: Param[Array] | None
    bias: Param[Array] | None

    def __init__(
        self,
        num_features: int | None,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Callable[..., Any] = initializers.zeros,
        scale_init: Callable[..., Any] = initializers.ones,
        reduction_axes: int | Sequence[int] | None = None,
        axis_name: str | None = None,
        axis_index_groups: Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtype | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        if (num_groups is None) == (group_size is None):
            raise ValueError(
                "GroupNorm: Either `num_groups` or `group_size` should be specified, "
                f"and the other None; got {num_groups} and {group_size}."
            )
        if num_features is not None:
            num_groups, group_size = _divided(num_features, num_groups, group_size)
        _begin(**locals(), feature_axis=-1)

    def _sizes(self, x: Array) -> Sizes:
        attributes, (features,) = _features(x, -1)
        groups, size = _divided(features, self.num_groups, self.group_size)
        attributes |= {"num_groups": groups, "group_size": size}
        return attributes, (features,)

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        """Normalizes `x` of shape `(batch, *spatial, num_features)`.

        Args:
            x: the activations.
            mask: False where an entry of `x` shall not count, broadcasts to `x`.

        Raises:
            ValueError: if `x` lacks an axis or has another number of features.
        """
        return apply(self, group_norm, x, self.scale, self.bias, mask)


class InstanceNorm(Layer):
    """Normalizes each feature of each example over space.

    The paper is https://arxiv.org/abs/1607.08022. Arguments not described here: see
    `LayerNorm` and `nnxlite.layers`.

    Args:
        feature_axes: the axes of the features; statistics are taken over all others but
            the first.

    Attributes:
        scale: Param `(num_features,)`, or None.
        bias: Param `(num_features,)`, or None.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.InstanceNorm(1, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[[1.0], [3.0]]]))[0, :, 0].round(3)
        Array([-1.,  1.], dtype=float32)
    """

    feature_axes: int | tuple[int, ...]
    scale: Param[Array] | None
    bias: Param[Array] | None

    def __init__(
        self,
        num_features: int | None,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Callable[..., Any] = initializers.zeros,
        scale_init: Callable[..., Any] = initializers.ones,
        feature_axes: int | Sequence[int] = -1,
        axis_name: str | None = None,
        axis_index_groups: Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtype | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        _begin(**locals())

    def _sizes(self, x: Array) -> Sizes:
        return _features(x, self.feature_axes)

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        """Normalizes `x`, by default of shape `(batch, *spatial, num_features)`.

        Args:
            x: the activations.
            mask: False where an entry of `x` shall not count, broadcasts to `x`.

        Raises:
            ValueError: if `x` lacks an axis, has another number of features, or if the
                axis of the features is the first.
        """
        rank = jnp.ndim(x)
        features = normalize_axis_tuple(self.feature_axes, rank, "feature_axes")
        if 0 in features:
            raise ValueError(
                f"{name_of(self)}: The channel axes cannot include the leading "
                "dimension as this is assumed to be the batch axis; got feature_axes="
                f"{self.feature_axes} for x of shape {jnp.shape(x)}."
            )
        space = tuple(axis for axis in range(1, rank) if axis not in features)
        arrays = x, self.scale, self.bias, mask
        return apply(self, layer_norm, *arrays, reduction_axes=space)
