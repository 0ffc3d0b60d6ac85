"""Small networks that are parts of many: gated MLP, and an activation that learns."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from ..core.kinds import Param
from ..core.metadata import NO_METADATA
from ..core.rngs import Rngs
from ..functional import initializers
from ..functional.activations import gated, prelu, silu
from ..functional.dtypes import PromoteDtype
from .linear import Linear
from .policy import DEFAULT_POLICY, Layer, Policy, settle
from .shell import apply, check_given


class PReLU(Layer):
    """`x` where it is positive, else a learned slope times `x` (arXiv:1502.01852).

    Arguments not described here: see `nnxlite.layers`.

    Args:
        negative_slope_init: the initial slope.

    Attributes:
        negative_slope: Param, a scalar.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> nnx.PReLU(0.1)(jnp.array([-2.0, 2.0]))
        Array([-0.2,  2. ], dtype=float32)
    """

    negative_slope: Param[Array]

    def __init__(
        self,
        negative_slope_init: float = 0.01,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        promote_dtype: PromoteDtype | None = None,
        policy: Policy = DEFAULT_POLICY,
        negative_slope_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        settle(
            policy,
            self,
            dtype=dtype,
            param_dtype=param_dtype,
            promote_dtype=promote_dtype,
        )
        slope = jnp.asarray(negative_slope_init, self.param_dtype)
        self.negative_slope = Param(slope, **negative_slope_metadata)

    def __call__(self, inputs: Array) -> Array:
        """Returns an array like the inputs, of any shape."""
        return apply(self, prelu, inputs, self.negative_slope)


class GatedMLP(Layer):
    """`down(activation(gate(x)) * up(x))` (https://arxiv.org/abs/2002.05202).

    With `silu` it is SwiGLU, with `gelu` GeGLU. Arguments not described here: see
    `Linear` and `nnxlite.layers`.

    Args:
        in_features: size of the last axis of the inputs; None infers it.
        hidden_features: size of the layer between.
        out_features: size of the last axis of the outputs, by default `in_features`.
        activation_fn: the nonlinearity of the gate.

    Attributes:
        gate, up, down: Linear.

    Raises:
        TypeError: if `rngs` is no Rngs.
        ValueError: if neither `in_features` nor `out_features` is given.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.GatedMLP(8, 32, activation_fn=nnx.gelu, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 5, 8))).shape
        (2, 5, 8)
    """

    def __init__(
        self,
        in_features: int | None,
        hidden_features: int,
        out_features: int | None = None,
        *,
        activation_fn: Callable[[Array], Array] = silu,
        use_bias: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: lax.PrecisionLike = None,
        kernel_init: Callable[..., Any] = initializers.lecun_normal(),
        bias_init: Callable[..., Any] = initializers.zeros,
        promote_dtype: PromoteDtype | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        check_given(self, hidden_features=hidden_features)
        out_features = in_features if out_features is None else out_features
        if out_features is None:
            raise ValueError(
                "GatedMLP: out_features is by default in_features; where that is None, "
                "give out_features, too."
            )
        self.activation_fn = activation_fn
        make = partial(
            Linear,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=kernel_init,
            bias_init=bias_init,
            promote_dtype=promote_dtype,
            policy=policy,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.gate: Linear = make(in_features, hidden_features)
        self.up: Linear = make(in_features, hidden_features)
        self.down: Linear = make(hidden_features, out_features)

    def __call__(self, inputs: Array) -> Array:
        """Maps `(..., in_features)` to `(..., out_features)`.

        Raises:
            ValueError: if the last axis of the inputs has another size.
        """
        return self.down(apply(self, gated, self.gate(inputs), self.up(inputs)))
