"""Where JAX offers no public way: each with the version seen and what would end it."""

from collections.abc import Callable
from typing import Any


def let_lax_take(cls: type, value_of: Callable[[Any], Any]) -> None:
    """Lets functions of `jax.lax` take instances of `cls` for their values.

    JAX stopped to ask `__jax_array__` there (0.8) and its error does not say what to
    do instead. Ends when JAX asks again; without the private hook its error stays.
    """
    try:
        from jax._src import dtypes  # noqa: PLC0415
    except ImportError:
        return
    register = getattr(dtypes, "register_canonicalize_value_handler", None)
    if register is None:
        handlers = getattr(dtypes, "canonicalize_value_handlers", {})
        handlers[cls] = value_of
    else:
        register(cls, value_of)
