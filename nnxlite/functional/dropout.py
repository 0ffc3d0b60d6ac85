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
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"dropout scales its input, which {x.dtype.name} cannot represent: cast it "
            "first, as in x.astype('float32')."
        )
    if not 0 <= rate <= 1:
        raise ValueError(f"The dropout rate must be from 0 to 1; got {rate}.")
    if rate == 1:
        return jnp.zeros_like(x)
    shared = normalize_axis_tuple(broadcast_dims, x.ndim, "broadcast_dims")
    shape = tuple(1 if axis in shared else n for axis, n in enumerate(x.shape))
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, x / (1 - rate), 0)
