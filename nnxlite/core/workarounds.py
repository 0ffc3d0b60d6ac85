"""Where JAX offers no public way: each with the version seen and what would end it."""

import copyreg
import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.extend.core

# The trace that is under way, for comparison only. jax 0.9 has it in jax.core; ends
# when 0.10 is the oldest supported version.
get_opaque_trace_state: Callable[[], Any] = getattr(
    jax.extend.core, "get_opaque_trace_state", None
) or getattr(jax.core, "get_opaque_trace_state")  # noqa: B009


def let_jax_name_lines_of_users() -> None:
    """Has JAX skip this package, as it skips itself, when it says where a value arose.

    So errors about tracers, programs and profiles name the line that calls a layer, not
    one in the layer. Ends when there is a public way (0.12); without, they name ours.
    """
    try:
        from jax._src import source_info_util  # noqa: PLC0415
    except ImportError:
        return
    skip = getattr(source_info_util, "register_exclusion", lambda path: None)
    skip(f"{Path(__file__).parents[1]}{os.sep}")


let_jax_name_lines_of_users()


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


def let_callbacks_raise(known: Sequence[Exception]) -> None:
    """Has JAX not log the errors in `known` when a callback raises them.

    JAX (seen with 0.10) logs with a traceback what a callback raises, and raises it
    too. Ends when it only raises; if the logger has another name, there is more text.
    """

    def is_news(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not any(error is one for one in known)

    logging.getLogger("jax._src.callback").addFilter(is_news)


def is_tracing_a_program() -> bool:
    """True under jit, scan, cond or checkpoint, whose traces JAX keeps; not vmap, grad.

    In doubt (the function is gone, or vmap is inside jit) it says True, which costs
    tracing time and no wrong result. Ends when JAX has a public name for it (0.10).
    """
    ask = getattr(jax.extend.core, "unsafe_am_i_under_a_jit_DO_NOT_USE", None)
    return ask is None or bool(ask())


def _reduced_to_its_name(function: Any) -> Any:
    name, module = function.__qualname__, sys.modules.get(function.__module__)
    try:
        found = functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        found = None
    return name if found is function else function.__reduce_ex__(4)


def let_functions_be_pickled() -> None:
    """Lets `pickle` and `copy` take functions made by `jax.jit` by their names.

    A model that holds `jax.nn.relu` or `jnp.tanh` could not be pickled otherwise: JAX
    pickles the plain function inside, which has the same name and is not found by it
    (jax 0.10). Ends when `pickle.dumps(jax.nn.relu)` works.
    """
    for kind in (type(jax.jit(lambda: None)), jax.custom_jvp, jax.custom_vjp):
        copyreg.pickle(kind, _reduced_to_its_name)


let_functions_be_pickled()
