"""Finding out what goes wrong: retraces, NaNs, values that must not be.

Also reachable as `nnx.debug`.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core import frames
from ..core.arrays import is_array
from ..core.checks import checks, failures
from ..core.filters import Filter
from ..core.interception import Call
from ..core.paths import format_path
from ..transforms.compilation import Jitted
from .interception import intercept

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def assert_max_traces(function: F, most: int) -> F:
    """Has a function raise an error when it is traced, or called, more often than this.

    Args:
      function: what `nnx.jit` returned: the error then says what has changed. Or a
        plain function, to be compiled afterwards.
      most: how many traces are allowed, counted from the beginning.

    Returns:
      the function, which raises a RuntimeError before it changes anything.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> step = nnx.debug.assert_max_traces(nnx.jit(lambda x: x + 1), 1)
      >>> y = step(jnp.ones(2))
      >>> try:
      ...     step(jnp.ones(3))
      ... except RuntimeError as error:
      ...     print('float32[2]' in str(error), 'float32[3]' in str(error))
      True True
    """
    if isinstance(function, Jitted):
        function.most_traces = most
        return function  # pyright: ignore[reportReturnType]
    count = 0

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        if count >= most:
            raise RuntimeError(
                f"{getattr(function, '__name__', function)!r} is traced more than "
                f"{most} times; nnx.debug.explain_retrace(jitted) says why"
            )
        count += 1
        return function(*args, **kwargs)

    return counted  # pyright: ignore[reportReturnType]


def explain_retrace(function: Any) -> str:
    """Says what changed between the last two traces of a compiled function.

    Args:
      function: what `nnx.jit` returned.

    Raises:
      TypeError: for anything else.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> step = nnx.jit(lambda model, x, mode: model(x))
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> y = step(model, jnp.ones(2), 'a'), step(model, jnp.ones((4, 2)), 'b')
      >>> print(nnx.debug.explain_retrace(step))
      nnx.jit of '<lambda>' was traced 2 times. Between the last two changed:
        mode: 'a' -> 'b'
        x: float32[2] -> float32[4,2]
    """
    if not isinstance(function, Jitted):
        raise TypeError(
            "nnx.debug.explain_retrace needs what nnx.jit returned, and got a "
            f"{type(function).__name__}"
        )
    return function.explained()


def check_nans(only: Filter = ...) -> contextlib.AbstractContextManager[None]:
    """A context in which the first Module that makes a NaN or inf raises an error.

    Eagerly and in compiled functions; these are compiled anew. What is called with a
    NaN is not blamed for it.

    Args:
      only: which Modules.

    Raises:
      FloatingPointError: inside, with the path.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
      >>> model.layers[0].bias[...] = jnp.nan
      >>> try:
      ...     with nnx.debug.check_nans():
      ...         y = model(jnp.ones(1))
      ... except FloatingPointError as error:
      ...     print(error)
      Linear 'layers[0]' returns NaN or inf
    """
    return intercept(_check_output, only=only)


def _check_output(next: Any, args: Any, kwargs: Any, call: Call) -> Any:
    was_bad = _any_bad((args, kwargs))
    result = next(*args, **kwargs)
    method = "" if call.method_name == "__call__" else f".{call.method_name}"
    where = f"{type(call.module).__name__} {format_path(call.path)!r}{method}"
    bad = _any_bad(result) & ~was_bad
    return error_if(result, bad, f"{where} returns NaN or inf", FloatingPointError)


def _any_bad(tree: Any) -> Any:
    leaves = [x for x in jax.tree.leaves(tree) if is_array(x)]
    bad = [
        ~jnp.isfinite(x).all() for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return functools.reduce(jnp.logical_or, bad, jnp.zeros((), bool))


def error_if(x: T, pred: Any, message: str, kind: type[Exception] = ValueError) -> T:
    """Returns `x`, but raises an error if a condition holds; also in compiled code.

    A function of `nnx.jit` that has such a check is waited for at every call, so that
    the call raises the error, before it changes anything. Under plain `jax.jit` the
    error comes when the result is waited for, inside of one that JAX makes of it.

    Args:
      x: an array or a pytree of them; go on with what is returned, since a check of
        what nobody uses is dropped from compiled code.
      pred: a bool or an array of bools; any True is an error.
      message: the text of the error.
      kind: its class.

    Raises:
      ValueError: with the message.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> root = nnx.jit(lambda x: jnp.sqrt(nnx.error_if(x, x < 0, 'x is negative')))
      >>> root(jnp.array(4.0)).item()
      2.0
    """

    is_bad = jnp.any(jax.lax.stop_gradient(pred))
    if not isinstance(is_bad, Tracer):
        if is_bad:
            raise kind(message)
        return x

    def check(is_bad: Any) -> Any:
        if np.any(is_bad):
            failures.append(kind(message))
            del failures[:-8]
            raise failures[-1]
        return ~np.asarray(is_bad)

    checks.count += 1
    frame = frames.current()
    if frame is not None:  # what JAX traces here is not to be found again uncounted
        frame.is_cached = True
    shape = jax.ShapeDtypeStruct((), bool)
    good = jax.pure_callback(check, shape, is_bad, vmap_method="expand_dims")

    def checked(leaf: Any) -> Any:  # XLA does not know that it is always `leaf`
        return jnp.where(good, leaf, jnp.zeros_like(leaf)) if is_array(leaf) else leaf

    return jax.tree.map(checked, x)
