"""LoRA: a trainable map of low rank beside a weight that stays as it is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ..core.kinds import Param
from ..core.metadata import NO_METADATA
from ..core.rngs import Rngs
from ..core.variable import A, Variable
from ..functional import initializers
from ..functional.dtypes import PromoteDtype
from ..functional.kernels import frozen
from ..functional.weights import low_rank
from .lazy import Sizes
from .linear import Linear, flat_init
from .policy import DEFAULT_POLICY, Layer, Policy, settle
from .shell import apply, check_given, parameters


class LoRAParam(Param[A]):
    """A parameter of a low-rank map, to be told from the weights that it adapts.

    Example:
        >>> import optax, nnxlite as nnx
        >>> model = nnx.LoRALinear(3, 4, lora_rank=2, rngs=nnx.Rngs(0))
        >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.LoRAParam)
        >>> list(nnx.state(model, nnx.LoRAParam))
        ['lora']
    """


class LoRA(Layer):
    """`x @ lora_a @ lora_b`, plus what another module makes of `x`.

    The paper is https://arxiv.org/abs/2106.09685; there is no factor `alpha / rank`.
    At first `lora_b`, and so the product, is 0. Arguments not described here: see
    `nnxlite.layers`.

    Args:
        in_features: size of the last axis of the inputs; None infers it. Several, as in
            `LinearGeneral`, for the axes that `axis` names.
        lora_rank: size of the axis between.
        out_features: size of the last axis of the outputs, or of several.
        axis: the axes of the inputs that are mapped.
        base_module: a Module or function that is called too, or None.
        a_initializer: of `lora_a`, by default `he_uniform()`.
        b_initializer: of `lora_b`, by default zeros.
        lora_param_type: the class of both Variables.

    Attributes:
        lora_a: LoRAParam `(in_features, lora_rank)`.
        lora_b: LoRAParam `(lora_rank, out_features)`.

    Raises:
        TypeError: if `rngs` is no Rngs, or `base_module` cannot be called.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> base = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        >>> layer = nnx.LoRA(3, 2, 4, base_module=base, rngs=nnx.Rngs(1))
        >>> x = jnp.ones((5, 3))
        >>> bool((layer(x) == base(x)).all())
        True
    """

    lora_a: Variable[Array]
    lora_b: Variable[Array]

    def __init__(
        self,
        in_features: int | Sequence[int] | None,
        lora_rank: int,
        out_features: int | Sequence[int],
        *,
        axis: int | Sequence[int] = -1,
        base_module: Callable[..., Any] | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        a_initializer: Callable[..., Any] = initializers.he_uniform(),
        b_initializer: Callable[..., Any] = initializers.zeros,
        lora_param_type: type[Variable[Any]] = LoRAParam,
        promote_dtype: PromoteDtype | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        a_metadata: Mapping[str, Any] = NO_METADATA,
        b_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        if base_module is not None and not callable(base_module):
            raise TypeError(
                "LoRA: base_module must be a Module with a __call__, or a function; "
                f"got {type(base_module).__name__}."
            )
        check_given(self, lora_rank=lora_rank, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.axis: int | tuple[int, ...] = frozen(axis)
        self.lora_param_type = lora_param_type
        self.base_module = base_module
        settle(
            policy,
            self,
            dtype=dtype,
            param_dtype=param_dtype,
            promote_dtype=promote_dtype,
        )
        make = parameters(rngs, self.param_dtype, lora_param_type)
        sizes = in_features, out_features
        ins, outs = (x if isinstance(x, Sequence) else (x,) for x in sizes)
        if len(ins) > 1:
            a_initializer = flat_init(a_initializer, len(ins))
        self.lora_a = make(a_initializer, (*ins, lora_rank), a_metadata)
        self.lora_b = make(b_initializer, (lora_rank, *outs), b_metadata)

    def _sizes(self, x: Array) -> Sizes:
        size = jnp.shape(x)[-1]
        return {"in_features": size}, (size,)

    def __call__(self, x: Array, **kwargs: Any) -> Array:
        """Maps `(..., in_features)` to `(..., out_features)`.

        Args:
            x: the inputs.
            **kwargs: for the base module.

        Raises:
            ValueError: if the last axis of the inputs has another size.
        """
        y = apply(self, low_rank, x, self.lora_a, self.lora_b)
        return y if self.base_module is None else y + self.base_module(x, **kwargs)


class LoRALinear(Linear):
    """A `Linear` with a `LoRA` beside it, which takes the state of a plain `Linear`.

    Arguments not described here: see `Linear`.

    Args:
        lora_rank: see `LoRA`, as are a_initializer, b_initializer, lora_param_type,
            a_metadata, b_metadata.
        lora_dtype, lora_param_dtype, lora_promote_dtype: those of the low-rank map.

    Attributes:
        lora: the LoRA.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.LoRALinear(3, 4, lora_rank=2, rngs=nnx.Rngs(0))
        >>> layer.kernel.shape, layer.lora.lora_a.shape, layer(jnp.ones(3)).shape
        ((3, 4), (3, 2), (4,))
    """

    lora: LoRA

    def __init__(
        self,
        in_features: int | None,
        out_features: int,
        *,
        lora_rank: int,
        lora_dtype: DTypeLike | None = None,
        lora_param_dtype: DTypeLike | None = None,
        a_initializer: Callable[..., Any] = initializers.he_uniform(),
        b_initializer: Callable[..., Any] = initializers.zeros,
        lora_param_type: type[Variable[Any]] = LoRAParam,
        lora_promote_dtype: PromoteDtype | None = None,
        rngs: Rngs,
        a_metadata: Mapping[str, Any] = NO_METADATA,
        b_metadata: Mapping[str, Any] = NO_METADATA,
        **kwargs: Any,
    ):
        super().__init__(in_features, out_features, rngs=rngs, **kwargs)
        self.lora = LoRA(
            in_features,
            lora_rank,
            out_features,
            dtype=lora_dtype,
            param_dtype=lora_param_dtype,
            a_initializer=a_initializer,
            b_initializer=b_initializer,
            lora_param_type=lora_param_type,
            promote_dtype=lora_promote_dtype,
            policy=kwargs.get("policy", DEFAULT_POLICY),
            rngs=rngs,
            a_metadata=a_metadata,
            b_metadata=b_metadata,
        )

    def __call__(self, x: Array, out_sharding: Any = None) -> Array:
        """Maps `(..., in_features)` to `(..., out_features)`; see `Linear`."""
        return super().__call__(x, out_sharding=out_sharding) + self.lora(x)
