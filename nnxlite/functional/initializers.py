"""Initializers: functions `(key, shape, dtype)` that draw the first parameters.

All but one come from `jax.nn.initializers`, where each is documented. `zeros`, `ones`
and `modified_orthogonal` are initializers themselves; every other name is a function
that makes one.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer as Initializer
from jax.nn.initializers import constant as constant
from jax.nn.initializers import delta_orthogonal as delta_orthogonal
from jax.nn.initializers import glorot_normal as glorot_normal
from jax.nn.initializers import glorot_uniform as glorot_uniform
from jax.nn.initializers import he_normal as he_normal
from jax.nn.initializers import he_uniform as he_uniform
from jax.nn.initializers import kaiming_normal as kaiming_normal
from jax.nn.initializers import kaiming_uniform as kaiming_uniform
from jax.nn.initializers import lecun_normal as lecun_normal
from jax.nn.initializers import lecun_uniform as lecun_uniform
from jax.nn.initializers import normal as normal
from jax.nn.initializers import ones as ones
from jax.nn.initializers import orthogonal as orthogonal
from jax.nn.initializers import truncated_normal as truncated_normal
from jax.nn.initializers import uniform as uniform
from jax.nn.initializers import variance_scaling as variance_scaling
from jax.nn.initializers import xavier_normal as xavier_normal
from jax.nn.initializers import xavier_uniform as xavier_uniform
from jax.nn.initializers import zeros as zeros
from jax.typing import DTypeLike


def zeros_init() -> Initializer:
    """The initializer `zeros`: `zeros_init() is zeros`."""
    return zeros


def ones_init() -> Initializer:
    """The initializer `ones`: `ones_init() is ones`."""
    return ones


_orthogonal = orthogonal()


def modified_orthogonal(
    key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> Array:
    """Orthogonal initial values of any type: made in float32, then cast.

    Example:
        >>> import jax
        >>> modified_orthogonal(jax.random.key(0), (2, 2), "bfloat16").dtype
        dtype(bfloat16)
    """
    return _orthogonal(key, tuple(shape), jnp.float32).astype(dtype)
