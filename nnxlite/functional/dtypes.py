"""Dtypes: a layer computes in its `dtype`, or where that is None in the type to which
JAX promotes inputs and parameters together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

PromoteDtype = Callable[..., Sequence[Any]]


def canonicalize_dtype(
    *args: ArrayLike | None, dtype: DTypeLike | None = None, inexact: bool = True
) -> jnp.dtype:
    """The type in which to compute with `args`, of which None is skipped.

    It is `dtype` or else `jax.numpy.result_type` of the arguments. With `inexact` it is
    floating or complex: integers promote to float32.

    Raises:
        ValueError: if `inexact` and `dtype` is an integer or bool type.

    Example:
        >>> canonicalize_dtype(jnp.ones(2, jnp.bfloat16), 1.0, None)
        dtype(bfloat16)
    """
    if dtype is None:
        dtype = jnp.result_type(*(jnp.asarray(x) for x in args if x is not None))
        if inexact and not jnp.issubdtype(dtype, jnp.inexact):
            dtype = jnp.promote_types(jnp.float32, dtype)
    if inexact and not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            f"Dtype must be inexact: got {jnp.dtype(dtype).name}. Compute in a floating"
            " type, as in dtype=jnp.float32, and cast the result."
        )
    return jnp.dtype(dtype)


def promote_dtype(
    args: Sequence[Any], *, dtype: DTypeLike | None = None, inexact: bool = True
) -> tuple[Any, ...]:
    """`args` cast to their `canonicalize_dtype`; None stays None.

    Example:
        >>> promote_dtype((jnp.arange(2), None))
        (Array([0., 1.], dtype=float32), None)
    """
    dtype = canonicalize_dtype(*args, dtype=dtype, inexact=inexact)
    return tuple(None if x is None else jnp.asarray(x, dtype) for x in args)
