"""The machine that carries out the instructions of a program.

Each operation is a method. Operands mean "the n-th object (Variable, List, place, ...)
that can be reached now", modulo how many there are. An instruction whose operand does
not exist, or to which the framework would rightly object, does nothing. That is
settled by structure only, never by a value, so that a program does the same with
arrays and with tracers.

Values are small whole numbers in float32, and only added: results are exact.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nnxlite as nnx

from .programs import (
    KINDS,
    MODULES,
    Halt,
    Node,
    Pair,
    Program,
    Trainer,
    is_array,
    is_dynamic,
    is_in_tuple,
    is_numeric,
    items_of,
    picked,
    reachable,
)

PLACES = (nnx.Pytree, Trainer)


def built(program: Program) -> list[Any]:
    """The graph of a program, made anew: all its objects."""
    machine = Machine([], jnp.float32(1))
    machine.roots = [machine.new(what) for what in program.objects]
    machine.run(program.edges)
    return reachable(machine.roots)


class Machine:
    """Carries out instructions on the objects that can be reached from some roots.

    Attributes:
      total: the accumulator; depends on all that was read so far.
      made: objects made by the program, which it can reach too.
      results: what the program returns.
      compiled: turns a function into a nested transform's, such as `nnx.jit`.
    """

    def __init__(self, roots: Sequence[Any], x: Any, compiled: Any = None):
        self.roots = list(roots)
        self.total = jnp.sum(jnp.asarray(x, jnp.float32))
        self.compiled = compiled
        self.made: list[Any] = []
        self.results: list[Any] = []

    def run(self, instructions: Sequence[Any]) -> Any:
        """Carries out instructions; returns None, the result, or a tuple of them."""
        for operation, *operands in instructions:
            getattr(self, operation)(*operands)
        return tuple(self.results) if len(self.results) > 1 else picked(self.results, 0)

    def objects(self, *classes: type) -> list[Any]:
        found = reachable(self.roots + self.made)
        return [x for x in found if isinstance(x, classes)] if classes else found

    def modules(self) -> list[Any]:
        return self.objects(Node)

    def places(self) -> list[tuple[Any, Any, Any]]:
        """Owner, key and value of each place that can be set."""
        return [(x, k, v) for x in self.objects(*PLACES) for k, v in items_of(x)]

    def unmarked(self) -> list[tuple[Any, Any, Any]]:
        """The places but those where a number is data, so that it may be a tracer."""
        return [p for p in self.places() if p[1] not in getattr(p[0], "_nnx_marks", ())]

    def put(self, owner: Any, key: Any, value: Any) -> None:
        """Sets a place, unless an array or number would drop a Variable."""
        old = dict(items_of(owner)).get(key)
        if not isinstance(old, nnx.Variable) or not is_dynamic(value):
            _set(owner, key, value)

    # Making values

    def new(self, what: tuple[Any, ...]) -> Any:
        """Makes the value that is described."""
        kind, *parts = what
        return getattr(self, f"new_{kind}")(*parts)

    def new_static(self, value: Any) -> Any:
        return value

    def new_array(self, shape: tuple[int, ...], number: int) -> Any:
        return jnp.full(shape, number, jnp.float32)

    def new_ints(self, shape: tuple[int, ...], number: int) -> Any:
        return jnp.full(shape, number, jnp.int32)

    def new_numpy(self, shape: tuple[int, ...], number: int) -> Any:
        return np.full(shape, number, np.float32)

    def new_traced(self, shape: tuple[int, ...], number: int) -> Any:
        return self.total + np.full(shape, number, np.float32)

    def new_key(self, number: int) -> Any:
        return jax.random.key(number)

    def new_object(self, number: int) -> Any:
        return picked([x for x in self.objects() if not isinstance(x, Trainer)], number)

    def new_part(self, number: int) -> Any:
        place = picked(self.unmarked(), number)
        return place and place[2]

    def new_state(self, number: int) -> Any:
        return nnx.state(self.new_object(number)) if self.objects() else None

    def new_variable(self, kind: str, content: Any, metadata: Any) -> Any:
        return KINDS[kind](self.new(content), **dict(metadata))

    def new_module(self, kind: str, attributes: Any) -> Any:
        return MODULES[kind]([(name, self.new(what)) for name, what in attributes])

    def new_list(self, elements: Any) -> Any:
        return [self.new(what) for what in elements]

    def new_tuple(self, elements: Any) -> Any:
        return tuple(self.new(what) for what in elements)

    def new_pair(self, first: Any, second: Any) -> Any:
        return Pair(self.new(first), self.new(second))

    def new_dict(self, entries: Any) -> Any:
        return {key: self.new(what) for key, what in entries}

    # Operations on Variables

    def read(self, number: int) -> None:
        variable = picked(self.objects(nnx.Variable), number)
        if variable is not None:
            self.add(variable.value)

    def add(self, value: Any) -> None:
        for leaf in filter(is_numeric, jax.tree.leaves(value)):
            self.total = self.total + jnp.sum(jnp.asarray(leaf, jnp.float32))

    def survey(self) -> None:
        """Reads everything, structure too, so that the result depends on it."""
        numbers = {id(obj): n for n, obj in enumerate(self.objects())}
        seen = len(numbers)
        for n, obj in enumerate(self.objects()):
            if isinstance(obj, nnx.Variable):
                seen += (n + 1) * len(obj.get_metadata())
                self.add(obj.value)
            marks = getattr(obj, "_nnx_marks", ())
            for key, value in items_of(obj):
                seen += n * numbers.get(id(value), 1)
                is_known = type(value) is int and key not in marks
                seen += n * value if is_known else 0
        self.total = self.total + seen % 64

    def write(self, number: int, content: Any) -> None:
        variable = picked(self.objects(nnx.Variable), number)
        if variable is not None:
            variable.value = self.new(content)

    def write_all(self, number: int, content: Any) -> None:
        variable, value = picked(self.objects(nnx.Variable), number), self.new(content)
        if variable is not None and is_numeric(value) and _takes_sum(variable, value):
            variable[...] = value

    def write_one(self, number: int, index: int) -> None:
        variable = picked(self.objects(nnx.Variable), number)
        if variable is not None and is_array(variable.value) and variable.shape:
            variable[index % variable.shape[0]] = self.total.astype(variable.dtype)

    def assign(self, number: int, other: int) -> None:
        variables = self.objects(nnx.Variable)
        if variables:
            picked(variables, number).value = picked(variables, other)

    def add_to(self, number: int, content: Any) -> None:
        """`owner.name += x` for a Variable or array in any place."""
        value = self.new(content)
        found = [p for p in self.unmarked() if _takes_sum(p[2], value, is_number=False)]
        if found:
            owner, key, old = picked(found, number)
            if isinstance(old, np.ndarray):  # `+=` would write into it
                old = old + value
                old = np.asarray(old) if isinstance(old, np.generic) else old
            else:
                old += value
            _set(owner, key, old)

    def set_metadata(self, number: int, name: str, value: Any) -> None:
        variable = picked(self.objects(nnx.Variable), number)
        if variable is not None:
            variable.set_metadata(name, value)

    def del_metadata(self, number: int, name: str) -> None:
        found = [v for v in self.objects(nnx.Variable) if v.has_metadata(name)]
        if found:
            picked(found, number).del_metadata(name)

    # Operations on nodes and fields

    def set(self, number: int, name: str, what: Any) -> None:
        module = picked(self.modules(), number)
        if module is not None:
            self.put(module, name, self.new(what))

    def mark(self, number: int, name: str, mark: str, value: Any) -> None:
        module = picked(self.modules(), number)
        if module is not None and not isinstance(
            vars(module).get(name), (nnx.Variable, nnx.Pytree)
        ):
            setattr(module, name, getattr(nnx, mark)(value))

    def set_field(self, number: int, name: str, what: Any) -> None:
        trainer = picked(self.objects(Trainer), number)
        if trainer is not None:
            setattr(trainer, name, self.new(what))

    def replace(self, number: int, what: Any) -> None:
        place = picked(self.places(), number)
        if place:
            self.put(*place[:2], self.new(what))

    def increment(self, number: int) -> None:
        place = picked([p for p in self.unmarked() if type(p[2]) is int], number)
        if place:
            _set(*place[:2], place[2] + 1)

    def delete(self, number: int) -> None:
        place = picked(self.places(), number)
        if place:
            owner, key, _ = place
            if isinstance(owner, (list, dict)):
                del owner[key]
            else:
                delattr(owner, key)

    def swap(self, number: int, other: int) -> None:
        places = self.unmarked()
        if places:
            (a, i, x), (b, j, y) = picked(places, number), picked(places, other)
            kept = isinstance(x, nnx.Variable), isinstance(y, nnx.Variable)
            if not (kept[0] and is_dynamic(y) or kept[1] and is_dynamic(x)):
                _set(a, i, y)
                _set(b, j, x)

    def share(self, number: int, other: int, what: Any) -> None:
        """Puts one new value at two places."""
        value, places = self.new(what), self.places()
        if places and not isinstance(value, (list, dict)):
            for place in (picked(places, number), picked(places, other)):
                self.put(*place[:2], value)

    def append(self, number: int, what: Any) -> None:
        target = picked(self.objects(nnx.List), number)
        if target is not None:
            target.append(self.new(what))

    def insert(self, number: int, index: int, what: Any) -> None:
        target = picked(self.objects(nnx.List), number)
        if target is not None:
            target.insert(index % (len(target) + 1), self.new(what))

    def pop(self, number: int, index: int) -> None:
        target = picked(self.objects(nnx.List), number)
        if target:
            self.made.append(target.pop(index % len(target)))

    def reverse(self, number: int) -> None:
        target = picked(self.objects(nnx.List), number)
        if target is not None:
            target.reverse()

    def set_item(self, number: int, key: str, what: Any) -> None:
        target = picked(self.objects(nnx.Dict), number)
        if target is not None:
            self.put(target, key, self.new(what))

    def pop_item(self, number: int) -> None:
        target = picked([x for x in self.objects(nnx.Dict) if x], number)
        if target is not None:
            self.made.append(target.popitem()[1])

    def pop_kind(self, number: int, kind: str) -> None:
        """`nnx.pop`; what is popped stays known to the program."""
        node = picked(self.objects(nnx.Pytree), number)
        if node is not None and not is_in_tuple(node, KINDS[kind]):
            state = nnx.pop(node, KINDS[kind])
            self.made += [leaf for _, leaf in nnx.to_flat_state(state)]

    def update(self, number: int) -> None:
        """`nnx.update` of a whole graph with its own values plus the total."""
        node = picked(self.objects(nnx.Pytree), number)
        if node is not None and not is_in_tuple(node, (jax.Array, np.ndarray)):
            state = jax.tree.map(
                lambda x: x + self.total if is_numeric(x) else x,
                nnx.state(node),
            )
            nnx.update(node, state)

    def clone(self, number: int) -> None:
        obj = self.new_object(number)
        if obj is not None:
            self.made.append(nnx.clone(obj))

    def rebuild(self, number: int) -> None:
        """New nodes around the same Variables."""
        node = picked(self.objects(nnx.Pytree), number)
        if node is not None:
            self.made.append(nnx.merge(*nnx.split(node)))

    def make(self, what: Any) -> None:
        self.made.append(self.new(what))

    # Results and control

    def give(self, what: Any) -> None:
        self.results.append(self.new(what))

    def give_total(self) -> None:
        self.results.append(self.total)

    def nest(self, instructions: Any) -> None:
        """Runs instructions in a nested transform, which may return a number only."""

        def inner(objects: Any, x: Any) -> Any:
            machine = Machine(objects, x)
            machine.run(instructions)
            return machine.total, machine.made, machine.results

        function = inner if self.compiled is None else self.compiled(inner)
        result = function(self.objects(), x=self.total)
        if isinstance(result, tuple):
            self.total, made, results = result
            self.made += made
            self.results += results
        else:
            self.total = result

    def attempt(self, instructions: Any) -> None:
        """Goes on after an exception."""
        try:
            self.run(instructions)
        except (Halt, ValueError):
            pass

    def halt(self) -> None:
        raise Halt

    def halt_if(self, name: str) -> None:
        """Raises if some Module has an attribute: perhaps in the second call only."""
        if any(hasattr(module, name) for module in self.modules()):
            raise Halt

    def overwrite(self, number: int) -> None:
        """An array over a Variable in a node: ValueError."""
        found = [p for p in self.places() if isinstance(p[2], nnx.Variable)]
        found = [p for p in found if isinstance(p[0], nnx.Pytree)]
        if found:
            _set(*picked(found, number)[:2], self.total)


def _set(owner: Any, key: Any, value: Any) -> None:
    if isinstance(owner, (list, dict)):
        owner[key] = value
    else:
        setattr(owner, key, value)


def _takes_sum(target: Any, value: Any, is_number: bool = True) -> bool:
    """True if `target += value` is allowed and keeps the shape."""
    if isinstance(target, nnx.Variable):
        target, is_number = target.value, True
    if not is_array(target) and not (is_number and is_dynamic(target)):
        return False
    return is_numeric(target) and np.shape(value) in ((), np.shape(target))
