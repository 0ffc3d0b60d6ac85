"""`eval_shape`, `make_jaxpr` and `checkify`: what a function would do.

`eval_shape` and `make_jaxpr` change nothing; `checkify` runs the function and says
which of the checks in it failed.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar, overload

import jax
from jax.experimental import checkify as jax_checkify
from jax.extend.core import ClosedJaxpr

from ..core.errors import title_of
from ..core.graph import Putting, Taking
from ..core.interception import current
from ..core.metadata import placed
from ..core.variable import MISSING
from .boundary import Departure, Visit, apply
from .captures import unbound
from .leaves import Constant, given, plain_objects
from .plans import Opened, Plan

P = ParamSpec("P")
R = TypeVar("R")


def eval_shape(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Shapes and dtypes of what a function returns, without computing or changing.

    Args:
      f: a function, Module or class that makes one.
      *args: arrays, `jax.ShapeDtypeStruct`s, objects, or pytrees of them.
      **kwargs: likewise.

    Returns:
      what `f` would return, with ShapeDtypeStructs for arrays; objects are new.

    Example:
      >>> import jax, jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> model.kernel.value
      ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """
    function, own_args, own_kwargs = unbound(f)
    opened = Opened(own_args + args, {**own_kwargs, **kwargs})
    plan = Plan(opened)
    values = plan.gather(opened)
    assert values is not None
    made: list[Taking] = []

    def run(values: Sequence[Any]) -> list[Any]:
        with Visit(title_of("nnx.eval_shape", f), None, opened.plain) as visit:
            dynamic = plan.show(visit, opened, values)
            args, kwargs = opened.arguments(dynamic)
            walk = Taking()
            walk.take(current(function)(*args, **kwargs))
            made.append(walk)
            return walk.values

    shapes = iter(jax.eval_shape(run, values))

    def leaf(record: Any) -> Any:
        shape, metadata = next(shapes), getattr(record, "metadata", {})
        return placed(shape, metadata) if "out_sharding" in metadata else shape

    return Putting(made[0].records, leaf).put()


@overload
def make_jaxpr(f: Callable[P, Any], /, **options: Any) -> Callable[P, ClosedJaxpr]: ...
@overload
def make_jaxpr(
    **options: Any,
) -> Callable[[Callable[P, Any]], Callable[P, ClosedJaxpr]]: ...
def make_jaxpr(  # pyright: ignore[reportInconsistentOverload]
    f: Any = MISSING, *, static_argnums: int | Iterable[int] = ()
) -> Any:
    """A function that gives the jaxpr of what `f` does to given arguments.

    Its inputs are the arrays of the arguments, objects before bare arrays; its outputs
    are the Variables written and the result. Nothing is changed.

    Args:
      f: a function, method or Module; without it, returns a decorator.
      static_argnums: positions of numbers or arrays that are constants.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> jaxpr = nnx.make_jaxpr(lambda model, x: model(x))(model, jnp.ones(2))
      >>> [str(aval) for aval in jaxpr.in_avals]
      ['float32[3]', 'float32[2,3]', 'float32[2]']
    """
    if f is MISSING:
        return functools.partial(make_jaxpr, static_argnums=static_argnums)
    numbers = (static_argnums,) if isinstance(static_argnums, int) else static_argnums
    constant = frozenset(numbers)
    function, own_args, own_kwargs = unbound(f)

    def traced(*args: Any, **kwargs: Any) -> Any:
        chosen = {n % len(args) for n in constant}
        marked = [Constant(x) if n in chosen else x for n, x in enumerate(args)]
        opened = Opened((*own_args, *marked), {**own_kwargs, **kwargs})
        plan = Plan(opened)
        arrays = plan.gather(opened)
        assert arrays is not None

        def run(*values: Any) -> Departure:
            with Visit(title_of("nnx.make_jaxpr", f), None, opened.plain) as visit:
                args, kwargs = opened.arguments(plan.show(visit, opened, values))
                return visit.depart(current(function)(*given(args), **kwargs))

        return jax.make_jaxpr(run)(*arrays)

    return functools.update_wrapper(traced, f, updated=())


def checkify(
    f: Callable[P, R], errors: Any = jax_checkify.user_checks
) -> Callable[P, tuple[jax_checkify.Error, R]]:
    """A function that returns `(error, result)`, after what `f` does to objects.

    Args:
      f: a function, method or Module, with checks (`jax.experimental.checkify.check`).
      errors: which checks, see `jax.experimental.checkify.checkify`.

    Returns:
      the function; `error.throw()` raises if a check failed.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> from jax.experimental import checkify
      >>> scale = nnx.Param(jnp.array(-1.0))
      >>> def root(scale):
      ...     checkify.check(scale.value > 0, "scale must be positive")
      ...     return jnp.sqrt(scale.value)
      >>> error, _ = nnx.checkify(root)(scale)
      >>> error.get().splitlines()[0]
      'scale must be positive (`check` failed)'
    """

    def checked(*args: P.args, **kwargs: P.kwargs) -> Any:
        plain = plain_objects([*args, *kwargs.values()])

        def run() -> Departure:
            with Visit(title_of("nnx.checkify", f), plain=plain) as visit:
                return visit.depart(f(*args, **kwargs))

        error, departure = jax_checkify.checkify(run, errors)()
        return error, apply(departure, plain=plain)

    return functools.update_wrapper(checked, f, updated=())
