"""Random object graphs, and random programs that read, change and return them.

A *program* is a value: nested tuples of strings and numbers, so that the one that
hypothesis prints can be pasted into a test. It tells how to build a graph, which of
its objects a function gets and in which *ways* (as arguments, captured, both), what
the function does, and what happens between two calls. Whatever is done is a list of
*instructions* `(operation, operand, ...)`, carried out by a `Machine`; each operation
is a method of it.

Operands mean "the n-th object (Variable, List, place, ...) that can be reached now",
modulo how many there are. An instruction whose operand does not exist, or to which
the framework would rightly object, does nothing. That is settled by structure only,
never by a value, so that a program does the same with arrays and with tracers.

Values are small whole numbers in float32, and only added: results are exact.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nnxlite as nnx

NAMES = ("a", "b", "c", "d")
KEYS = ("x", "y", "items")
METADATA_NAMES = ("note", "group")
NUMBERS = (int, float)


class Stat(nnx.Variable[Any]):
    """A user's own kind."""


class Node(nnx.Module):
    """A Module with whatever attributes a program gives it."""

    def __init__(self, attributes: Sequence[tuple[str, Any]] = ()):
        for name, value in attributes:
            setattr(self, name, value)


class Other(Node):
    """Another class of Modules."""


class Halt(Exception):
    """What a program raises half-way."""


KINDS = {"Param": nnx.Param, "BatchStat": nnx.BatchStat, "Stat": Stat}
MODULES = {"Node": Node, "Other": Other}


# What there is: objects and places


def is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, np.generic))


def items_of(value: Any) -> list[tuple[Any, Any]]:
    """The children of a node or tuple, with their keys, in a settled order."""
    if isinstance(value, nnx.Dict):
        return list(dict.items(value))
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, nnx.Pytree):
        return sorted((k, v) for k, v in vars(value).items() if k[:4] != "_nnx")
    return []


def reachable(roots: Sequence[Any]) -> list[Any]:
    """All Variables and nodes that can be reached, each once, breadth first."""
    found: dict[int, Any] = {}
    waiting = list(roots)
    while waiting:
        later: list[Any] = []
        for value in waiting:
            if isinstance(value, (nnx.Variable, nnx.Pytree)):
                if id(value) in found:
                    continue
                found[id(value)] = value
            later += [child for _, child in items_of(value)]
        waiting = later
    return list(found.values())


def picked(values: Sequence[Any], number: int) -> Any:
    return values[number % len(values)] if values else None


# Doing


class Machine:
    """Carries out instructions on the objects that can be reached from some roots.

    Attributes:
      total: the accumulator; depends on everything read so far.
      made: objects made by the program, which it can reach too.
      results: what the program returns.
      compiled: turns a function into a nested transform's, such as `nnx.jit`.
    """

    def __init__(self, roots: Sequence[Any], total: Any, compiled: Any = None):
        self.roots = list(roots)
        self.compiled = compiled
        self.total = total
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
        return [x for x in self.objects() if type(x) in (Node, Other)]

    def places(self) -> list[tuple[Any, Any, Any]]:
        """Owner, key and value of each place that can be set."""
        return [(x, k, v) for x in self.objects(nnx.Pytree) for k, v in items_of(x)]

    def put(self, owner: Any, key: Any, value: Any) -> None:
        """Sets a place, unless an array or number would drop a Variable."""
        old = dict(items_of(owner)).get(key)
        if isinstance(old, nnx.Variable) and _is_dynamic(value):
            return
        if isinstance(owner, (list, dict)):
            owner[key] = value
        else:
            setattr(owner, key, value)

    # Making values

    def new(self, what: tuple[Any, ...]) -> Any:
        """Makes the value that is described."""
        kind, *parts = what
        return getattr(self, f"new_{kind}")(*parts)

    def new_static(self, value: Any) -> Any:
        return value

    def new_array(self, shape: tuple[int, ...], number: int) -> Any:
        return jnp.full(shape, number, jnp.float32)

    def new_numpy(self, shape: tuple[int, ...], number: int) -> Any:
        return np.full(shape, number, np.float32)

    def new_traced(self, shape: tuple[int, ...], number: int) -> Any:
        return self.total + np.full(shape, number, np.float32)

    def new_object(self, number: int) -> Any:
        return picked(self.objects(), number)

    def new_part(self, number: int) -> Any:
        place = picked(self.places(), number)
        return place and place[2]

    def new_variable(self, kind: str, content: Any, metadata: Any) -> Any:
        return KINDS[kind](self.new(content), **dict(metadata))

    def new_module(self, kind: str, attributes: Any) -> Any:
        return MODULES[kind]([(name, self.new(what)) for name, what in attributes])

    def new_list(self, elements: Any) -> Any:
        return [self.new(what) for what in elements]

    def new_tuple(self, elements: Any) -> Any:
        return tuple(self.new(what) for what in elements)

    def new_dict(self, entries: Any) -> Any:
        return {key: self.new(what) for key, what in entries}

    # Operations on Variables

    def read(self, number: int) -> None:
        variable = picked(self.objects(nnx.Variable), number)
        if variable is not None:
            for leaf in jax.tree.leaves(variable.value):
                if not isinstance(leaf, str):
                    self.total = self.total + jnp.sum(jnp.asarray(leaf, jnp.float32))

    def write(self, number: int, content: Any) -> None:
        variable = picked(self.objects(nnx.Variable), number)
        if variable is not None:
            variable.value = self.new(content)

    def write_all(self, number: int, content: Any) -> None:
        variable = picked(self.objects(nnx.Variable), number)
        if variable is not None and _is_dynamic(variable.value):
            if isinstance(content[1], tuple) and not np.shape(variable.value):
                return  # P1
            value = self.new(content)
            if _is_dynamic(value) and np.shape(value) in ((), np.shape(variable.value)):
                variable[...] = value

    def write_one(self, number: int, index: int) -> None:
        variable = picked(self.objects(nnx.Variable), number)
        if variable is not None and is_array(variable.value) and variable.shape:
            variable[index % variable.shape[0]] = self.total

    def assign(self, number: int, other: int) -> None:
        variables = self.objects(nnx.Variable)
        if variables:
            picked(variables, number).value = picked(variables, other)

    def add_to(self, number: int, content: Any) -> None:
        """`owner.name += x` for a Variable or array in any place."""
        value = self.new(content)
        found = [p for p in self.places() if _takes_sum(p[2], value)]
        if found:
            owner, key, _ = picked(found, number)
            if isinstance(owner, (list, dict)):
                owner[key] += value
            elif key == "a":
                owner.a += value
            else:
                new = getattr(owner, key)
                new += value
                setattr(owner, key, new)

    def set_metadata(self, number: int, name: str, value: Any) -> None:
        variable = picked(self.objects(nnx.Variable), number)
        if variable is not None:
            variable.set_metadata(name, value)

    def del_metadata(self, number: int, name: str) -> None:
        variable = picked(self.objects(nnx.Variable), number)
        if variable is not None and variable.has_metadata(name):
            variable.del_metadata(name)

    # Operations on nodes

    def set(self, number: int, name: str, what: Any) -> None:
        module = picked(self.modules(), number)
        if module is not None:
            self.put(module, name, self.new(what))

    def replace(self, number: int, what: Any) -> None:
        place = picked(self.places(), number)
        if place:
            self.put(*place[:2], self.new(what))

    def increment(self, number: int) -> None:
        place = picked([p for p in self.places() if type(p[2]) is int], number)
        if place:
            self.put(*place[:2], place[2] + 1)

    def delete(self, number: int) -> None:
        place = picked(self.places(), number)
        if place:
            owner, key, _ = place
            if isinstance(owner, (list, dict)):
                del owner[key]
            else:
                delattr(owner, key)

    def swap(self, number: int, other: int) -> None:
        places = self.places()
        if places:
            (a, i, x), (b, j, y) = picked(places, number), picked(places, other)
            kept = isinstance(x, nnx.Variable), isinstance(y, nnx.Variable)
            if not (kept[0] and _is_dynamic(y) or kept[1] and _is_dynamic(x)):
                self.put(a, i, y)
                self.put(b, j, x)

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

    def pop_item(self, number: int, key: str) -> None:
        target = picked(self.objects(nnx.Dict), number)
        if target is not None and key in target:
            self.made.append(target.pop(key))

    def pop_kind(self, number: int, kind: str) -> None:
        """`nnx.pop`, where no Variable of the kind is in a tuple, which cannot change.

        What is popped stays known to the program.
        """
        node = picked(self.objects(nnx.Pytree), number)
        if node is not None and not _is_in_tuple(node, KINDS[kind]):
            state = nnx.pop(node, KINDS[kind])
            self.made += [leaf for _, leaf in nnx.to_flat_state(state)]

    def clone(self, number: int) -> None:
        node = picked(self.objects(), number)
        if node is not None:
            self.made.append(nnx.clone(node))

    def make(self, what: Any) -> None:
        self.made.append(self.new(what))

    # Control

    def give(self, what: Any) -> None:
        self.results.append(self.new(what))

    def give_total(self) -> None:
        self.results.append(self.total)

    def attempt(self, instructions: Any) -> None:
        """Goes on after an exception."""
        try:
            self.run(instructions)
        except (Halt, ValueError):
            pass

    def nest(self, instructions: Any) -> None:
        """Runs instructions in a nested transform."""

        def inner(objects: Any, total: Any) -> Any:
            machine = Machine(objects, total, None)
            machine.run(instructions)
            return machine.total, machine.made, machine.results

        function = inner if self.compiled is None else self.compiled(inner)
        self.total, made, results = function(self.objects(), self.total)
        self.made += made
        self.results += results

    def halt(self) -> None:
        raise Halt

    def overwrite(self, number: int) -> None:
        """An array over a Variable: ValueError."""
        found = [p for p in self.places() if isinstance(p[2], nnx.Variable)]
        if found:
            owner, key, _ = picked(found, number)
            if isinstance(owner, (list, dict)):
                owner[key] = self.total
            else:
                setattr(owner, key, self.total)


def _is_dynamic(value: Any) -> bool:
    return is_array(value) or isinstance(value, NUMBERS)


def _takes_sum(target: Any, value: Any) -> bool:
    """True if `target += value` is allowed and keeps the shape."""
    if isinstance(target, nnx.Variable):
        target = target.value
        if isinstance(target, NUMBERS):
            return np.shape(value) == ()
    return is_array(target) and np.shape(value) in ((), target.shape)


def _is_in_tuple(root: Any, kind: type) -> bool:
    def inside(value: Any) -> bool:
        return isinstance(value, kind) or (
            isinstance(value, tuple) and any(map(inside, value))
        )

    return any(
        isinstance(value, tuple) and inside(value)
        for node in reachable([root])
        for _, value in items_of(node)
    )


# Programs


@dataclasses.dataclass(frozen=True)
class Program:
    """A graph, a function over it, and what happens between two calls.

    Attributes:
      objects: descriptions of the first objects.
      edges: instructions that connect them.
      ways: which object goes to the function, and in which way.
      body: the function's instructions.
      between: instructions carried out, not compiled, between the calls.
      fresh: whether a last call gets another graph built alike.
    """

    objects: tuple[Any, ...]
    edges: tuple[Any, ...] = ()
    ways: tuple[tuple[int, str], ...] = ((0, "bare"),)
    body: tuple[Any, ...] = ()
    between: tuple[Any, ...] = ()
    fresh: bool = False

    def built(self) -> list[Any]:
        """A new graph: all its objects."""
        machine = Machine([], jnp.float32(1))
        machine.roots = [machine.new(what) for what in self.objects]
        machine.run(self.edges)
        return reachable(machine.roots)



# Functions of programs

FRONT = ("partial", "method")
CAPTURED = ("cell", "box", "default", "function", "global")
PASSED = ("bare", "list", "tuple", "dict", "keyword")
WAYS = PASSED + CAPTURED + FRONT


class Bound:
    """The function of a program, and the objects of one graph that it gets.

    Args:
      program: the program.
      objects: all objects of the graph.
      compiled: turns a plain function into the one to call, such as `nnx.jit`.
    """

    def __init__(self, program: Program, objects: Sequence[Any], compiled: Any):
        ways = [way for _, way in program.ways]
        self._passed = [n for n, way in enumerate(ways) if way in PASSED[:-1]]
        self._keywords = [n for n, way in enumerate(ways) if way == "keyword"]
        captured = [n for n, way in enumerate(ways) if way in CAPTURED]
        front = [n for n, way in enumerate(ways) if way in FRONT]
        order = front + self._passed + captured[::-1] + self._keywords
        function: Any = _plain(program.body, tuple(order), compiled)
        self._numbers = [n for n, _ in program.ways]
        self._ways = ways
        self._rebinds: list[tuple[int, Callable[[Any], None]]] = []
        self.can_rebind = not front
        self.bind(objects)
        for n in captured:
            function, rebind = _CAPTURING[ways[n]](function, self.objects[n])
            self._rebinds.append((n, rebind))
        for n in front:
            binding = functools.partial if ways[n] == "partial" else types.MethodType
            function = binding(function, self.objects[n])
        self._function = compiled(function)

    def bind(self, objects: Sequence[Any]) -> None:
        """Gives the function the objects of another graph."""
        self.objects = [picked(objects, n) for n in self._numbers]
        for n, rebind in self._rebinds:
            rebind(self.objects[n])

    def __call__(self, x: Any) -> Any:
        args = [_wrapped(self.objects[n], self._ways[n]) for n in self._passed]
        named = {f"k{n}": self.objects[n] for n in self._keywords}
        return self._function(*args, x=x, **named)


def _plain(body: Any, order: tuple[int, ...], compiled: Any) -> Callable[..., Any]:
    """A function of objects, received in some order, that runs a program's body."""

    def program(*received: Any, x: Any, **named: Any) -> Any:
        objects = list(_opened([*received, *named.values()]))
        roots = [obj for _, obj in sorted(zip(order, objects, strict=True), key=_first)]
        return Machine(roots, x, compiled).run(body)

    return program


def _first(pair: tuple[int, Any]) -> int:
    return pair[0]


def _opened(value: Any) -> Iterator[Any]:
    if isinstance(value, (nnx.Variable, nnx.Pytree)):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _opened(child)


def _wrapped(obj: Any, way: str) -> Any:
    if way == "list":
        return [obj]
    if way == "tuple":
        return (None, obj, "text")
    return {"key": obj, "other": 1.0} if way == "dict" else obj


def _in_cell(function: Any, obj: Any) -> tuple[Any, Any]:
    def wrapper(*received: Any, **named: Any) -> Any:
        return function(*received, obj, **named)

    def rebind(new: Any) -> None:
        nonlocal obj
        obj = new

    return wrapper, rebind


def _in_box(function: Any, obj: Any) -> tuple[Any, Any]:
    box = [obj]

    def wrapper(*received: Any, **named: Any) -> Any:
        return function(*received, box[0], **named)

    return wrapper, functools.partial(box.__setitem__, 0)


def _in_default(function: Any, obj: Any) -> tuple[Any, Any]:
    def wrapper(*received: Any, _obj: Any = obj, **named: Any) -> Any:
        return function(*received, _obj, **named)

    def rebind(new: Any) -> None:
        wrapper.__kwdefaults__ = {"_obj": new}

    return wrapper, rebind


def _in_function(function: Any, obj: Any) -> tuple[Any, Any]:
    def get() -> Any:
        return obj

    def rebind(new: Any) -> None:
        nonlocal obj
        obj = new

    return _in_cell_of_getter(function, get), rebind


def _in_cell_of_getter(function: Any, get: Callable[[], Any]) -> Any:
    return lambda *received, **named: function(*received, get(), **named)


def _in_global(function: Any, obj: Any) -> tuple[Any, Any]:
    namespace = {"function": function, "obj": obj, "__name__": __name__}
    source = "wrapper = lambda *received, **named: function(*received, obj, **named)"
    exec(source, namespace)
    return namespace["wrapper"], functools.partial(namespace.__setitem__, "obj")


_CAPTURING = {
    "cell": _in_cell,
    "box": _in_box,
    "default": _in_default,
    "function": _in_function,
    "global": _in_global,
}
