"""`jit`: compiled functions over object graphs, and shapes without computing.

A compiled function keeps plans (`plans`) for the objects that it is called with, and
for each structure a *program*, one `jax.jit` over flat lists of arrays. A warm call
finds its plan, gathers the arrays, calls JAX, and writes back what the function wrote.
"""

import functools
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state, jaxpr_as_fun

from ..core.frames import NO_TRACE, Frame, everywhere
from ..core.graph import Putting, Taking
from ..core.metadata import placed
from ..core.module import key_of
from ..core.statics import static_key
from ..core.variable import MISSING, Variable
from .boundary import Departure, Visit, apply
from .captures import View, unbound
from .leaves import DYNAMIC, flatten, flatten_with_path, kind_of
from .plans import Input, Opened, Plan, Plans
from .prefixes import label_of

P = ParamSpec("P")
R = TypeVar("R")


class _Calls(threading.local):
    """The calls of this thread that may be tracing, innermost last."""

    def __init__(self) -> None:
        self.stack: list[tuple[Plan, Opened]] = []


_calls = _Calls()


class Constant:
    """An argument declared static: equal constants stand for one program."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and (
            static_key(other.value) == static_key(self.value)
        )

    def __hash__(self) -> int:
        return hash(static_key(self.value))


class Program:
    """The compiled function of one structure.

    Its arrays come in two lists, those to keep and those to donate.

    Attributes:
      donated: for each gathered array whether it is donated; None if none is.
      renewed: for each gathered array whether it must come out, changed or not,
        because its buffer is given away.
      shardings: for each gathered array its sharding; None if none is given.
    """

    def __init__(self, owner: "Jitted[Any, Any]"):
        self.owner = owner
        self.donated: Sequence[bool] | None = None
        self.renewed: Sequence[bool] | None = None
        self.shardings: Sequence[Any] | None = None
        self.jitted: Any = None
        self.was_traced = False
        self._traced: Any = None

    def staged(self, plan: Plan, opened: Opened, values: list[Any]) -> tuple[Any, ...]:
        """The `jax.jit`, built at the first call, and its arguments for this call."""
        if self.jitted is None:
            self._build(plan, opened, values)
        if self.donated is None:
            return self.jitted, values
        values = _each_buffer_once(values, self.donated)
        return self.jitted, *_parted(values, self.donated)

    def _build(self, plan: Plan, opened: Opened, values: list[Any]) -> None:
        owner = self.owner
        options: dict[str, Any] = dict(owner.options)
        if owner.donates or owner.in_shardings is not None:
            inputs = plan.inputs(opened)
        else:
            inputs = []
        if owner.in_shardings is not None:
            self.shardings = [_input_sharding(owner.in_shardings, x) for x in inputs]
            options["in_shardings"] = (self.shardings,)
        if owner.donates:
            self._choose_donated(plan, opened, values, inputs, options)
        if self.donated is not None:
            options["donate_argnums"] = (1,)
            if self.shardings is not None:
                options["in_shardings"] = _parted(self.shardings, self.donated)
        self.jitted = jax.jit(self.run, **options)

    def _choose_donated(
        self,
        plan: Plan,
        opened: Opened,
        values: list[Any],
        inputs: Sequence[Input],
        options: Mapping[str, Any],
    ) -> None:
        """Traces once to learn what comes out; the trace is used again.

        A buffer is donated if the function overwrites it (or its argument is named),
        and if a result has its shape and dtype, so that it can be used again.
        """
        if self.owner.donates == "state":
            traced = jax.jit(self.run, **options).trace(values)
            known = plan.known(opened)
            written = {id(known[n]) for n in _record_in(traced.out_info).written}
            wanted = [id(x.leaf) in written for x in inputs]
        else:
            arrays = len(inputs) - len(opened.dynamic)
            wanted = [
                x.argument in self.owner.donates
                and (isinstance(x.leaf, Variable) or number >= arrays)
                for number, x in enumerate(inputs)
            ]
            self.renewed = wanted
            traced = jax.jit(self.run, **options).trace(values)
        results = jax.tree.leaves(traced.out_info)
        free = Counter((x.shape, x.dtype) for x in results)
        donated: list[bool] = []
        for value, is_wanted in zip(values, wanted, strict=True):
            kind = (jnp.shape(value), jnp.result_type(value))
            donated.append(is_wanted and free[kind] > 0)
            free[kind] -= donated[-1]
        if any(donated):
            self.donated = self.renewed = donated
            self._traced = traced

    def run(self, kept: Sequence[Any], donated: Sequence[Any] = ()) -> Departure:
        """What JAX traces."""
        values = kept
        if self.donated is not None:
            rest = {False: iter(kept), True: iter(donated)}
            values = [next(rest[is_donated]) for is_donated in self.donated]
        if self._traced is not None:
            traced, self._traced = self._traced, None
            if [jax.typeof(x) for x in values] == list(traced.jaxpr.in_avals):
                results = jaxpr_as_fun(traced.jaxpr)(*values)
                return jax.tree.unflatten(jax.tree.structure(traced.out_info), results)
        self.was_traced = True
        plan, opened = _calls.stack[-1]
        known = plan.known(opened)
        needs_inputs = self.renewed is not None or self.shardings is not None
        inputs = plan.inputs(opened) if needs_inputs else []
        with Visit(self.owner.description, known, opened.plain) as visit:
            dynamic = plan.show(visit, opened, values)
            args, kwargs = opened.arguments(dynamic)
            result = self.owner.call(args, kwargs)
            if self.owner.out_shardings is not None:
                result = _sharded(result, self.owner.out_shardings)
            self._settle(visit.frame, inputs)
            return visit.depart(result)

    def _settle(self, frame: Frame, inputs: Sequence[Input]) -> None:
        """Renews what is donated, and keeps written Variables in their sharding."""
        for number, source in enumerate(inputs):
            variable = source.leaf
            if not isinstance(variable, Variable):
                continue
            if self.renewed is not None and self.renewed[number]:
                frame.written.setdefault(variable)
            sharding = self.shardings[number] if self.shardings else None
            if sharding is not None and variable in frame.written:
                value = frame.values[variable]
                value = jax.lax.with_sharding_constraint(value, sharding)
                frame.values[variable] = value


def _parted(values: Iterable[Any], donated: Iterable[bool]) -> tuple[list[Any], ...]:
    parts: tuple[list[Any], list[Any]] = ([], [])
    for value, is_donated in zip(values, donated, strict=True):
        parts[is_donated].append(value)
    return parts


def _each_buffer_once(values: list[Any], donated: Sequence[bool]) -> list[Any]:
    """Copies a donated array that is passed a second time: XLA would refuse it."""
    if len(set(map(id, values))) == len(values):
        return values
    counts: dict[int, int] = {}
    for value in values:
        counts[id(value)] = counts.get(id(value), 0) + 1
    return [
        jnp.copy(value) if is_donated and counts[id(value)] > 1 else value
        for value, is_donated in zip(values, donated, strict=True)
    ]


def _record_in(out_info: Any) -> Any:
    is_departure = functools.partial(_is_instance, Departure)
    return jax.tree.leaves(out_info, is_leaf=is_departure)[0].record


def _is_instance(cls: type, value: Any) -> bool:
    return isinstance(value, cls)


def _input_sharding(shardings: Any, source: Input) -> Any:
    if not isinstance(source.argument, int):
        return None
    if isinstance(shardings, tuple) and type(shardings) is tuple:
        shardings = shardings[source.argument]
    return label_of(shardings, source.path, source.leaf)


def _sharded(result: Any, shardings: Any) -> Any:
    """Constrains the arrays of a result to their shardings."""

    def constrain(path: tuple[Any, ...], leaf: Any) -> Any:
        if kind_of(leaf) == DYNAMIC:
            sharding = label_of(shardings, path, leaf)
            if sharding is None:
                return leaf
            return jax.lax.with_sharding_constraint(leaf, sharding)
        walk = Taking()
        walk.take(leaf)
        for below, inner in zip(walk.paths, walk.leaves, strict=True):
            if isinstance(inner, Variable):
                sharding = label_of(shardings, (*path, *below), inner)
                if sharding is not None:
                    value = jax.lax.with_sharding_constraint(inner.raw_value, sharding)
                    inner.raw_value = value
        return leaf

    leaves, treedef = flatten(result)
    paths = [tuple(map(key_of, keys)) for keys, _ in flatten_with_path(treedef, leaves)]
    return treedef.unflatten(
        [constrain(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
    )


class Jitted(Generic[P, R]):
    """A compiled function; what `nnx.jit` returns. Also a method of a class."""

    def __init__(
        self,
        function: Callable[P, R],
        options: Mapping[str, Any],
        *,
        in_shardings: Any,
        out_shardings: Any,
        static_argnums: Any,
        static_argnames: Any,
        donate: Any,
        donate_argnums: Any,
        donate_argnames: Any,
    ):
        self.function, self._args, self._kwargs = unbound(function)
        functools.update_wrapper(self, function, updated=())
        name = getattr(function, "__name__", type(function).__name__)
        self.description = f"nnx.jit of '{name}'"
        self.options = options
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
        self._brings = bool(self._args or self._kwargs)
        self._plans = Plans(lambda: Program(self))
        self._view: View | None = None
        self._tokens: dict[Hashable, object] = {}

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Calls the plain function."""
        if self._static:
            args = [x.value if isinstance(x, Constant) else x for x in args]
            kwargs = {
                k: x.value if isinstance(x, Constant) else x for k, x in kwargs.items()
            }
        return self.function(*args, **kwargs)

    def _open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opened:
        if self._brings:
            args, kwargs = self._args + args, {**self._kwargs, **kwargs}
        if self._static:
            args = tuple(
                Constant(x) if {n, n - len(args)} & self._static else x
                for n, x in enumerate(args)
            )
            kwargs = {
                k: Constant(x) if k in self._static else x for k, x in kwargs.items()
            }
        view = self._view
        if view is None or not view.is_current():
            ignored = view.ignored if view is not None else frozenset()
            view = self._view = View(self.function, self._tokens, ignored)
        return Opened((args, kwargs), *view.look())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        opened = self._open(args, kwargs)
        plan, values = self._plans.find(opened)
        stack = _calls.stack
        stack.append((plan, opened))
        try:
            jitted, *arrays = plan.program.staged(plan, opened, values)
            departure = jitted(*arrays)
        finally:
            stack.pop()
        if plan.program.was_traced:
            self._ignore_effects(plan, opened)
        record = departure.record
        if not everywhere:
            cells = plan.cells_of(record)
            if cells is not None and (
                not cells or get_opaque_trace_state() == NO_TRACE
            ):
                for cell, value in zip(cells, departure.values, strict=True):
                    cell.value = value
                return departure.result
        return apply(departure, plan.known(opened), opened.plain)

    def _ignore_effects(self, plan: Plan, opened: Opened) -> None:
        """After a trace: what it changed itself is no constant of the program."""
        plan.program.was_traced = False
        view = self._view
        assert view is not None
        self._view = view.without_effects(opened.constants)
        again = opened.with_view(*self._view.look())
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
        _calls.stack.append((plan, opened))
        try:
            jitted, *arrays = plan.program.staged(plan, opened, values)
            stage = Stage(getattr(jitted, verb)(*arrays), self, plan.program)
        finally:
            _calls.stack.pop()
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
        return f"<{self.description}>"


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
                f"{self._owner.description} was compiled for arguments of another "
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
    are no arrays are static without being declared.

    Args:
      fun: a function, bound method or Module; without it, returns a decorator.
      in_shardings: see `jax.jit`; a `StateSharding` may stand for an object.
      out_shardings: likewise; the result is constrained to it.
      static_argnums: positions of numbers or arrays to treat as constants.
      static_argnames: names of such arguments.
      donate: "state" gives the buffers of all Variables that the function overwrites
        to the results, so that a step needs no second copy of them.
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
    opened = Opened((own_args + args, {**own_kwargs, **kwargs}), (), None)
    plan = Plan(opened)
    values = plan.gather(opened)
    assert values is not None
    made: list[Taking] = []

    def run(values: Sequence[Any]) -> list[Any]:
        name = getattr(f, "__name__", type(f).__name__)
        with Visit(f"nnx.eval_shape of '{name}'", None, opened.plain) as visit:
            dynamic = plan.show(visit, opened, values)
            args, kwargs = opened.arguments(dynamic)
            walk = Taking()
            walk.take(function(*args, **kwargs))
            made.append(walk)
            return [x.raw_value if isinstance(x, Variable) else x for x in walk.leaves]

    shapes = iter(jax.eval_shape(run, values))

    def leaf(record: Any) -> Any:
        shape, metadata = next(shapes), getattr(record, "metadata", {})
        return placed(shape, metadata) if "out_sharding" in metadata else shape

    return Putting(made[0].records, leaf).put()
