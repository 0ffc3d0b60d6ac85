"""How the function of a program gets its objects: passed, captured, or both."""

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import nnxlite as nnx

from .machine import Machine
from .programs import INPUTS, OBJECTS, Program, Trainer, picked

FRONT = ("partial", "method")
PASSED = ("bare", "list", "tuple", "dict", "state", "plain")
CAPTURED = ("cell", "box", "default", "function", "global")
WAYS = (*PASSED, "keyword", *CAPTURED, *FRONT)


class Bound:
    """The function of a program, and the objects of one graph that it gets.

    Args:
      program: the program.
      objects: all objects of the graph.
      compiled: turns a plain function into the one to call, such as `nnx.jit`.
      nested: the same for nested functions; `compiled`, if not given.

    Attributes:
      objects: what the function gets: for each way an object of the graph, or a plain
        object that holds it.
      can_rebind: whether the function can get the objects of another graph.
    """

    def __init__(
        self,
        program: Program,
        objects: Sequence[Any],
        compiled: Any,
        nested: Any = None,
    ):
        self._ways = [way for _, way in program.ways]
        self._numbers = [number for number, _ in program.ways]
        self._rebinds: list[tuple[int, Callable[[Any], None]]] = []
        self._passed = self._which(PASSED)
        self._keywords = self._which(("keyword",))
        captured, front = self._which(CAPTURED), self._which(FRONT)
        self.can_rebind = not front
        self.bind(objects)
        order = front + self._passed + captured[::-1] + self._keywords
        function: Any = _plain(program.body, tuple(order), nested or compiled)
        for n in captured:
            function, rebind = _CAPTURING[self._ways[n]](function, self.objects[n])
            self._rebinds.append((n, rebind))
        for n in front:
            is_partial = self._ways[n] == "partial"
            binding = functools.partial if is_partial else types.MethodType
            function = binding(function, self.objects[n])
        self._function = compiled(function)

    def _which(self, ways: Sequence[str]) -> list[int]:
        return [n for n, way in enumerate(self._ways) if way in ways]

    def bind(self, objects: Sequence[Any], numbers: Sequence[int] = ()) -> None:
        """Gives the function other objects of a graph, or those of another graph."""
        objects = [x for x in objects if not isinstance(x, Trainer)]
        numbers = (*numbers, *self._numbers[len(numbers) :])[: len(self._numbers)]
        self.objects = [picked(objects, n) for n in numbers]
        for n in self._which(("plain",)):
            self.objects[n] = Trainer(self.objects[n])
        for n, rebind in self._rebinds:
            rebind(self.objects[n])

    def __call__(self, kind: str, number: int) -> Any:
        return self.call(INPUTS[kind](number))

    def call(self, x: Any) -> Any:
        """Calls the function with an array as the other argument."""
        args = [_wrapped(self.objects[n], self._ways[n]) for n in self._passed]
        named = {f"k{n}": self.objects[n] for n in self._keywords}
        return self._function(*args, x=x, **named)


def _plain(body: Any, order: tuple[int, ...], compiled: Any) -> Callable[..., Any]:
    """A function of objects, received in some order, that runs a program's body."""

    def program(*received: Any, x: Any, **named: Any) -> Any:
        parts = [list(_opened(x)) for x in (*received, *named.values())]
        placed = dict(zip(order, parts, strict=True))
        roots = [obj for n in sorted(placed) for obj in placed[n]]
        return Machine(roots, x, compiled).run(body)

    return program


def _opened(value: Any) -> Iterator[Any]:
    if isinstance(value, OBJECTS):
        yield value
    elif isinstance(value, (dict, nnx.State)):
        for key in sorted(value):
            yield from _opened(value[key])
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from _opened(child)


def _wrapped(obj: Any, way: str) -> Any:
    if way == "list":
        return [obj]
    if way == "tuple":
        return (None, obj, "text")
    if way == "state":
        return nnx.state(obj)
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

    def wrapper(*received: Any, **named: Any) -> Any:
        return function(*received, get(), **named)

    def rebind(new: Any) -> None:
        nonlocal obj
        obj = new

    return wrapper, rebind


def _in_global(function: Any, obj: Any) -> tuple[Any, Any]:
    namespace = {"function": function, "obj": obj, "__name__": __name__}
    exec(
        "def wrapper(*received, **named):\n"
        "    return function(*received, obj, **named)\n",
        namespace,
    )
    return namespace["wrapper"], functools.partial(namespace.__setitem__, "obj")


_CAPTURING = {
    "cell": _in_cell,
    "box": _in_box,
    "default": _in_default,
    "function": _in_function,
    "global": _in_global,
}
