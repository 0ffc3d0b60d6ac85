"""Comparing two object graphs: one and the same, up to which objects they consist of.

A *correspondence* pairs the objects (Modules, Lists, Dicts, Variables) of a left and a
right graph that stand for each other. Objects that were there before are paired at the
start; so if one of them is anywhere on the left, its very partner must be there on the
right, and where the left has a new object the right must have one, always the same.

Two liberties: a Python number and an array may stand for each other as a result and as
the value of a Variable, since transforms see numbers as arrays there; and whether an
array is JAX's or NumPy's, or has a weak type, does not matter.

A transform may do many calls at once, and stack what each would give. Then the right
graph is compared with the left one of each call, a *lane*, of which it has a slice.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

import nnxlite as nnx

from .programs import OBJECTS, is_array, is_key, items_of


class Difference(AssertionError):
    """Where and how two graphs differ."""


class Correspondence:
    """Pairs of objects that stand for each other; keeps them alive.

    Args:
      left, right: objects to pair.
      lane: which slice of the right arrays to compare with; None for all of them. The
        result is stacked, and so is what belongs to an object that is.
      stacked: those of the right objects that are stacked.

    Attributes:
      left, right: the paired objects.
    """

    def __init__(
        self,
        left: Sequence[Any],
        right: Sequence[Any],
        lane: int | None = None,
        stacked: Sequence[Any] = (),
    ):
        self.left: list[Any] = []
        self.right: list[Any] = []
        self._lane = lane
        self._lanes: list[int | None] = []
        self._is_stacked = {id(obj) for obj in stacked}
        self._paths: list[str] = []
        self._numbers: tuple[dict[int, int], dict[int, int]] = ({}, {})
        _same(len(left), len(right), "number of objects")
        for number, pair in enumerate(zip(left, right, strict=True)):
            is_stacked = id(pair[1]) in self._is_stacked
            place = f"#{number}:{type(pair[0]).__name__}"
            self._pair(*pair, place, lane if is_stacked else None)

    def check(self, left: Any, right: Any) -> None:
        """Compares two results, and all objects known so far or met on the way.

        Raises:
          Difference: naming the place.
        """
        self._compare(left, right, "result", True, self._lane)
        number = 0
        while number < len(self.left):  # grows
            self._compare_contents(number)
            number += 1

    def _pair(self, left: Any, right: Any, path: str, lane: int | None) -> None:
        numbers = self._numbers[0].get(id(left)), self._numbers[1].get(id(right))
        if numbers[0] != numbers[1]:
            names = [
                "a new object" if n is None else f"the object {self._paths[n]}"
                for n in numbers
            ]
            raise Difference(f"{path}: {names[0]} on the left, {names[1]} on the right")
        if numbers[0] is None:
            self._numbers[0][id(left)] = self._numbers[1][id(right)] = len(self.left)
            self.left.append(left)
            self.right.append(right)
            self._paths.append(path)
            self._lanes.append(lane)

    def _compare_contents(self, number: int) -> None:
        left, right = self.left[number], self.right[number]
        path, lane = self._paths[number], self._lanes[number]
        _same(type(left), type(right), f"class of {path}")
        if isinstance(left, nnx.Variable):
            _same(left.get_metadata(), right.get_metadata(), f"metadata of {path}")
            self._compare(left.raw_value, right.raw_value, path, True, lane)
            return
        marks = getattr(left, "_nnx_marks", {})
        _same(marks, getattr(right, "_nnx_marks", {}), f"marks of {path}")
        keys = [[key for key, _ in items_of(obj)] for obj in (left, right)]
        _same(*keys, f"keys of {path}")
        for (key, x), (_, y) in zip(items_of(left), items_of(right), strict=True):
            self._compare(x, y, f"{path}.{key}", key in marks, lane)

    def _compare(
        self, left: Any, right: Any, path: str, is_lenient: bool, lane: int | None
    ) -> None:
        """Lenient: a Python number may stand for an array."""
        if isinstance(left, OBJECTS) and isinstance(right, OBJECTS):
            self._pair(left, right, path, lane)
        elif isinstance(left, jax.core.Tracer) or isinstance(right, jax.core.Tracer):
            raise Difference(f"{path} holds a tracer: {left!r}, {right!r}")
        elif is_array(left) and is_array(right) or is_lenient and _is_number(left):
            if lane is not None and is_array(right):
                _same(np.ndim(left) + 1, np.ndim(right), f"number of axes of {path}")
                right = right[lane]
            _compare_arrays(left, right, path)
        else:
            _same(type(left), type(right), f"type of {path}")
            if isinstance(left, (list, tuple, dict, nnx.State)):
                a, b = items_of(left), items_of(right)
                _same([k for k, _ in a], [k for k, _ in b], f"keys of {path}")
                for (key, x), (_, y) in zip(a, b, strict=True):
                    self._compare(x, y, f"{path}[{key!r}]", is_lenient, lane)
            else:
                _same(left, right, path)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _same(left: Any, right: Any, path: str) -> None:
    if left != right:
        raise Difference(f"{path}: {left!r} on the left, {right!r} on the right")


def _compare_arrays(left: Any, right: Any, path: str) -> None:
    if not is_array(right) and not _is_number(right):
        raise Difference(f"{path}: {left!r} on the left, {right!r} on the right")
    _same(np.shape(left), np.shape(right), f"shape of {path}")
    if is_array(left) and is_array(right):
        _same(left.dtype, right.dtype, f"dtype of {path}")
    arrays = [jax.random.key_data(x) if is_key(x) else x for x in (left, right)]
    if not np.array_equal(*map(np.asarray, arrays)):
        raise Difference(f"{path}: {left!r} on the left, {right!r} on the right")


class Snapshot:
    """What some objects were like, down to the identity of each part."""

    def __init__(self, objects: Iterable[Any]):
        self._before = [(obj, _parts(obj)) for obj in objects]

    def check(self) -> None:
        """Raises Difference if an object is not exactly as it was."""
        for number, (obj, before) in enumerate(self._before):
            now = _parts(obj)
            path = f"#{number}:{type(obj).__name__}"
            _same(list(before), list(now), f"keys of {path} before and now")
            for key in before:
                if before[key] is not now[key]:
                    raise Difference(
                        f"{path}.{key} was {before[key]!r} before, now {now[key]!r}"
                    )


def _parts(obj: Any) -> dict[Any, Any]:
    if isinstance(obj, nnx.Variable):
        return {"value": obj.raw_value, **obj.get_metadata()}
    return dict(items_of(obj))
