"""Programs: the compiled function of one structure of arguments.

A program is one `jax.jit` over flat lists of arrays. When JAX traces it, the plan and
the arguments of the call that is under way say which objects the arrays belong to.
"""

import functools
import inspect
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import jaxpr_as_fun

from ..core.checks import checks
from ..core.errors import name_of
from ..core.frames import Frame
from ..core.graph import Taking
from ..core.module import key_of
from ..core.paths import format_path
from ..core.statics import static_key
from ..core.variable import Variable
from .boundary import Departure, Visit
from .captures import positional_parameters
from .leaves import (
    DYNAMIC,
    NODE,
    PLAIN,
    VARIABLE,
    Constant,
    flatten,
    flatten_with_path,
    kind_of,
)
from .plans import Input, Opened, Plan
from .prefixes import label_of, object_labels
from .retraces import Trace


class Calls(threading.local):
    """The calls of this thread that may be tracing, innermost last."""

    def __init__(self) -> None:
        self.stack: list[tuple[Plan, Opened]] = []


calls: Calls = Calls()


class Program:
    """The compiled function of one structure.

    Its arrays come in two lists, those to keep and those to donate.

    Attributes:
      donated: for each gathered array whether it is donated; None if none is.
      renewed: for each gathered array whether it must come out, changed or not,
        because its buffer is given away.
      shardings: for each gathered array its sharding; None if none is given.
      was_traced: whether JAX has traced it since this was last looked at.
      has_checks: whether a call must wait for what may fail in it.
    """

    def __init__(self, owner: Any):
        self.owner = owner
        self.donated: Sequence[bool] | None = None
        self.renewed: Sequence[bool] | None = None
        self.shardings: Sequence[Any] | None = None
        self.jitted: Any = None
        self.was_traced: bool = False
        self.has_checks: bool = False
        self._traced: Any = None

    def __call__(self, plan: Plan, opened: Opened, values: list[Any]) -> Departure:
        """Runs the program."""
        if self.jitted is not None and self.donated is None:
            return self.jitted(values)
        jitted, *arrays = self.staged(plan, opened, values)
        return jitted(*arrays)

    def staged(self, plan: Plan, opened: Opened, values: list[Any]) -> tuple[Any, ...]:
        """The `jax.jit`, built at the first call, and its arguments for this call."""
        if self.jitted is None:
            self._build(plan, opened, values)
        if self.donated is None:
            return self.jitted, values
        # a buffer that two Variables hold is one that somebody else holds, too
        spared = _unless_held if self.owner.donates == "state" else _each_buffer_once
        values = spared(values, self.donated)
        return self.jitted, *_parted(values, self.donated)

    def _build(self, plan: Plan, opened: Opened, values: list[Any]) -> None:
        owner = self.owner
        options: dict[str, Any] = dict(owner.options)
        if owner.donates or owner.in_shardings is not None:
            inputs = plan.inputs(opened)
        else:
            inputs = []
        if owner.in_shardings is not None:
            self.shardings = _input_shardings(owner, opened, inputs)
            options["in_shardings"] = (self.shardings,)
        if owner.donates:
            self._choose_donated(plan, opened, values, inputs, options)
        if self.donated is not None:
            options["donate_argnums"] = (1,)
            if self.shardings is not None:
                options["in_shardings"] = _parted(self.shardings, self.donated)
        self.jitted = owner.stage(self._named(), **options)

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
            traced = jax.jit(self._named(), **options).trace(values)
            known = plan.known(opened)
            record, *_ = traced.out_info
            written = {id(known[n]) for n in record.written}
            wanted = [id(x.leaf) in written for x in inputs]
        else:
            arrays = len(inputs) - len(opened.dynamic)
            wanted = [
                x.argument in self.owner.donates
                and (isinstance(x.leaf, Variable) or number >= arrays)
                for number, x in enumerate(inputs)
            ]
            self.renewed = wanted
            traced = jax.jit(self._named(), **options).trace(values)
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

    def _named(self) -> Any:
        """`run` under the user's name, for errors, profiles and HLO."""

        def run(kept: Sequence[Any], donated: Sequence[Any] = ()) -> Departure:
            return self.run(kept, donated)

        signature = inspect.signature(run)
        functools.update_wrapper(run, self.owner.function, updated=())
        run.__signature__ = signature
        return run

    def explain(self, error: Exception, plan: Plan, opened: Opened) -> None:
        """Puts the user's names into an error of JAX that speaks of our lists."""

        def place(found: re.Match[str]) -> str:
            number = int(found[2])
            if self.donated is not None:
                own = [
                    n for n, x in enumerate(self.donated) if x == (found[1] != "kept")
                ]
                number = own[number]
            source = plan.inputs(opened)[number]
            if source.argument is None:
                return name_of(source.leaf)
            return format_path(source.path, root=self._parameter(source.argument))

        gone = []
        if isinstance(error, (ValueError, RuntimeError)) and "deleted" in str(error):
            gone = [x.leaf for x in plan.inputs(opened) if _is_gone(x.leaf)]
        if gone:
            names = ", ".join(name_of(variable) for variable in gone[:5])
            error.args = (
                f"{len(gone)} values are gone, of {names}: an earlier call was given "
                "their memory (it donates). Copy what shall outlive such a call by "
                "nnx.clone(model, arrays=True)",
            )
        text = str(error.args[0]) if error.args else ""
        if re.search(r"\bvalues? of the arguments? ", text):  # JAX: it depends on these
            text = re.sub(r"\b(kept|donated)\[(\d+)\]", place, text)
            error.args = (text, *error.args[1:])

    def _parameter(self, argument: int | str) -> str:
        if isinstance(argument, str):
            return argument
        names = positional_parameters(self.owner.function)
        return names[argument] if argument < len(names) else f"args[{argument}]"

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
        checks_before = checks.count
        plan, opened = calls.stack[-1]
        self.owner.count_trace(self._seen(plan, opened, values))
        known = plan.known(opened)
        needs_inputs = self.renewed is not None or self.shardings is not None
        inputs = plan.inputs(opened) if needs_inputs else []
        with Visit(self.owner.title, known, opened.plain) as visit:
            dynamic = plan.show(visit, opened, values)
            args, kwargs = opened.arguments(dynamic)
            result = self.owner.call(args, kwargs)
            if self.owner.out_shardings is not None:
                result = _sharded(result, self.owner.out_shardings)
            self._settle(visit.frame, inputs)
            self.has_checks |= checks.count > checks_before
            return visit.depart(result)

    def _seen(self, plan: Plan, opened: Opened, values: Sequence[Any]) -> Trace:
        """What this trace depends on: what a later one is compared with."""
        below = len(values) - len(opened.dynamic)
        rest, arguments = iter(values[below:]), {}
        names: dict[int, str] = {}
        for (_, *keys), leaf in flatten_with_path((opened.args, opened.kwargs)):
            argument, *path = map(key_of, keys)
            name = format_path(tuple(path), root=self._parameter(argument))
            kind = kind_of(leaf)
            if kind == DYNAMIC:
                arguments[name] = jax.typeof(next(rest))
            elif kind in (NODE, VARIABLE):
                names[id(leaf)] = name
            elif kind != PLAIN:
                value = leaf.value if isinstance(leaf, Constant) else leaf
                arguments[name] = static_key(value)
        objects = [*opened.nodes, *(opened.loose[index] for index in plan.own)]
        roots = [
            names.get(id(x), f"{type(x).__name__} {number} that it sees")
            for number, x in enumerate(objects)
        ]
        _, records, _, odd, _ = plan.structure
        shapes = [jax.typeof(x) for x in values[:below]]
        constants = self.owner.constants_seen()
        return Trace(arguments, roots, records, odd, shapes, constants)

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


def _is_gone(leaf: Any) -> bool:
    value: Any = leaf.raw_value if isinstance(leaf, Variable) else None
    is_array = isinstance(value, jax.Array) and not isinstance(value, Tracer)
    return is_array and value.is_deleted()


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


def _holders(values: Sequence[Any]) -> list[int]:
    """How many references there are to each value."""
    return [sys.getrefcount(value) for value in values]


def _unless_held(values: list[Any], donated: Sequence[bool]) -> list[Any]:
    """Copies a donated array that somebody else holds too, such as a clone."""
    return [
        jnp.copy(value) if is_donated and count > _HELD_ONCE else value
        for value, is_donated, count in zip(
            values, donated, _holders(values), strict=True
        )
    ]


# What `_holders` counts for the value of a Variable that nobody else holds.
_HELD_ONCE = _holders([Variable(object()).raw_value])[0] + 1


def _input_shardings(owner: Any, opened: Opened, inputs: Sequence[Input]) -> list[Any]:
    """The sharding of each gathered array, from those of the user's arguments.

    Raises:
      ValueError: for a wrong number of shardings, or an object that gets two.
    """
    shardings = owner.in_shardings
    args = opened.args
    numbers = owner.sharded_positions(len(args))
    if type(shardings) is tuple:
        if len(shardings) != len(numbers):
            raise ValueError(
                f"in_shardings of {owner.title} has {len(shardings)} entries, "
                f"but the call has {len(numbers)} arguments that are not static"
            )
        by_number = dict(zip(numbers, shardings, strict=True))
    else:
        by_number = dict.fromkeys(numbers, shardings)
    labels = object_labels(
        [
            (f"args[{place}]", args[number], by_number[number])
            for place, number in enumerate(numbers)
        ],
        "in_shardings",
    )

    def sharding_of(source: Input) -> Any:
        if isinstance(source.leaf, Variable):
            return labels.get(id(source.leaf))
        prefix = by_number.get(source.argument)
        return label_of(prefix, source.path, source.leaf, "in_shardings")

    return [sharding_of(source) for source in inputs]


def _sharded(result: Any, shardings: Any) -> Any:
    """Constrains the arrays of a result to their shardings."""

    def constrain(path: tuple[Any, ...], leaf: Any) -> Any:
        if kind_of(leaf) == DYNAMIC:
            sharding = label_of(shardings, path, leaf, "out_shardings")
            if sharding is None:
                return leaf
            return jax.lax.with_sharding_constraint(leaf, sharding)
        walk = Taking()
        walk.take(leaf)
        for below, inner in walk.pairs:
            if isinstance(inner, Variable):
                place = (*path, *below)
                sharding = label_of(shardings, place, inner, "out_shardings")
                if sharding is not None:
                    value = jax.lax.with_sharding_constraint(inner.raw_value, sharding)
                    inner._write(value)
        return leaf

    leaves, treedef = flatten(result)
    paths = [tuple(map(key_of, keys)) for keys, _ in flatten_with_path(result)]
    return treedef.unflatten(
        [constrain(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
    )
