"""Linear maps: a weight that multiplies features, and a table of embeddings."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from ..core.kinds import Param
from ..core.metadata import NO_METADATA
from ..core.module import Module
from ..core.rngs import Rngs
from ..functional import initializers
from ..functional.dtypes import PromoteDtype, promote_dtype
from ..functional.linear import attend, embed, linear
from .shell import apply, optional, parameter


class Linear(Module):
    """A linear map of the last axis, `inputs @ kernel + bias`.

    Arguments not described here: see `nnxlite.layers`.

    Args:
        in_features: size of the last axis of the inputs.
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
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Callable[..., Any] = initializers.lecun_normal(),
        bias_init: Callable[..., Any] = initializers.zeros,
        dot_general: Callable[..., Array] = lax.dot_general,
        promote_dtype: PromoteDtype = promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        shape = (in_features, out_features)
        self.kernel = parameter(kernel_init, rngs, shape, param_dtype, kernel_metadata)
        shape = (out_features,)
        self.bias = optional(
            use_bias, bias_init, rngs, shape, param_dtype, bias_metadata
        )
        self.in_features = in_features
        self.out_features = out_features
        self.use_bias = use_bias
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.dot_general = dot_general
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Maps `(..., in_features)` to `(..., out_features)`.

        Raises:
            ValueError: if the last axis of the inputs has another size.
        """
        return apply(
            self,
            linear,
            inputs,
            self.kernel,
            self.bias,
            dtype=self.dtype,
            precision=self.precision,
            dot_general=self.dot_general,
            promote_dtype=self.promote_dtype,
            preferred_element_type=self.preferred_element_type,
            out_sharding=out_sharding,
        )


class Embed(Module):
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
        param_dtype: DTypeLike = jnp.float32,
        embedding_init: Callable[..., Any] = initializers.variance_scaling(
            1.0, "fan_in", "normal", out_axis=0
        ),
        promote_dtype: PromoteDtype = promote_dtype,
        rngs: Rngs,
        embedding_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        shape = (num_embeddings, features)
        self.embedding = parameter(
            embedding_init, rngs, shape, param_dtype, embedding_metadata
        )
        self.num_embeddings = num_embeddings
        self.features = features
        self.dtype = self.embedding.value.dtype if dtype is None else dtype
        self.param_dtype = param_dtype
        self.promote_dtype = promote_dtype

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """The rows at the integers `inputs`, of any shape: `(*inputs.shape, features)`.

        A negative number counts from the end; for one out of range the row is nan.

        Raises:
            ValueError: if the inputs are not integers.
        """
        return self._apply(embed, inputs, out_sharding)

    def attend(self, query: Array, out_sharding: Any = None) -> Array:
        """Inner products of `(..., features)` with all rows: `(..., num_embeddings)`.

        With it the table is also the last layer of a language model
        (https://arxiv.org/abs/1608.05859).

        Raises:
            ValueError: if the last axis of the query has another size.
        """
        return self._apply(attend, query, out_sharding)

    def _apply(
        self, kernel: Callable[..., Array], inputs: Array, out_sharding: Any
    ) -> Array:
        return apply(
            self,
            kernel,
            inputs,
            self.embedding,
            dtype=self.dtype,
            promote_dtype=self.promote_dtype,
            out_sharding=out_sharding,
        )
