"""`jit`: compiled functions over object graphs, and shapes without computing.

A compiled function keeps plans (`plans`) for the objects that it is called with, and
for each structure a program (`programs`). A warm call finds its plan, gathers the
arrays, calls JAX, and writes back what the function wrote.
"""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

import jax

from ..core import interception
from ..core.checks import checks, raise_own
from ..core.errors import HiddenError, title_of
from ..core.frames import NO_TRACE, everywhere, is_outermost, neutral_level
from ..core.statics import static_key
from ..core.variable import MISSING
from ..core.workarounds import get_opaque_trace_state
from .boundary import apply
from .captures import View, goes_stale, unbound
from .leaves import Constant, given
from .plans import Opened, Plan, Plans
from .programs import Program, calls
from .retraces import Trace, differences
from .tracing import eval_shape

P = ParamSpec("P")
R = TypeVar("R")


class Jitted(Generic[P, R]):
    """A compiled function; what `nnx.jit` returns. Also a method of a class."""

    function: Callable[..., Any]

    def __init__(
        self,
        function: Callable[P, R],
        options: Mapping[str, Any] = types.MappingProxyType({}),
        *,
        title: str | None = None,
        stage: Callable[..., Any] = jax.jit,
        in_shardings: Any = None,
        out_shardings: Any = None,
        static_argnums: Any = None,
        static_argnames: Any = None,
        donate: Any = None,
        donate_argnums: Any = None,
        donate_argnames: Any = None,
    ):
        self.function, self._args, self._kwargs = unbound(function)
        functools.update_wrapper(self, function, updated=())
        self.title: str = title or title_of("nnx.jit", function)
        self.options = options
        self.stage = stage
        self.in_shardings = in_shardings
        self.out_shardings = out_shardings
        offset = len(self._args)
        self._static = _argument_names(
            self.function, static_argnums, static_argnames, offset
        )
        if donate not in (None, "state"):
            raise ValueError(f"donate={donate!r}: the only value is 'state'")
        if donate and (donate_argnums is not None or donate_argnames is not None):
            raise ValueError(
                "donate='state' already chooses what to donate: leave donate_argnums "
                "and donate_argnames out"
            )
        self.donates: Any = donate or _argument_names(
            self.function, donate_argnums, donate_argnames, offset
        )
        self._prepares = bool(self._args or self._kwargs or self._static)
        self._plans = Plans(lambda: Program(self))
        self.most_traces: int | None = None
        self._traces: list[Trace] = []
        self._trace_count = 0
        self._view: View | None = None
        self._tokens: dict[Hashable, object] = {}

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Calls the plain function."""
        if self._static:
            args = given(args)
            kwargs = dict(zip(kwargs, given(kwargs.values()), strict=True))
        return interception.current(self.function)(*args, **kwargs)

    def count_trace(self, seen: Trace) -> None:
        """Must be called before each trace, with what it sees.

        Raises:
          RuntimeError: if there are more traces than are allowed.
        """
        self._traces = [*self._traces[-1:], seen]
        self._trace_count += 1
        most = self.most_traces
        if most is not None and self._trace_count > most:
            raise RuntimeError(f"only {most} traces are allowed. {self.explained()}")

    def constants_seen(self) -> dict[str, Hashable]:
        """What the function sees besides objects, by name."""
        view = self._view
        assert view is not None
        around = interception.seen()
        return {
            **{f"the constant {name!r}": key for (_, name), key in view.keys().items()},
            **{f"interceptor {n}": static_key(x) for n, x in enumerate(around)},
        }

    def explained(self) -> str:
        """What changed between the last two traces, as text."""
        text = f"{self.title} was traced {self._trace_count} times."
        if len(self._traces) < 2:
            return text
        lines = differences(*self._traces)
        if not lines:
            lines = ["nothing that the function sees: JAX has dropped its program"]
        return "\n  ".join([f"{text} Between the last two changed:", *lines])

    def sharded_positions(self, count: int) -> list[int]:
        """Of `count` positional arguments those that are the user's and not static."""
        own = range(len(self._args), count)
        return [n for n in own if not {n, n - count} & self._static]

    def _open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opened:
        if self._prepares:
            args, kwargs = self._prepared(args, kwargs)
        view = self._view
        if view is None or not view.is_current():
            ignored = view.ignored if view is not None else frozenset()
            view = self._view = View(self.function, self._tokens, ignored)
        captured, constants = view.look()
        return Opened(args, kwargs, captured, constants, view.ignored)

    def _prepared(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with those that the function brings, static ones marked."""
        args, kwargs = self._args + args, {**self._kwargs, **kwargs}
        static = self._static
        numbered = enumerate(args)
        args = tuple(
            Constant(x) if {n, n - len(args)} & static else x for n, x in numbered
        )
        return args, {k: Constant(x) if k in static else x for k, x in kwargs.items()}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the compiled function; compiles it for arguments of a new structure."""
        opened = self._open(args, kwargs)
        plan, values = self._plans.find(opened)
        program = plan.program
        stack = calls.stack
        stack.append((plan, opened))
        try:
            if everywhere:
                with neutral_level():
                    departure = program(plan, opened, values)
            else:
                departure = program(plan, opened, values)
            if program.has_checks:
                checks.count += 1
                jax.block_until_ready(departure)
        except Exception as error:
            raise_own(error)
            program.explain(error, plan, opened)
            raise
        finally:
            stack.pop()
        if program.was_traced:
            self._ignore_effects(plan, opened)
        if not everywhere:
            record, outputs, result = departure
            cells = plan.cells_of(record)
            if cells is not None:
                if not cells:
                    return result
                if get_opaque_trace_state() == NO_TRACE:
                    for cell, value in zip(cells, outputs, strict=True):
                        cell.value = value
                    return result
        return apply(departure, plan.known(opened), opened.plain)

    def _ignore_effects(self, plan: Plan, opened: Opened) -> None:
        """After a trace: what it changed itself is no constant of the program."""
        plan.program.was_traced = False
        view = self._view
        assert view is not None
        self._view = view.without_effects([(view, opened.constants), *opened.views])
        again = opened.with_view(self._view)
        if again.key != opened.key:
            self._plans.adopt(again, plan)

    @overload
    def __get__(self, instance: None, owner: Any = None) -> "Jitted[P, R]": ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> Callable[..., R]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def _stage(self, verb: str, args: Any, kwargs: Any) -> "Stage":
        opened = self._open(args, kwargs)
        plan, values = self._plans.find(opened)
        calls.stack.append((plan, opened))
        try:
            jitted, *arrays = plan.program.staged(plan, opened, values)
            stage = Stage(getattr(jitted, verb)(*arrays), self, plan.program)
        except Exception as error:
            plan.program.explain(error, plan, opened)
            raise
        finally:
            calls.stack.pop()
        if plan.program.was_traced:
            self._ignore_effects(plan, opened)
        return stage

    def trace(self, *args: P.args, **kwargs: P.kwargs) -> "Stage":
        """Traces for these arguments; see `jax.stages.Traced`."""
        return self._stage("trace", args, kwargs)

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> "Stage":
        """Lowers for these arguments; see `jax.stages.Lowered`."""
        return self._stage("lower", args, kwargs)

    def eval_shape(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Shapes and dtypes of the result; see `nnx.eval_shape`."""
        return eval_shape(self.__wrapped__, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def clear_cache(self) -> None:
        """Forgets all compiled programs."""
        self._plans.clear()

    def __deepcopy__(self, memo: Any) -> "Jitted[P, R]":
        return self  # as functions are

    def __repr__(self) -> str:
        return f"<{self.title}>"


class Stage:
    """A `jax.stages` object (Traced, Lowered or Compiled) over object graphs.

    Attributes and methods are those of the JAX object. A compiled one is called like
    the function, with arguments of the structure it was compiled for, and updates
    their objects.
    """

    def __init__(self, stage: Any, owner: Jitted[Any, Any], program: Program):
        self._stage = stage
        self._owner = owner
        self._program = program

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def lower(self, *args: Any, **kwargs: Any) -> "Stage":
        """Lowers a traced function."""
        return Stage(self._stage.lower(*args, **kwargs), self._owner, self._program)

    def compile(self, *args: Any, **kwargs: Any) -> "Stage":
        """Compiles a lowered function."""
        stage = self._stage.compile(*args, **kwargs)
        return Stage(stage, self._owner, self._program)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls a compiled function."""
        opened = self._owner._open(args, kwargs)
        plan, values = self._owner._plans.find(opened)
        if plan.program is not self._program:
            raise TypeError(
                f"{self._owner.title} was compiled for arguments of another "
                "structure: other classes, attributes, static values, metadata or "
                "sharing. Call the jitted function itself, or lower and compile it "
                "for these arguments"
            )
        _, *arrays = plan.program.staged(plan, opened, values)
        departure = self._stage(*arrays)
        return apply(departure, plan.known(opened), opened.plain)


def _argument_names(
    function: Callable[..., Any], numbers: Any, names: Any, offset: int
) -> frozenset[int | str]:
    """Positions and names of the arguments that either of the two declares."""
    numbers = () if numbers is None else numbers
    names = () if names is None else names
    numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    names = (names,) if isinstance(names, str) else tuple(names)
    if not numbers and not names:
        return frozenset()
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [
        p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    found: set[int | str] = set(names)
    for number in numbers:
        if number >= 0:
            number += offset
        elif not takes_more:
            number += len(positional)
        found.add(number)
        if 0 <= number < len(positional):
            found.add(positional[number])
    found |= {positional.index(name) for name in names if name in positional}
    unknown = [name for name in names if name not in [p.name for p in parameters]]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if parameters and unknown and not takes_any:
        raise ValueError(
            f"{getattr(function, '__name__', function)} has no argument "
            f"{unknown[0]!r}, only {[p.name for p in parameters]}"
        )
    return frozenset(found)


@overload
def jit(fun: Callable[P, R], /, **options: Any) -> Jitted[P, R]: ...
@overload
def jit(**options: Any) -> Callable[[Callable[P, R]], Jitted[P, R]]: ...
def jit(  # pyright: ignore[reportInconsistentOverload]
    fun: Any = MISSING,
    *,
    in_shardings: Any = None,
    out_shardings: Any = None,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate: str | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    keep_unused: bool = False,
    device: Any = None,
    backend: str | None = None,
    inline: bool = False,
) -> Any:
    """Compiles a function of arrays and objects with `jax.jit`.

    The compiled function does what the function does: it changes the same objects,
    returns the same ones, and sees what the function captures as it is at each call.
    If it raises, nothing has changed. Strings, functions, dtypes and other values that
    are no arrays are static without being declared; numbers and bools are traced, as
    in `jax.jit`, unless `static_argnums` or `static_argnames` says otherwise.

    Constants that the function sees are compared at each call, and arguments of user
    classes that hold Modules, Variables or arrays are looked into. Other objects
    compare by `==`, or by identity where their class defines none: a change inside them
    is not seen. A static value that changes at every call compiles at every call.

    Args:
      fun: a function, bound method or Module; without it, returns a decorator.
      in_shardings: see `jax.jit`; a `StateSharding` may stand for an object.
      out_shardings: likewise; the result is constrained to it.
      static_argnums: positions of numbers or arrays to treat as constants.
      static_argnames: names of such arguments.
      donate: "state" gives the buffers of all Variables that the function overwrites
        to the results, so that a step needs no second copy of them; what somebody else
        holds, such as a clone, is copied first.
      donate_argnums: positions of arguments whose buffers are given away.
      donate_argnames: names of such arguments.
      keep_unused: see `jax.jit`, as are `device`, `backend` and `inline`.
      device: where to run.
      backend: which platform to run on.
      inline: whether to inline into an enclosing program.

    Returns:
      the compiled function, with `trace`, `lower`, `eval_shape` and `clear_cache`.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> @nnx.jit
      ... def double(model):
      ...     model.kernel *= 2
      ...     return model(jnp.ones(2)).shape
      >>> before = model.kernel.sum()
      >>> double(model), bool(jnp.allclose(model.kernel.sum(), 2 * before))
      ((3,), True)
    """
    if fun is MISSING:
        given = {k: v for k, v in locals().items() if k != "fun"}
        return lambda fun: jit(fun, **given)
    if not callable(fun):
        raise TypeError(f"nnx.jit needs a callable, got {fun!r}")
    options: dict[str, Any] = {"keep_unused": keep_unused, "inline": inline}
    if device is not None:
        options["device"] = device
    if backend is not None:
        options["backend"] = backend
    return Jitted(
        fun,
        options,
        in_shardings=in_shardings,
        out_shardings=out_shardings,
        static_argnums=static_argnums,
        static_argnames=static_argnames,
        donate=donate,
        donate_argnums=donate_argnums,
        donate_argnames=donate_argnames,
    )


def compiled_at_top(transform: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for transforms that JAX would trace anew at every call.

    Outside all transforms the function is compiled, so that equal calls trace once.
    Inside one it is called as it is, and so it is where a program could go stale (see
    `goes_stale`), or where a function reaches objects that it does not visibly see.

    Args:
      transform: what error messages call it.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        compiled = Jitted(function, title=transform)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if is_outermost() and not goes_stale((args, kwargs)):
                with contextlib.suppress(HiddenError):
                    return compiled(*args, **kwargs)
            return function(*args, **kwargs)

        return call

    return decorate


def jit_partial(fun: Callable[..., R], *partial_args: Any, **options: Any) -> Any:
    """`functools.partial` of a compiled function: kept for Flax's name.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx.jit_partial(lambda model, x: model(x), model)(jnp.ones(2)).shape
      (3,)
    """
    return functools.partial(jit(fun, **options), *partial_args)


def cached_partial(f: Callable[..., R], *cached_args: Any) -> Callable[..., R]:
    """`functools.partial`: kept for Flax's name, since every call is cached.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx.cached_partial(nnx.jit(lambda m, x: m(x)), model)(jnp.ones(2)).shape
      (3,)
    """
    return functools.partial(f, *cached_args)
