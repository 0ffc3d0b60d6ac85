"""Dropout: noise that sets entries to 0 (https://jmlr.org/papers/v15/srivastava14a)."""

import jax
import jax.numpy as jnp
from jax import Array
from numpy.lib.array_utils import normalize_axis_tuple

from .kernels import compiled, frozen


def dropout(
    x: Array, key: Array, rate: float, broadcast_dims: tuple[int, ...] = ()
) -> Array:
    """Set a random fraction `rate` of `x` to zero and divide the rest by 1 - `rate`.

    Args:
        x: floating or complex.
        key: see `jax.random.key`; not used where `rate` is 0 or 1.
        rate: a Python number from 0 to 1; each value compiles a program.
        broadcast_dims: axes along which all entries share their fate.

    Returns:
        An array like `x`; `x` itself if `rate` is 0.

    Raises:
        TypeError: if `x` has an integer type and `rate` is not 0.
        ValueError: if `rate` is out of range, or `x` lacks an axis.

    Example:
        >>> sorted(set(dropout(jnp.ones(8), jax.random.key(0), 0.5).tolist()))
        [0.0, 2.0]
    """
    return x if rate == 0 else _dropout(x, key, rate, frozen(broadcast_dims))


@compiled(arrays=2)
def _dropout(
    x: Array, key: Array, rate: float, broadcast_dims: tuple[int, ...]
) -> Array:
    x = _checked(x, rate)
    if rate == 1:
        return jnp.zeros_like(x)
    return jnp.where(_kept(x, key, rate, broadcast_dims), x / (1 - rate), 0)


def _checked(x: Array, rate: float) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"dropout scales its input, which {x.dtype.name} cannot represent: cast it "
            "first, as in x.astype('float32')."
        )
    if not 0 <= rate <= 1:
        raise ValueError(f"The dropout rate must be from 0 to 1; got {rate}.")
    return x


def _kept(x: Array, key: Array, rate: float, broadcast_dims: tuple[int, ...]) -> Array:
    shared = normalize_axis_tuple(broadcast_dims, x.ndim, "broadcast_dims")
    shape = tuple(1 if axis in shared else n for axis, n in enumerate(x.shape))
    return jax.random.bernoulli(key, 1 - rate, shape)


_SELU_LOW = -1.0507009873554805 * 1.6732632423543772  # the limit of selu at -infinity


def alpha_dropout(
    x: Array, key: Array, rate: float, broadcast_dims: tuple[int, ...] = ()
) -> Array:
    """Dropout that keeps mean 0 and variance 1, for networks with `selu`.

    Dropped entries get the lowest value of `selu`; then a fixed scale and shift make up
    for them (https://arxiv.org/abs/1706.02515). Arguments as in `dropout`; at rate 1
    all is 0.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (9999,))
        >>> y = alpha_dropout(x, jax.random.key(1), 0.3)
        >>> bool(abs(y.mean()) < 0.03), bool(abs(y.std() - 1) < 0.03)
        (True, True)
    """
    return x if rate == 0 else _alpha_dropout(x, key, rate, frozen(broadcast_dims))


@compiled(arrays=2)
def _alpha_dropout(
    x: Array, key: Array, rate: float, broadcast_dims: tuple[int, ...]
) -> Array:
    x = _checked(x, rate)
    if rate == 1:
        return jnp.zeros_like(x)
    scale = ((1 - rate) * (1 + rate * _SELU_LOW**2)) ** -0.5
    shift = -scale * _SELU_LOW * rate
    kept = _kept(x, key, rate, broadcast_dims)
    return scale * jnp.where(kept, x, _SELU_LOW) + shift
