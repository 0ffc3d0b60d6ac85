"""Linear maps: a weight that multiplies features, and a table of embeddings."""

import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from numpy.lib.array_utils import normalize_axis_tuple

from ..core.kinds import Param
from ..core.metadata import NO_METADATA, VariableMetadata
from ..core.rngs import Rngs
from ..functional import initializers
from ..functional.dtypes import PromoteDtype
from ..functional.linear import (
    attend,
    einsum,
    embed,
    linear,
    linear_general,
    operands,
)
from .lazy import Sizes
from .policy import DEFAULT_POLICY, Layer, Policy, settle
from .shell import apply, check_given, parameters


class Linear(Layer):
    """A linear map of the last axis, `inputs @ kernel + bias`.

    Arguments not described here: see `nnxlite.layers`.

    Args:
        in_features: size of the last axis of the inputs; None infers it.
        out_features: size of the last axis of the outputs.
        use_bias: False leaves the attribute `bias` None.
        dot_general: used in place of `jax.lax.dot_general`.

    Attributes:
        kernel: Param `(in_features, out_features)`, by default `lecun_normal()`.
        bias: Param `(out_features,)`, or None.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 4))).shape, layer.kernel.shape, layer.bias.shape
        ((2, 3), (4, 3), (3,))
    """

    kernel: Param[Array]
    bias: Param[Array] | None

    def __init__(
        self,
        in_features: int | None,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: lax.PrecisionLike = None,
        kernel_init: Callable[..., Any] = initializers.lecun_normal(),
        bias_init: Callable[..., Any] = initializers.zeros,
        dot_general: Callable[..., Array] = lax.dot_general,
        promote_dtype: PromoteDtype | None = None,
        preferred_element_type: DTypeLike | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        check_given(self, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.use_bias = use_bias
        self.dot_general = dot_general
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
        self.kernel = make(kernel_init, (in_features, out_features), kernel_metadata)
        self.bias = make(bias_init, (out_features,), bias_metadata, use_bias)

    def _sizes(self, inputs: Array) -> Sizes:
        size = jnp.shape(inputs)[-1]
        return {"in_features": size}, (size,)

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Maps `(..., in_features)` to `(..., out_features)`.

        Raises:
            ValueError: if the last axis of the inputs has another size.
        """
        arrays = inputs, self.kernel, self.bias
        return apply(self, linear, *arrays, out_sharding=out_sharding)


class LinearGeneral(Layer):
    """A linear map of any axes: `jnp.tensordot(inputs, kernel) + bias`.

    Arguments not described here: see `nnxlite.layers`.

    Args:
        in_features: the size of each of `axis`, from the first axis to the last; None
            infers them.
        out_features: the sizes of the axes that come in their place, at the end.
        axis: the axis or axes of the inputs to contract.
        batch_axis: `{axis: size}` of leading axes of the inputs along which each
            position has a weight of its own.
        use_bias: False leaves the attribute `bias` None.
        dot_general: used in place of `jax.lax.dot_general`.
        dot_general_cls: makes such a function, once a call.

    Attributes:
        kernel: Param `(*batch, *in_features, *out_features)`, by default
            `lecun_normal()` of the flat `(batch * in_features, out_features)`.
        bias: Param `(*batch, *out_features)`, or None.

    Raises:
        TypeError: if `rngs` is no Rngs.
        ValueError: if there is not one size for each axis, or the batch axes are not
            the leading ones.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.LinearGeneral((3, 4), 5, axis=(1, 2), rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 3, 4))).shape
        (2, 5)
    """

    kernel: Param[Array]
    bias: Param[Array] | None

    def __init__(
        self,
        in_features: int | Sequence[int] | None,
        out_features: int | Sequence[int],
        *,
        axis: int | Sequence[int] = -1,
        batch_axis: Mapping[int, int] = types.MappingProxyType({}),
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        kernel_init: Callable[..., Any] = initializers.lecun_normal(),
        bias_init: Callable[..., Any] = initializers.zeros,
        precision: lax.PrecisionLike = None,
        promote_dtype: PromoteDtype | None = None,
        dot_general: Callable[..., Array] | None = None,
        dot_general_cls: Any = None,
        preferred_element_type: DTypeLike | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        check_given(self, out_features=out_features)
        self.out_features: tuple[int, ...] = _tuple(out_features)
        self.axis: tuple[int, ...] = _tuple(axis)
        self.in_features: tuple[int | None, ...] = (None,) * len(self.axis)
        if in_features is not None:
            self.in_features = _tuple(in_features)
        self.batch_axis: dict[int, int] = dict(batch_axis)
        self.use_bias = use_bias
        self.dot_general = dot_general
        self.dot_general_cls = dot_general_cls
        settle(
            policy,
            self,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            promote_dtype=promote_dtype,
            preferred_element_type=preferred_element_type,
        )
        if len(self.in_features) != len(self.axis):
            raise ValueError(
                f"LinearGeneral: in_features={self.in_features} must have a size for "
                f"each of axis={self.axis}."
            )
        if sorted(batch_axis) != list(range(len(batch_axis))):
            raise ValueError(
                "LinearGeneral: batch dimensions must be the leading ones, starting "
                f"from 0; got batch_axis={dict(batch_axis)}. Transpose the inputs."
            )
        batch = tuple(batch_axis[axis] for axis in sorted(batch_axis))
        make = parameters(rngs, self.param_dtype)
        self.kernel = make(
            flat_init(kernel_init, len(batch) + len(self.in_features)),
            (*batch, *self.in_features, *self.out_features),
            kernel_metadata,
        )
        shape = (*batch, *self.out_features)
        self.bias = make(flat_init(bias_init), shape, bias_metadata, use_bias)

    def _sizes(self, inputs: Array) -> Sizes:
        shape = jnp.shape(inputs)
        axes = sorted(normalize_axis_tuple(self.axis, len(shape), "axis"))
        sizes = tuple(shape[axis] for axis in axes)
        return {"in_features": sizes}, sizes

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Maps an array with `in_features` along `axis`.

        Returns:
            `(*batch, ..., *out_features)`, where `...` are the other axes.

        Raises:
            ValueError: if the inputs lack an axis, or it has another size.
        """
        product = self.dot_general or lax.dot_general
        if self.dot_general_cls is not None:
            product = self.dot_general_cls()
        return apply(
            self,
            linear_general,
            inputs,
            self.kernel,
            self.bias,
            batch_axes=tuple(sorted(self.batch_axis)),
            dot_general=product,
            out_sharding=out_sharding,
        )


def _tuple(sizes: int | Sequence[int]) -> tuple[int, ...]:
    return (sizes,) if isinstance(sizes, int) else tuple(sizes)


def flat_init(initializer: Callable[..., Any], rank: int | None = None) -> Any:
    """An initializer of flat arrays, or of matrices, that come out in any shape.

    The first `rank` axes together are the rows of the matrix.
    """

    def flat(key: Any, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        wanted: tuple[int, ...] = (math.prod(shape),)
        if rank is not None:
            wanted = math.prod(shape[:rank]), math.prod(shape[rank:])
        value = initializer(key, wanted, dtype)
        if isinstance(value, VariableMetadata):
            array = value.raw_value.reshape(shape)
            return VariableMetadata(array, metadata=value.metadata)
        return value.reshape(shape)

    return flat


class Einsum(Layer):
    """`jnp.einsum(einsum_str, inputs, kernel) + bias`.

    Arguments not described here: see `nnxlite.layers`.

    Args:
        einsum_str: an equation of two operands with an arrow: 'nta,hab->nthb'.
        kernel_shape: the shape of the kernel.
        bias_shape: the shape of the bias: the sizes of those axes of the result that
            come from the kernel; None for no bias.
        einsum_op: used in place of `jax.numpy.einsum`.

    Attributes:
        kernel: Param of `kernel_shape`, by default `lecun_normal()`.
        bias: Param of `bias_shape`, or None.

    Raises:
        TypeError: if `rngs` is no Rngs.
        ValueError: if the equation is not of that form.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.Einsum("nta,hab->nthb", (8, 2, 4), (8, 4), rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((16, 11, 2))).shape
        (16, 11, 8, 4)
    """

    kernel: Param[Array]
    bias: Param[Array] | None

    def __init__(
        self,
        einsum_str: str,
        kernel_shape: Sequence[int],
        bias_shape: Sequence[int] | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: lax.PrecisionLike = None,
        kernel_init: Callable[..., Any] = initializers.lecun_normal(),
        bias_init: Callable[..., Any] = initializers.zeros,
        promote_dtype: PromoteDtype | None = None,
        einsum_op: Callable[..., Array] = jnp.einsum,
        preferred_element_type: DTypeLike | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        operands(einsum_str)
        self.einsum_str: str = einsum_str.replace(" ", "")
        self.kernel_shape: tuple[int, ...] = tuple(kernel_shape)
        self.bias_shape: tuple[int, ...] | None = (
            None if bias_shape is None else tuple(bias_shape)
        )
        self.einsum_op = einsum_op
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
        use_bias = self.bias_shape is not None
        self.bias = make(bias_init, self.bias_shape or (), bias_metadata, use_bias)

    def __call__(
        self, inputs: Array, einsum_str: str | None = None, out_sharding: Any = None
    ) -> Array:
        """What the equation says, or `einsum_str` in its place.

        Raises:
            ValueError: if a shape does not fit the equation.
        """
        return apply(
            self,
            einsum,
            inputs,
            self.kernel,
            self.bias,
            equation=self.einsum_str if einsum_str is None else einsum_str,
            out_sharding=out_sharding,
        )


class Embed(Layer):
    """A table of vectors, looked up by number.

    Arguments not described here: see `nnxlite.layers`.

    Args:
        num_embeddings: number of rows of the table.
        features: size of each row.
        dtype: of the outputs; None is the type of the table.

    Attributes:
        embedding: Param `(num_embeddings, features)`, by default normal with variance
            `1 / features`.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> table = nnx.Embed(10, 4, rngs=nnx.Rngs(0))
        >>> vectors = table(jnp.array([3, 7, 3]))
        >>> vectors.shape, table.attend(vectors).shape
        ((3, 4), (3, 10))
    """

    embedding: Param[Array]

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        embedding_init: Callable[..., Any] = initializers.variance_scaling(
            1.0, "fan_in", "normal", out_axis=0
        ),
        promote_dtype: PromoteDtype | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        embedding_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        check_given(self, num_embeddings=num_embeddings, features=features)
        self.num_embeddings = num_embeddings
        self.features = features
        settle(
            policy,
            self,
            dtype=dtype,
            param_dtype=param_dtype,
            promote_dtype=promote_dtype,
        )
        make = parameters(rngs, self.param_dtype)
        shape = (num_embeddings, features)
        self.embedding = make(embedding_init, shape, embedding_metadata)

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """The rows at the integers `inputs`, of any shape: `(*inputs.shape, features)`.

        A negative number counts from the end; for one out of range the row is nan.

        Raises:
            ValueError: if the inputs are not integers.
        """
        return apply(self, embed, inputs, self.embedding, out_sharding=out_sharding)

    def attend(self, query: Array, out_sharding: Any = None) -> Array:
        """Inner products of `(..., features)` with all rows: `(..., num_embeddings)`.

        With it the table is also the last layer of a language model
        (https://arxiv.org/abs/1608.05859).

        Raises:
            ValueError: if the last axis of the query has another size.
        """
        return apply(self, attend, query, self.embedding, out_sharding=out_sharding)
