"""Activations: those of `jax.nn`, where each is documented, as one dispatch each.

Most are compiled in JAX and taken as they are. Of the others an eager call takes 75
microseconds (`relu`, `relu6`, `gelu`), 33 (`softmax`) or 165 (`logsumexp`); compiled
4 to 10.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import celu as celu
from jax.nn import elu as elu
from jax.nn import glu as glu
from jax.nn import hard_sigmoid as hard_sigmoid
from jax.nn import hard_silu as hard_silu
from jax.nn import hard_swish as hard_swish
from jax.nn import hard_tanh as hard_tanh
from jax.nn import identity as identity
from jax.nn import leaky_relu as leaky_relu
from jax.nn import log_sigmoid as log_sigmoid
from jax.nn import log_softmax as log_softmax
from jax.nn import one_hot as one_hot
from jax.nn import selu as selu
from jax.nn import sigmoid as sigmoid
from jax.nn import silu as silu
from jax.nn import soft_sign as soft_sign
from jax.nn import softplus as softplus
from jax.nn import standardize as standardize
from jax.nn import swish as swish
from jax.numpy import tanh as tanh
from jax.typing import DTypeLike

from .dtypes import PromoteDtype, promote_dtype
from .kernels import compiled


def _jit(function: Callable[..., Any], **options: Any) -> Any:
    compiled = jax.jit(function, **options)
    compiled.__module__ = __name__  # where pickle finds it
    return compiled


if TYPE_CHECKING:
    from jax.nn import gelu as gelu
    from jax.nn import logsumexp as logsumexp
    from jax.nn import relu as relu
    from jax.nn import relu6 as relu6
    from jax.nn import softmax as softmax
else:
    relu, relu6 = _jit(jax.nn.relu), _jit(jax.nn.relu6)
    gelu = _jit(jax.nn.gelu, static_argnames="approximate")
    softmax = _jit(jax.nn.softmax, static_argnames="axis")
    logsumexp = _jit(
        jax.nn.logsumexp, static_argnames=("axis", "keepdims", "return_sign")
    )


@compiled(arrays=2)
def gated(
    gate: Array, x: Array, activation_fn: Callable[..., Array] = jax.nn.silu
) -> Array:
    """`activation_fn(gate) * x` (https://arxiv.org/abs/2002.05202).

    Args:
        gate: of any shape.
        x: broadcasts to it.

    Example:
        >>> gated(jax.numpy.array([-1.0, 2.0]), jax.numpy.ones(2), jax.nn.relu)
        Array([0., 2.], dtype=float32)
    """
    return activation_fn(gate) * x


@compiled(arrays=2)
def prelu(
    x: Array,
    negative_slope: Array,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
) -> Array:
    """`x` where it is positive, else `negative_slope * x`.

    Args:
        x: of any shape.
        negative_slope: broadcasts to `x`.
        dtype: in which to compute, by default that of `x`.

    Example:
        >>> prelu(jax.numpy.array([-2.0, 2.0]), jax.numpy.array(0.1))
        Array([-0.2,  2. ], dtype=float32)
    """
    if dtype is None:
        negative_slope = jnp.asarray(negative_slope, jnp.asarray(x).dtype)
    x, negative_slope = promote_dtype((x, negative_slope), dtype=dtype)
    return jnp.where(x >= 0, x, negative_slope * x)
