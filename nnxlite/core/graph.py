"""The one walk: object graphs taken apart into a GraphDef and leaves, and back.

Taking apart visits nodes depth first, the children of each in sorted order, and writes
a *record* for everything it meets: a node with its keys, a Variable with its kind and
metadata, an array, a static value, or a *reference* to an object met before. The
records, a flat tuple, are the GraphDef: hashable, compared by value, the static half.
The Variables and arrays, in the same order, are the leaves. Putting together reads the
records back. Objects met are numbered in order; a walk may start with numbers given
to objects that are known already, which come out as references: that is how a
transform tells its caller's objects from new ones.

`split`, `merge`, `state` and `clone` are here; what looks for something in a graph is
in `iteration`, what changes one in `changes`. How arrays cross JAX is not its concern.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, cast

import jax

from .arrays import is_array
from .filters import Filter
from .frames import is_local
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
from .state import FlatState, State, partitioned, states
from .statics import Static
from .variable import Variable

T = TypeVar("T")


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
        records, paths = iter(self.records), []

        def visit(path: Path) -> None:
            record = next(records)
            if isinstance(record, (VariableRecord, ArrayRecord)):
                paths.append(path)
            elif isinstance(record, (NodeRecord, ContainerRecord)):
                for key in record.keys:
                    visit((*path, key))

        visit(())
        return tuple(paths)

    def __repr__(self) -> str:
        return f"GraphDef({', '.join(map(repr, self.records))})"

    def __reduce__(self) -> Any:
        return (GraphDef, (self.records,))

    def apply(self, state: Any, *more: Any) -> Any:
        """See `call`: `graphdef.apply(state).method(x)`."""
        return call((self, state, *more))


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
        self.numbers = {id(obj): n for n, obj in enumerate(self.objects)}

    @property
    def graphdef(self) -> GraphDef:
        """The records so far."""
        return GraphDef(tuple(self.records))

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
        self.records = iter(records)
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


def taken(value: Any) -> Taking:
    """Takes one value apart."""
    walk = Taking()
    walk.take(value)
    return walk


# split and merge


def split(node: Any, *filters: Filter) -> tuple[Any, ...]:
    """Takes an object graph apart: `graphdef, state, ... = split(node, filter, ...)`.

    The leaves of the States are the node's own Variables and arrays. A node that is a
    bare Variable or array gives the leaf in place of a State.

    Args:
      node: a Module, a Variable, or any pytree of them.
      *filters: one State for each; the first that matches wins. None: all in one.

    Raises:
      ValueError: naming leaves that no filter matches, or if `...` stands before a
        filter that could then never match.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
      >>> graphdef, params, rest = nnx.split(model, nnx.Param, ...)
      >>> list(params), list(rest)
      (['bias', 'scale'], ['mean', 'var'])
    """
    walk = taken(node)
    if walk.paths == [()]:
        return walk.graphdef, walk.leaves[0]
    pairs = zip(walk.paths, walk.leaves, strict=True)
    parts = states(partitioned(pairs, filters or (...,)))
    return walk.graphdef, *(parts if isinstance(parts, tuple) else (parts,))


def merge(
    graphdef: Any, /, *states: Any, copy: bool = False, recreate_variables: bool = True
) -> Any:
    """Puts an object graph together: the inverse of `split`.

    Args:
      graphdef: from `split`; or a `GraphState` from `unpack`.
      *states: States, nested dicts or FlatStates, in any order; leaves may be
        Variables, which become part of the new graph, or bare values, which get new
        Variables of the recorded kind.
      copy: whether Variables are copied; inside a plain JAX transform those from
        outside always are.
      recreate_variables: has no effect; Flax's spelling of the same.

    Raises:
      ValueError: naming all paths that are missing or unknown.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> same = nnx.merge(*nnx.split(model))
      >>> same is model, same.kernel is model.kernel
      (False, True)
    """
    if isinstance(graphdef, GraphState):
        states = (graphdef, *states)
        graphdef = graphdef.graphdef
    leaves: dict[Path, Any] = {}
    for part in states:
        leaves.update(_leaf_pairs(part, graphdef.paths))
    paths = graphdef.paths
    missing = [path for path in paths if path not in leaves]
    unknown = leaves.keys() - set(paths)
    if missing or unknown:
        raise ValueError(
            "the States do not fit the GraphDef: "
            + "; ".join(
                f"{what} {', '.join(map(format_path, sorted(which, key=repr)[:8]))}"
                for what, which in (("missing", missing), ("unknown", unknown))
                if which
            )
            + ". Merge the States of one `split` of this model, all of them, with "
            "nothing renamed"
        )
    ordered = iter([leaves[path] for path in paths])

    def leaf(record: Any) -> Any:
        value = next(ordered)
        if isinstance(value, Variable):
            if isinstance(record, ArrayRecord):
                return value.raw_value
            # One that lives outside a plain JAX transform could not be written inside.
            return value if not copy and is_local(value, value._home) else value.copy()
        return value

    return Putting(graphdef.records, leaf).put()


def _leaf_pairs(state: Any, paths: tuple[Path, ...]) -> Iterator[tuple[Path, Any]]:
    """The leaves of a State; a mapping in place of a Variable is its value."""
    if paths == ((),):
        yield (), state
        return
    if isinstance(state, FlatState):
        yield from state
        return
    stops = set(paths)

    def visit(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
        if path in stops or not isinstance(value, Mapping):
            yield path, value
            return
        for key in value:
            yield from visit(value[key], (*path, key))

    yield from visit(state, ())


def state(node: Any, *filters: Filter) -> Any:
    """The values half of an object graph: one State, or one for each filter.

    Unlike `split` it just selects: leaves that no filter matches are left out.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
      >>> list(nnx.state(model, nnx.BatchStat))
      ['mean', 'var']
      >>> nnx.state(model).mean is model.mean
      True
    """
    walk = taken(node)
    if walk.paths == [()]:
        return walk.leaves[0]
    pairs = zip(walk.paths, walk.leaves, strict=True)
    return states(partitioned(pairs, filters or (...,), exhaustive=False))


variables = state


def graphdef(node: Any, /) -> GraphDef:
    """The static half of an object graph.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.graphdef(nnx.Linear(2, 3, rngs=nnx.Rngs(0))).paths
      (('bias',), ('kernel',))
    """
    if isinstance(node, GraphState):
        return node.graphdef
    return taken(node).graphdef


# Copies


def clone(node: T, variables: bool = True, *, arrays: bool = False) -> T:
    """Copies an object graph, keeping what is shared in it.

    Args:
      node: a Module, a Variable, or a pytree of them.
      variables: whether Variables are copied too; if not, the copy shares them.
      arrays: whether array buffers are copied too; else they are shared, which is
        safe, since arrays are immutable.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> copy = nnx.clone(model)
      >>> copy.kernel is model.kernel, copy.kernel.value is model.kernel.value
      (False, True)
    """

    def copied(value: Any) -> Any:
        return jax.tree.map(lambda x: x.copy() if is_array(x) else x, value)

    def leaf(x: Any) -> Any:
        if not isinstance(x, Variable):
            return copied(x) if arrays else x
        if not variables:
            return x
        return x.copy(copied(x.raw_value)) if arrays else x.copy()

    walk = taken(node)
    leaves = iter([leaf(x) for x in walk.leaves])
    return Putting(walk.records, lambda record: next(leaves)).put()


# Functional forms


class GraphState(State):
    """A State that carries its GraphDef, as `unpack` gives it.

    Example:
      >>> import nnxlite as nnx
      >>> params, rest = nnx.unpack(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param, ...)
      >>> nnx.merge(params, rest).kernel.shape
      (2, 3)
    """

    __slots__ = ("graphdef",)

    def __init__(self, graphdef: GraphDef, state: Any):
        super().__init__(state)
        object.__setattr__(self, "graphdef", graphdef)

    def __reduce__(self) -> Any:
        return (GraphState, (self.graphdef, self._mapping))


jax.tree_util.register_pytree_node(
    GraphState,
    lambda state: ((State(state),), state.graphdef),
    lambda graphdef, children: GraphState(cast(GraphDef, graphdef), *children),
)


def unpack(node: Any, *filters: Filter) -> Any:
    """Like `split`, with the GraphDef inside each State: `merge(*unpack(node))`.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.merge(nnx.unpack(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))).in_features
      2
    """
    graphdef, *parts = split(node, *filters)
    packed = tuple(GraphState(graphdef, part) for part in parts)
    return packed[0] if len(packed) == 1 else packed


def call(graphdef_state: tuple[Any, ...], /) -> Any:
    """Calls a method of a split object functionally.

    `call((graphdef, state)).method(*args)` gives `(result, (graphdef, state))`, with
    what the method changed in the new pair. `[key]` and attributes lead to parts.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> pair = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> y, pair = nnx.call(pair)(jnp.ones((1, 2)))
      >>> y.shape
      (1, 3)
    """
    return _Call(graphdef_state, lambda node: node)


class _Call:
    """A place in a split object that is yet to be merged; see `call`."""

    def __init__(self, parts: tuple[Any, ...], reach: Callable[[Any], Any]):
        self._parts = parts
        self._reach = reach

    def __getattr__(self, name: str) -> "_Call":
        return _Call(self._parts, lambda node: getattr(self._reach(node), name))

    def __getitem__(self, key: Any) -> "_Call":
        return _Call(self._parts, lambda node: self._reach(node)[key])

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, tuple[Any, ...]]:
        graphdef, *parts = self._parts
        node = merge(graphdef, *parts, copy=True)
        result = self._reach(node)(*args, **kwargs)
        return result, split(node)


def flatten(node: Any, /, *, with_paths: bool = True) -> tuple[GraphDef, Any]:
    """Takes a graph apart into a GraphDef and a FlatState, or a list of leaves.

    Example:
      >>> import nnxlite as nnx
      >>> graphdef, flat = nnx.flatten(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> flat.paths
      (('bias',), ('kernel',))
    """
    walk = taken(node)
    if not with_paths:
        return walk.graphdef, walk.leaves
    pairs = zip(walk.paths, walk.leaves, strict=True)
    return walk.graphdef, FlatState(pairs, sort=False)


def unflatten(
    graphdef: GraphDef, state: Any, /, *, copy_variables: bool = False
) -> Any:
    """The inverse of `flatten`; takes a State, a FlatState, or a list of leaves.

    Example:
      >>> import nnxlite as nnx
      >>> parts = nnx.flatten(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), with_paths=False)
      >>> nnx.unflatten(*parts).out_features
      3
    """
    if isinstance(state, (list, tuple)):
        if len(state) > graphdef.num_leaves:
            raise ValueError(
                f"{len(state)} leaves for a GraphDef that has {graphdef.num_leaves}: "
                "pass the leaves that nnx.flatten gave with it"
            )
        state = FlatState(zip(graphdef.paths, state, strict=False), sort=False)
    return merge(graphdef, state, copy=copy_variables)
