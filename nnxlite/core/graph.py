"""The one walk: object graphs taken apart into a GraphDef and leaves, and back.

Taking apart visits nodes depth first, the children of each in sorted order, and writes
a *record* for everything it meets: a node with its keys, a Variable with its kind and
metadata, an array, a static value, or a *reference* to an object met before. The
records, a flat tuple, are the GraphDef: hashable, compared by value, the static half.
The Variables and arrays, in the same order, are the leaves. Putting together reads the
records back. Objects met are numbered in order; a walk may start with numbers given
to objects that are known already, which come out as references: that is how a
transform tells its caller's objects from new ones.

What users call stands on the walk: `splitting`, `iteration` and `changes`. How arrays
cross JAX is not its concern.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import jax

from .arrays import is_array
from .errors import name_of
from .filters import Filter, to_predicate
from .metadata import Metadata
from .module import (
    Pytree,
    _data_types,
    _empty,
    has_data,
    is_data,
    is_leaf,
    pytree_children,
)
from .paths import Key, Path, format_path, sorted_keys
from .reprs import static_repr
from .statics import Static
from .variable import Variable


class NodeRecord(NamedTuple):
    """A node: its class, the keys of its children in visiting order, and its form."""

    type: type
    keys: tuple[Key, ...]
    form: Any


class ContainerRecord(NamedTuple):
    """A pytree that is no node: its keys in visiting order, and how to rebuild it.

    `order` says where each visited child belongs; `treedef` is None for a dict.
    """

    treedef: Any
    keys: tuple[Key, ...]
    order: tuple[int, ...]


class VariableRecord(NamedTuple):
    """A Variable: its class and metadata; its value is a leaf."""

    type: type
    metadata: Metadata


class ArrayRecord(NamedTuple):
    """An array, or another value marked as data, which is a leaf itself."""

    def __repr__(self) -> str:
        return "ArrayRecord()"


class Reference(NamedTuple):
    """An object met before, by its number."""

    number: int


class Outside(NamedTuple):
    """An object that belongs to the surroundings and is no part of what was taken."""

    object: Any


ARRAY = ArrayRecord()
_MANY = 100  # lines of text, after which a GraphDef is cut
_NEVER_DATA = frozenset({int, float, complex, bool, str, bytes, type(None), type})


class GraphDef:
    """The static half of an object graph: hashable, compared by value.

    It holds everything but the leaves: classes, keys, static values, kinds and
    metadata of Variables, and what is shared. It is a JAX pytree without leaves.

    Example:
      >>> import nnxlite as nnx
      >>> a = nnx.graphdef(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> b = nnx.graphdef(nnx.Linear(2, 3, rngs=nnx.Rngs(1)))
      >>> a == b, a.num_leaves
      (True, 2)
    """

    def __init__(self, records: tuple[Any, ...]):
        self.records = records

    @cached_property
    def _hash(self) -> int:
        return hash(self.records)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, GraphDef)
            and hash(self) == hash(other)
            and self.records == other.records
        )

    @property
    def num_leaves(self) -> int:
        """How many Variables and arrays the graph has."""
        return len(self.paths)

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The paths of the leaves, in order."""
        return tuple(
            path
            for path, record in records_by_path(self.records)
            if isinstance(record, (VariableRecord, ArrayRecord))
        )

    def __repr__(self) -> str:
        lines, objects = [], []
        for path, record in records_by_path(self.records):
            what = described(record)
            if isinstance(record, (NodeRecord, VariableRecord)):
                objects.append(path)
                what = record.type.__name__
            elif isinstance(record, Reference):
                what = f"the same as {format_path(objects[record.number])}"
            lines.append(f"\n  {format_path(path)}: {what}")
        if len(lines) > _MANY:
            lines[_MANY:] = [f"\n  and {len(lines) - _MANY} more"]
        return f"GraphDef({''.join(lines)}\n)"

    def __reduce__(self) -> Any:
        return (GraphDef, (self.records,))


jax.tree_util.register_static(GraphDef)


class Taking:
    """One walk that takes values apart; several values may share one walk.

    Args:
      known: objects that are numbered beforehand and come out as references.
      is_outside: tells of any other object whether it is left where it is.

    Attributes:
      records: what was met, in order.
      leaves: the Variables and arrays met, in order, each once.
      paths: where each leaf was met first.
      numbers: by id, the number of each object met or known.
      objects: the objects themselves, by number.
    """

    def __init__(
        self,
        known: Iterable[Any] = (),
        is_outside: Callable[[Any], bool] = lambda obj: False,
    ):
        self.is_outside = is_outside
        self.records: list[Any] = []
        self.leaves: list[Any] = []
        self.paths: list[Path] = []
        self.objects: list[Any] = list(known)
        self.numbers: dict[int, int] = {
            id(obj): n for n, obj in enumerate(self.objects)
        }

    @property
    def graphdef(self) -> GraphDef:
        """The records so far."""
        return GraphDef(tuple(self.records))

    @property
    def pairs(self) -> list[tuple[Path, Any]]:
        """Path and leaf of each Variable and array met."""
        return list(zip(self.paths, self.leaves, strict=True))

    @property
    def values(self) -> list[Any]:
        """Of each leaf what is stored: a Variable's raw value, or the array."""
        return [x.raw_value if isinstance(x, Variable) else x for x in self.leaves]

    def take(self, value: Any, path: Path = ()) -> None:
        """Takes a value apart."""
        kind = type(value)
        if kind in _NEVER_DATA:
            self._take_static(value, path)
        elif isinstance(value, (Variable, Pytree)):
            number = self.numbers.get(id(value))
            if number is not None:
                self.records.append(Reference(number))
                return
            if self.is_outside(value):
                self.records.append(Outside(value))
                return
            self._number(value)
            if isinstance(value, Variable):
                self.records.append(VariableRecord(kind, value._metadata))
                self._leaf(value, path)
            else:
                self.take_contents(value, path)
        elif is_array(value) or kind in _data_types:
            self.records.append(ARRAY)
            self._leaf(value, path)
        elif is_leaf(value):
            self._take_static(value, path)
        else:
            self._take_container(value, path)

    def take_contents(self, node: Pytree, path: Path = ()) -> None:
        """Takes a node apart, also if it is known."""
        items = node._nnx_items()
        keys = tuple(sorted_keys(items))
        self.records.append(NodeRecord(type(node), keys, node._nnx_form()))
        marks = node._nnx_marks
        for key in keys:
            value = items[key]
            mark = marks.get(key) if marks else None
            if mark is not None and not is_data(value):
                if mark == "data" and is_leaf(value):
                    self.records.append(ARRAY)
                    self._leaf(value, (*path, key))
                    continue
                if mark == "static":
                    self._take_static(value, (*path, key))
                    continue
            elif isinstance(value, tuple) and not has_data(value):
                self._take_static(value, (*path, key))
                continue
            self.take(value, (*path, key))

    def _take_container(self, value: Any, path: Path) -> None:
        if type(value) is dict:
            treedef, keys, children = None, list(value), list(value.values())
        else:
            treedef = jax.tree.structure(value, is_leaf=lambda x: x is not value)
            keys, children = pytree_children(value)
        places = {key: place for place, key in enumerate(keys)}
        order = tuple(places[key] for key in sorted_keys(keys))
        visited = tuple(keys[place] for place in order)
        self.records.append(ContainerRecord(treedef, visited, order))
        for place in order:
            self.take(children[place], (*path, keys[place]))

    def _take_static(self, value: Any, path: Path) -> None:
        try:
            self.records.append(Static(value))
        except ValueError as error:
            raise ValueError(f"at {format_path(path)!r}: {error}") from error

    def _number(self, obj: Any) -> None:
        self.numbers[id(obj)] = len(self.objects)
        self.objects.append(obj)

    def _leaf(self, leaf: Any, path: Path) -> None:
        self.leaves.append(leaf)
        self.paths.append(path)


class Putting:
    """One walk that puts values together again from records and leaves.

    Args:
      records: as a `Taking` wrote them.
      leaf: given a record, the leaf for it. A Variable is used as it is, anything
        else becomes the value of a new one.
      known: the objects that references to the first numbers mean.
    """

    def __init__(
        self,
        records: Iterable[Any],
        leaf: Callable[[Any], Any],
        known: Iterable[Any] = (),
    ):
        self.records: Iterator[Any] = iter(records)
        self.leaf = leaf
        self.objects: list[Any] = list(known)

    def put(self) -> Any:
        """Puts the next value together."""
        record = next(self.records)
        if isinstance(record, Static):
            return record.value
        if isinstance(record, Reference):
            return self.objects[record.number]
        if isinstance(record, Outside):
            return record.object
        if isinstance(record, ArrayRecord):
            return self.leaf(record)
        if isinstance(record, VariableRecord):
            variable = self.leaf(record)
            if not isinstance(variable, Variable):
                variable = record.type.from_metadata(variable, record.metadata)
            self.objects.append(variable)
            return variable
        if isinstance(record, NodeRecord):
            node = _empty(record.type)
            self.objects.append(node)  # before its children: they may refer to it
            node._nnx_replace({key: self.put() for key in record.keys})
            node._nnx_set_form(record.form)
            return node
        return self._container(record)

    def contents(self) -> tuple[dict[Key, Any], Any]:
        """Puts the next node's children together without a node: items and form."""
        record = next(self.records)
        return {key: self.put() for key in record.keys}, record.form

    def _container(self, record: ContainerRecord) -> Any:
        children = [self.put() for _ in record.keys]
        named = zip(record.keys, children, strict=True)
        placed = dict(zip(record.order, named, strict=True))
        pairs = [placed[place] for place in range(len(children))]
        if record.treedef is None:
            return dict(pairs)
        return record.treedef.unflatten([child for _, child in pairs])


def first_difference(
    one: Iterable[Any], other: Iterable[Any]
) -> tuple[int, Path, str, str] | None:
    """Where two sequences of records of as many values first differ, or None.

    Returns:
      the number of the value, the path in it, and what is there in each.
    """
    ours, theirs = iter(one), iter(other)

    def compare(path: Path) -> tuple[Path, str, str] | None:
        here, there = next(ours), next(theirs)
        if isinstance(here, Outside) and isinstance(there, Outside):
            same = here.object is there.object
        else:  # by hash first: the treedef of a container cannot be compared with None
            same = type(here) is type(there) and hash(here) == hash(there)
            same = same and here == there
        if not same:
            shown, other = described(here), described(there)
            return path, shown, f"another {other}" if shown == other else other
        keys = here.keys if isinstance(here, (NodeRecord, ContainerRecord)) else ()
        return next(filter(None, (compare((*path, key)) for key in keys)), None)

    for number in itertools.count():
        try:
            found = compare(())
        except StopIteration:
            return None
        if found is not None:
            return number, *found
    return None


def described(record: Any) -> str:
    """A record as text."""
    if isinstance(record, Static):
        return static_repr(record.value)
    if isinstance(record, Outside):
        return name_of(record.object)
    if isinstance(record, VariableRecord):
        metadata = f" with {dict(record.metadata)}" if record.metadata else ""
        return f"a {record.type.__name__}{metadata}"
    if isinstance(record, NodeRecord):
        return f"a {record.type.__name__} with {list(record.keys)}"
    if isinstance(record, ContainerRecord):
        kind = record.treedef.unflatten(record.keys) if record.treedef else {}
        return f"a {type(kind).__name__} with {list(record.keys)}"
    return "an array" if isinstance(record, ArrayRecord) else "an object met before"


def records_by_path(records: Iterable[Any]) -> Iterator[tuple[Path, Any]]:
    """Path and record of everything in the next value of some records."""
    rest = iter(records)

    def visit(path: Path) -> Iterator[tuple[Path, Any]]:
        record = next(rest)
        yield path, record
        if isinstance(record, (NodeRecord, ContainerRecord)):
            for key in record.keys:
                yield from visit((*path, key))

    return visit(())


def taken(value: Any) -> Taking:
    """Takes one value apart."""
    walk = Taking()
    walk.take(value)
    return walk


def variables_of(value: Any, only: Filter = ...) -> list[tuple[Path, Any]]:
    """Path and Variable of all that a filter matches, each once."""
    matches = to_predicate(only)
    pairs = taken(value).pairs
    return [(p, x) for p, x in pairs if isinstance(x, Variable) and matches(p, x)]
