"""Filters select Variables and other leaves by type, name, path or predicate.

A filter *literal* is a type (`isinstance`), a str (the leaf's `tag`), a callable
`(path, value) -> bool`, a bool or None or `...` (all or nothing), or a list or tuple
of filters (any of them). `to_predicate` turns a literal into the predicate classes
below, which are frozen and compare by content, so that they can be dict keys.
"""

import dataclasses
import types
from collections.abc import Callable, Iterable
from typing import Any as AnyType
from typing import TypeAlias, Union

from .paths import Path

Predicate = Callable[[Path, AnyType], bool]
Filter: TypeAlias = Union[  # noqa: UP007  (it names itself)
    type,
    types.UnionType,
    str,
    Predicate,
    bool,
    None,
    types.EllipsisType,
    list["Filter"],
    tuple["Filter", ...],
]


@dataclasses.dataclass(frozen=True)
class OfType:
    """Matches values that are instances of `type`.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.OfType(nnx.Param)((), nnx.Param(1.0))
      True
    """

    type: type | types.UnionType

    def __call__(self, path: Path, value: AnyType) -> bool:
        """Whether `value` is an instance of `type`."""
        return isinstance(value, self.type)


@dataclasses.dataclass(frozen=True)
class WithTag:
    """Matches values whose `tag` equals `tag`: RNG streams are tagged by name.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.WithTag("dropout")((), nnx.Rngs(dropout=0).dropout.key)
      True
    """

    tag: str

    def __call__(self, path: Path, value: AnyType) -> bool:
        """Whether `value` has this tag."""
        return getattr(value, "tag", None) == self.tag


@dataclasses.dataclass(frozen=True)
class PathContains:
    """Matches paths with a part equal to `key`.

    Args:
      key: the part to look for.
      exact: with False, a part that contains `key` as text matches too.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.PathContains("head")(("head", "kernel"), None)
      True
      >>> nnx.PathContains("ker", exact=False)(("head", "kernel"), None)
      True
    """

    key: AnyType
    exact: bool = True

    def __call__(self, path: Path, value: AnyType) -> bool:
        """Whether `path` has such a part."""
        if self.exact:
            return self.key in path
        return any(str(self.key) in str(part) for part in path)


class PathIn:
    """Matches exactly the given paths.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.filterlib.PathIn(("head", "bias"))(("head", "bias"), None)
      True
    """

    def __init__(self, *paths: Path):
        self.paths: frozenset[Path] = frozenset(tuple(path) for path in paths)

    def __call__(self, path: Path, value: AnyType) -> bool:
        """Whether `path` is one of the paths."""
        return path in self.paths

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PathIn) and other.paths == self.paths

    def __hash__(self) -> int:
        return hash((PathIn, self.paths))

    def __repr__(self) -> str:
        return f"PathIn({', '.join(map(repr, sorted(self.paths, key=repr)))})"


class _Combination:
    """Filters under one rule; `All`, `Any` and `Not` differ only in the rule."""

    def __init__(self, *filters: Filter):
        self.predicates: tuple[Predicate, ...] = tuple(map(to_predicate, filters))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.predicates == self.predicates

    def __hash__(self) -> int:
        return hash((type(self), self.predicates))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.predicates))})"


class All(_Combination):
    """Matches what every filter matches.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.All(nnx.Param, nnx.PathContains("head"))(("head",), nnx.Param(1.0))
      True
    """

    def __call__(self, path: Path, value: AnyType) -> bool:
        """Whether all filters match."""
        return all(predicate(path, value) for predicate in self.predicates)


class Any(_Combination):
    """Matches what at least one filter matches; a list of filters means the same.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.Any(nnx.Param, nnx.BatchStat)((), nnx.BatchStat(1.0))
      True
    """

    def __call__(self, path: Path, value: AnyType) -> bool:
        """Whether one of the filters matches."""
        return any(predicate(path, value) for predicate in self.predicates)


class Not(_Combination):
    """Matches what the filter does not match.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.Not(nnx.Param)((), nnx.BatchStat(1.0))
      True
    """

    def __init__(self, filter: Filter, /):
        super().__init__(filter)

    def __call__(self, path: Path, value: AnyType) -> bool:
        """Whether the filter does not match."""
        return not self.predicates[0](path, value)


@dataclasses.dataclass(frozen=True)
class Everything:
    """Matches everything; `...` and `True` mean the same.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.Everything()((), None)
      True
    """

    def __call__(self, path: Path, value: AnyType) -> bool:
        """True."""
        return True


@dataclasses.dataclass(frozen=True)
class Nothing:
    """Matches nothing; `False` and `None` mean the same.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.Nothing()((), None)
      False
    """

    def __call__(self, path: Path, value: AnyType) -> bool:
        """False."""
        return False


def to_predicate(filter: Filter) -> Predicate:
    """Turns a filter literal into a predicate `(path, value) -> bool`.

    Raises:
      TypeError: if `filter` is none of the literals.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.filterlib.to_predicate(...)
      Everything()
    """
    if isinstance(filter, (type, types.UnionType)):
        return OfType(filter)
    if isinstance(filter, str):
        return WithTag(filter)
    if filter is ... or filter is True:
        return Everything()
    if filter is None or filter is False:
        return Nothing()
    if isinstance(filter, (list, tuple)):
        return Any(*filter)
    if callable(filter):
        return filter
    raise TypeError(
        f"{filter!r} of type {type(filter).__name__} is not a filter: use a type, a "
        "str tag, a callable (path, value) -> bool, a bool, None, `...`, or a list "
        "of these"
    )


def filters_to_predicates(filters: Iterable[Filter]) -> tuple[Predicate, ...]:
    """Turns filter literals into predicates; a catch-all may only stand last.

    Raises:
      ValueError: if `...` or True is followed by a filter that could never match.
    """
    filters = tuple(filters)
    for position, literal in enumerate(filters[:-1]):
        rest = filters[position + 1 :]
        if (literal is ... or literal is True) and any(
            later is not ... and later is not True for later in rest
        ):
            raise ValueError(
                f"filter {position} is `{literal!r}`, which matches everything, but "
                f"{rest} follow: put `...` last"
            )
    return tuple(to_predicate(literal) for literal in filters)
