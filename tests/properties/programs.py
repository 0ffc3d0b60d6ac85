"""Programs: random object graphs, and what a function does with them, as plain values.

A program is made of nested tuples of strings and numbers, so that the one that
hypothesis prints can be pasted into a test. It tells how to build a graph, which of
its objects a function gets and in which *ways* (as arguments, captured, both), what
the function does, and what happens between two calls. Whatever is done is a list of
*instructions*, `(operation, operand, ...)`, which a `machine.Machine` carries out.

Here are also the classes that the objects have, and how a graph is walked: by its
public face, so that nothing is taken for granted that is to be tested.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import nnxlite as nnx

# A plain object whose fields hold no object or array is static to a transform, which
# does not see what is set on it; False: each has one Variable that stays out of reach.
PLAIN_OBJECTS_MAY_BE_EMPTY = False


@dataclasses.dataclass(frozen=True)
class Program:
    """A graph, a function over it, and what happens between its calls.

    Attributes:
      objects: descriptions of the first objects; see `Machine.new`.
      edges: instructions that add to them and connect them.
      ways: numbers of the objects that go to the function, each with its way.
      body: the function's instructions.
      between: instructions carried out between the calls.
      is_between_compiled: whether that is another compiled function.
      again: numbers of the objects for the second call; those before, if empty.
      inputs: for each call, what array the function gets too; see `INPUTS`.
      forgets: whether what is out of reach after a call is dropped.
      fresh: whether at last the function gets another graph that is built alike.
      donates: whether the compiled function donates the state.
    """

    objects: tuple[Any, ...]
    edges: tuple[Any, ...] = ()
    ways: tuple[tuple[int, str], ...] = ((0, "bare"),)
    body: tuple[Any, ...] = ()
    between: tuple[Any, ...] = ()
    is_between_compiled: bool = False
    again: tuple[int, ...] = ()
    inputs: tuple[str, str] = ("array", "array")
    forgets: bool = False
    fresh: bool = False
    donates: bool = False


class Stat(nnx.Variable[Any]):
    """A user's own kind."""


class Shifted(nnx.Variable[Any]):
    """A kind that shows another value than it stores."""

    def get_value(self, **_: Any) -> Any:
        value = self.raw_value
        return value + 1 if is_numeric(value) else value

    def set_value(self, value: Any, **_: Any) -> None:
        if isinstance(value, nnx.Variable):
            value = value.value
        super().set_value(value - 1 if is_numeric(value) else value)


class Node(nnx.Module):
    """A Module with whatever attributes a program gives it."""

    def __init__(self, attributes: Sequence[tuple[str, Any]] = ()):
        for name, value in attributes:
            setattr(self, name, value)


class Other(Node):
    """Another class of Modules."""


class Trainer:
    """A plain object that holds an object in a field."""

    def __init__(self, model: Any):
        self.model = model
        if not PLAIN_OBJECTS_MAY_BE_EMPTY:
            self._hidden = nnx.Variable(0)


class Pair(NamedTuple):
    """A pytree that is no node."""

    first: Any
    second: Any


class Halt(Exception):
    """What a program raises half-way."""


KINDS = {"Param": nnx.Param, "BatchStat": nnx.BatchStat, "Stat": Stat, "Own": Shifted}
MODULES = {"Node": Node, "Other": Other}
OBJECTS = (nnx.Variable, nnx.Pytree, Trainer)  # what has an identity
INPUTS = {
    "array": lambda number: jnp.full((), number, jnp.float32),
    "vector": lambda number: jnp.full((2,), number, jnp.float32),
    "number": lambda number: number,
    "numpy": lambda number: np.full((), number, np.float32),
}


def is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, np.generic))


def is_dynamic(value: Any) -> bool:
    return is_array(value) or isinstance(value, (int, float))


def is_numeric(value: Any) -> bool:
    """True for what can be added: no PRNG keys."""
    return is_dynamic(value) and not is_key(value)


def is_key(value: Any) -> bool:
    return is_array(value) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def items_of(value: Any) -> list[tuple[Any, Any]]:
    """The children of an object or container with their keys, in a settled order."""
    if isinstance(value, nnx.Dict):
        return list(dict.items(value))
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, (dict, nnx.State)):
        return sorted((key, value[key]) for key in value)
    if isinstance(value, (nnx.Pytree, Trainer)):
        names = sorted(name for name in vars(value) if name[0] != "_")
        return [(name, vars(value)[name]) for name in names]
    return []


def reachable(roots: Sequence[Any]) -> list[Any]:
    """All objects that can be reached, each once, breadth first."""
    found: dict[int, Any] = {}
    waiting = list(roots)
    while waiting:
        later: list[Any] = []
        for value in waiting:
            if isinstance(value, OBJECTS):
                if id(value) in found:
                    continue
                found[id(value)] = value
            later += [child for _, child in items_of(value)]
        waiting = later
    return list(found.values())


def is_in_tuple(root: Any, classes: Any) -> bool:
    """True if below `root` a tuple, which cannot change, holds a `classes` instance."""

    def is_inside(value: Any) -> bool:
        return isinstance(value, classes) or (
            isinstance(value, tuple) and any(map(is_inside, value))
        )

    return any(
        isinstance(value, tuple) and is_inside(value)
        for obj in reachable([root])
        for _, value in items_of(obj)
    )


def picked(values: Sequence[Any], number: int) -> Any:
    """The `number`-th value, modulo how many there are; None if there is none."""
    return values[number % len(values)] if values else None
