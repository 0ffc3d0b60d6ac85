"""Prefixes: rules that give every array of an argument a label.

Where JAX takes a pytree prefix (`in_axes`, `in_shardings`, `argnums`, ...), a rule may
stand for an object: a mapping from filters to labels. `StateSharding` and `StateAxes`
are the same class; the label is a sharding or an axis. `DiffState` is a rule with one
filter and the number of the argument it is for.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import PartitionSpec

from ..core.arrays import is_array
from ..core.filters import Filter, Predicate, to_predicate
from ..core.module import Pytree, children_of, key_of
from ..core.paths import Path, format_path, sorted_keys
from ..core.state import flat_pairs
from ..core.variable import Variable
from .leaves import flatten_with_path


class StateLabels:
    """An ordered mapping from filters to labels; the first filter that matches wins.

    Args:
      rules: a mapping of filters to labels, or a State of labels by exact path.
    """

    rules: tuple[tuple[Predicate, Any], ...]

    def __init__(self, rules: Any, /):
        if hasattr(rules, "raw_mapping"):
            pairs = list(flat_pairs(rules))
            self.rules = tuple((_is_path(path), label) for path, label in pairs)
        else:
            pairs = rules.items() if isinstance(rules, Mapping) else rules
            self.rules = tuple(
                (to_predicate(literal), label) for literal, label in pairs
            )

    def label(self, path: Path, leaf: Any) -> Any:
        """The label of the leaf at `path`.

        Raises:
          ValueError: if no filter matches.
        """
        for predicate, label in self.rules:
            if predicate(path, leaf):
                return label
        raise ValueError(
            f"no filter of {self!r} matches {type(leaf).__name__} at "
            f"{format_path(path)!r}: add one, or `...` as the last"
        )

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.rules == self.rules

    def __hash__(self) -> int:
        return hash((type(self), self.rules))

    def __repr__(self) -> str:
        rules = ", ".join(
            f"{predicate!r}: {label!r}" for predicate, label in self.rules
        )
        return f"{type(self).__name__}({{{rules}}})"


@dataclasses.dataclass(frozen=True)
class _is_path:
    path: Path

    def __call__(self, path: Path, leaf: Any) -> bool:
        return path == self.path


class StateSharding(StateLabels):
    """Shardings for the Variables of an object, by filter.

    Example:
      >>> import jax, nnxlite as nnx
      >>> P = jax.sharding.PartitionSpec
      >>> rule = nnx.StateSharding({nnx.PathContains('kernel'): P('data'), ...: P()})
      >>> rule.label(('bias',), None) == P()
      True
    """


class Carry:
    """The label of what a loop carries from step to step; used as it is, no instance.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> add = nnx.scan(lambda total, x: (total + x, total), in_axes=(nnx.Carry, 0))
      >>> print(*add(0.0, jnp.arange(3.0)))
      3.0 [0. 0. 1.]
    """


class StateAxes(StateLabels):
    """Axes for the Variables of an object, by filter: an int, None, or `Carry`.

    Example:
      >>> import nnxlite as nnx
      >>> axes = nnx.StateAxes({nnx.Param: 0, ...: None})
      >>> axes.label(('kernel',), nnx.Param(1.0)), axes.label(('n',), nnx.Variable(1))
      (0, None)
    """


@dataclasses.dataclass(frozen=True)
class DiffState:
    """Says which Variables of one argument `grad` differentiates.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> only_bias = nnx.DiffState(0, nnx.PathContains('bias'))
      >>> list(nnx.grad(lambda m: m(jnp.ones(2)).sum(), argnums=only_bias)(model))
      ['bias']
    """

    argnum: int
    filter: Filter


def object_labels(
    arguments: Iterable[tuple[str, Any, Any]], name: str
) -> dict[int, Any]:
    """The label of each Variable below some arguments, by id.

    Args:
      arguments: of each, what to call it, the argument, and its prefix.
      name: what to call the prefixes.

    Raises:
      ValueError: for a Variable, or a bare array of a node, that gets two labels; it
        names both places.
    """
    labels: dict[Hashable, tuple[str, Any]] = {}
    for root, argument, prefix in arguments:
        for keys, part in flatten_with_path(argument):
            start = tuple(map(key_of, keys))
            for path, place, leaf in _places(part, start, _depends_on_path(prefix)):
                label = label_of(prefix, path, leaf, name)
                where = format_path(path, root=root)
                first, other = labels.setdefault(place, (where, label))
                if label != other:
                    is_variable = isinstance(leaf, Variable)
                    kind = type(leaf).__name__ if is_variable else "array"
                    raise ValueError(
                        f"Inconsistent aliasing detected: {name} gives the "
                        f"{kind} at {first} the label {other!r}, but at "
                        f"{where}, where it is too, {label!r}: give both the same"
                    )
    return {key: label for key, (_, label) in labels.items() if isinstance(key, int)}


def _depends_on_path(prefix: Any) -> bool:
    labels = labels_in(prefix)
    return any(label != labels[0] for label in labels)


def _places(
    part: Any, start: Path, is_thorough: bool
) -> Iterator[tuple[Path, Hashable, Any]]:
    """Where the Variables and bare arrays of objects are: path, place, leaf.

    The place is the id of a Variable, or that of a node and the path from there. A
    thorough search goes a second time, but not in circles, into each node that is
    reached a second time.
    """
    again: list[tuple[Path, Any, frozenset[int]]] = []

    def visit(
        value: Any, path: Path, place: Path, seen: set[int], above: frozenset[int]
    ) -> Iterator[tuple[Path, Hashable, Any]]:
        if isinstance(value, Variable):
            yield path, id(value), value
            return
        if is_array(value):
            if place:
                yield path, place, value
            return
        if isinstance(value, Pytree):
            if id(value) in seen:
                if id(value) not in above:
                    again.append((path, value, above))
                return
            seen.add(id(value))
            above, place = above | {id(value)}, (id(value),)
        children = children_of(value)
        for key in sorted_keys(children):
            yield from visit(children[key], (*path, key), (*place, key), seen, above)

    yield from visit(part, start, (), set(), frozenset())
    if is_thorough:
        for path, node, above in list(again):
            yield from visit(node, path, (), set(above), above)


def labels_in(prefix: Any) -> list[Any]:
    """All labels that a prefix may give."""
    if isinstance(prefix, StateLabels):
        return [label for _, label in prefix.rules]
    if isinstance(prefix, Mapping):
        prefix = list(prefix.values())
    if isinstance(prefix, (tuple, list)) and not isinstance(prefix, PartitionSpec):
        return [label for part in prefix for label in labels_in(part)]
    return [prefix]


def prefixes_of(
    transform: str, kind: str, prefix: Any, args: Sequence[Any]
) -> dict[int | str, Any]:
    """By position, the prefix of each argument.

    Raises:
      ValueError: if there are more or fewer than arguments.
    """
    if not isinstance(prefix, (tuple, list)) or isinstance(prefix, PartitionSpec):
        prefix = [prefix] * len(args)
    elif len(prefix) != len(args):
        raise ValueError(
            f"{kind} of {transform} has {len(prefix)} entries, but the call has "
            f"{len(args)} positional arguments: give one for each, or a single one "
            "for all"
        )
    return dict(enumerate(prefix))


def label_of_keyword(prefix: Any, default: Any = None) -> Any:
    """The label of an argument that has a name but no position.

    A prefix that is one for all is for these too; else they are mapped over their
    first axis, as in JAX, or have the default, if there are no axes.
    """
    if default is not None:
        return default
    return 0 if isinstance(prefix, (tuple, list)) or prefix is Carry else prefix


def label_of(prefix: Any, path: Path, leaf: Any, name: str) -> Any:
    """The label that the prefix called `name` gives the leaf at `path` below it."""
    while path and isinstance(prefix, (tuple, list, Mapping)):
        if isinstance(prefix, PartitionSpec):
            break
        try:
            prefix, path = prefix[path[0]], path[1:]
        except (LookupError, TypeError):
            raise ValueError(
                f"{name} has nothing for {format_path(path)!r}: {prefix!r} must have "
                "an entry for each part of what it is for"
            ) from None
    if isinstance(prefix, StateLabels):
        return prefix.label(path, leaf)
    if isinstance(prefix, (tuple, list)) and not isinstance(prefix, PartitionSpec):
        raise ValueError(
            f"{name} has {len(prefix)} entries, {prefix!r}, for one "
            f"{'array' if is_array(leaf) else type(leaf).__name__}: give a single one"
        )
    return prefix
