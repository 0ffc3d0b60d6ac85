"""Into how many keys random streams are split: shapes, and rules that give them.

`splits`, wherever it is an argument, is a number of keys, a shape, or a mapping of
filters to these. It is checked once, here, before any key is drawn.
"""

import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .filters import Filter, Predicate, to_predicate
from .paths import Path

Shape = tuple[int, ...]


class Rule(NamedTuple):
    """The shape that the streams of a filter are split into, or None: not split."""

    filter: Filter
    matches: Predicate
    shape: Shape | None


def rules_of(splits: Any) -> list[Rule]:
    """A shape for all streams, or a mapping of filters to shapes, as checked rules."""
    items = splits.items() if isinstance(splits, Mapping) else [(..., splits)]
    return [rule(filter, None if k is None else shape_of(k)) for filter, k in items]


def rule(filter: Filter, shape: Shape | None) -> Rule:
    """One rule; TypeError if `filter` is none."""
    return Rule(filter, to_predicate(filter), shape)


def first_rule(rules: Iterable[Rule], *places: tuple[Path, Any]) -> Rule | None:
    """The first rule whose filter matches all of the places, (path, value) pairs."""
    for candidate in rules:
        if all(candidate.matches(path, value) for path, value in places):
            return candidate
    return None


def shape_of(splits: Any) -> Shape:
    """The shape of so many keys.

    Raises:
      TypeError: if `splits` is neither an int nor a tuple of ints.
      ValueError: if it is negative.

    Example:
      >>> shape_of(4), shape_of((2, 3))
      ((4,), (2, 3))
    """
    sizes = splits if isinstance(splits, (tuple, list)) else (splits,)
    try:
        shape = tuple(operator.index(size) for size in sizes)
    except TypeError:
        raise TypeError(
            f"{splits!r} is no number of keys to split into: use an int, such as 4, or "
            "a tuple of ints, such as (2, 4)"
        ) from None
    if min(shape, default=0) < 0:
        raise ValueError(
            f"cannot split into {splits!r} keys: use an int, or a tuple of ints, from "
            "0 up"
        )
    return shape
