"""State: the values half of an object graph, a nested mapping from keys to leaves.

The leaves are the graph's own Variables (and its bare arrays), under the first path
at which each is reached, so that writing a leaf of `nnx.state(model)` writes the
model. A State is a JAX pytree whose leaves are the raw arrays; keys come sorted. The
levels below the root are plain dicts where their keys can be compared, so that JAX
flattens them without calling Python.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Self

import jax

from .filters import Filter, filters_to_predicates
from .paths import Key, Path, format_path, set_in, sorted_keys
from .reprs import tree_repr

FlatPairs = Iterable[tuple[Path, Any]]


_FUNCTIONS = {  # what other libraries have as methods of a State
    "split": "split_state",
    "filter": "filter_state",
    "map": "map_state",
    "merge": "merge_state",
    "flat_state": "to_flat_state",
    "from_flat_path": "from_flat_state",
    "to_pure_dict": "to_pure_dict",
    "replace_by_pure_dict": "replace_by_pure_dict",
}


class State(MutableMapping[Key, Any]):
    """A nested mapping from attribute names and positions to Variables or arrays.

    Sub-mappings come out as States over the same storage. Keys that are identifiers
    may be read and written as attributes; `a | b` merges (right wins), `a - b` drops
    the paths of b.

    Args:
      mapping: a nested mapping, or pairs; copied down to the leaves.

    Example:
      >>> import nnxlite as nnx
      >>> state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> list(state), state.kernel.shape
      (['bias', 'kernel'], (2, 3))
    """

    __slots__ = ("_mapping", "_owner")
    _mapping: dict[Key, Any]
    _owner: "tuple[State, Key] | None"  # the level above, and this level's key in it

    def __init__(
        self,
        mapping: Mapping[Key, Any] | Iterable[tuple[Key, Any]] = (),
        /,
        *,
        _copy: bool = True,
    ):
        if isinstance(mapping, State):
            mapping = mapping._mapping
        own = _copied(dict(mapping)) if _copy else mapping
        object.__setattr__(self, "_mapping", own)
        object.__setattr__(self, "_owner", None)

    @property
    def raw_mapping(self) -> dict[Key, Any]:
        """The nested dicts themselves."""
        return self._mapping

    def __getitem__(self, key: Key) -> Any:
        value = self._mapping[key]
        if type(value) is dict:
            value = State(value, _copy=False)
            object.__setattr__(value, "_owner", (self, key))
        return value

    def __setitem__(self, key: Key, value: Any) -> None:
        if isinstance(value, State):
            value = _level(value._mapping)
        self._mapping[key] = value
        if self._owner is not None:  # the level may now have keys that JAX cannot sort
            owner, own_key = self._owner
            owner._mapping[own_key] = _level(self._mapping)

    def __delitem__(self, key: Key) -> None:
        del self._mapping[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._mapping)

    def __len__(self) -> int:
        return len(self._mapping)

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__" or name not in self._mapping:
            raise _no_entry(self, name)
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self._mapping:
            raise _no_entry(self, name)
        del self[name]

    def __or__(self, other: Mapping[Key, Any]) -> "State":
        return merge_state(self, other)

    def __sub__(self, other: Mapping[Key, Any]) -> "State":
        gone = {path for path, _ in flat_pairs(other)}
        return State.from_pairs((p, x) for p, x in flat_pairs(self) if p not in gone)

    def __repr__(self) -> str:
        return tree_repr(self)

    def __copy__(self) -> "State":
        return State(self._mapping)

    def __reduce__(self) -> Any:
        return (State, (self._mapping,))

    @classmethod
    def from_pairs(cls, pairs: FlatPairs) -> Self:
        """Makes a State from (path, leaf) pairs, with sorted keys on every level."""
        mapping: dict[Key, Any] = {}
        for path, leaf in pairs:
            set_in(mapping, path, leaf)
        return cls(_sorted(mapping), _copy=False)


def _no_entry(state: State, name: str) -> AttributeError:
    text = f"State has no entry {name!r}, only {list(state)}"
    if name in _FUNCTIONS:
        text += f"; nnx.{_FUNCTIONS[name]}(state, ...) is a function"
    return AttributeError(text)


def _copied(mapping: Mapping[Key, Any]) -> dict[Key, Any]:
    return {
        key: _level(_copied(value)) if isinstance(value, Mapping) else value
        for key, value in mapping.items()
    }


def _sorted(mapping: dict[Key, Any]) -> dict[Key, Any]:
    return {
        key: _level(_sorted(mapping[key]))
        if type(mapping[key]) is dict
        else mapping[key]
        for key in sorted_keys(mapping)
    }


def _level(mapping: dict[Key, Any]) -> Any:
    """A level below the root: a State where JAX could not sort the keys of a dict."""
    kinds = set(map(type, mapping))
    return State(mapping, _copy=False) if len(kinds) > 1 or kinds & {tuple} else mapping


# State as a JAX pytree: one call of Python a State, below it C++


def _children(state: State) -> tuple[tuple[Any, ...], tuple[Key, ...]]:
    keys = tuple(sorted_keys(state._mapping))
    return tuple([state._mapping[key] for key in keys]), keys


def _children_with_keys(state: State) -> tuple[list[Any], tuple[Key, ...]]:
    children, keys = _children(state)
    entries = [jax.tree_util.DictKey(key) for key in keys]
    return list(zip(entries, children, strict=True)), keys


def _from_children(keys: tuple[Key, ...], children: Any) -> State:
    return State(dict(zip(keys, children, strict=True)), _copy=False)


jax.tree_util.register_pytree_with_keys(
    State, _children_with_keys, _from_children, _children
)


# Flat forms


class FlatState:
    """An immutable sequence of (path, leaf) pairs, sorted by path.

    Example:
      >>> import nnxlite as nnx
      >>> flat = nnx.to_flat_state(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
      >>> flat.paths
      (('bias',), ('kernel',))
    """

    __slots__ = ("leaves", "paths")

    def __init__(self, items: FlatPairs = (), /, *, sort: bool = True):
        pairs = list(items)
        if sort:
            pairs = list(flat_pairs(State.from_pairs(pairs)))
        self.paths: tuple[Path, ...] = tuple(path for path, _ in pairs)
        self.leaves: list[Any] = [leaf for _, leaf in pairs]

    def __iter__(self) -> Iterator[tuple[Path, Any]]:
        return iter(zip(self.paths, self.leaves, strict=True))

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"FlatState({list(self)!r})"

    def to_nested_state(self) -> State:
        """The nested form."""
        return State.from_pairs(self)

    def split(self, *filters: Filter) -> "FlatState | tuple[FlatState, ...]":
        """Partitions by filters; see `split_state`."""
        parts = partitioned(self, filters)
        flat = tuple(FlatState(part, sort=False) for part in parts)
        return flat[0] if len(flat) == 1 else flat

    def filter(self, *filters: Filter) -> "FlatState | tuple[FlatState, ...]":
        """Selects by filters; see `filter_state`."""
        parts = partitioned(self, filters, exhaustive=False)
        flat = tuple(FlatState(part, sort=False) for part in parts)
        return flat[0] if len(flat) == 1 else flat

    @staticmethod
    def merge(flat: FlatPairs, *flats: FlatPairs) -> "FlatState":
        """Merges; later pairs win."""
        return FlatState({p: x for part in (flat, *flats) for p, x in part}.items())


jax.tree_util.register_pytree_node(
    FlatState,
    lambda flat: (flat.leaves, flat.paths),
    lambda paths, leaves: FlatState(zip(paths, leaves, strict=True), sort=False),
)


def flat_pairs(state: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields (path, leaf) of nested mappings in sorted order."""
    for key in sorted_keys(state):
        value = state[key]
        if isinstance(value, Mapping):
            yield from flat_pairs(value, (*path, key))
        else:
            yield (*path, key), value


def partitioned(
    pairs: FlatPairs, filters: tuple[Filter, ...], *, exhaustive: bool = True
) -> list[list[tuple[Path, Any]]]:
    """Sorts pairs into one list for each filter; the first that matches wins.

    Raises:
      ValueError: if `exhaustive` and a pair matches no filter.
    """
    predicates = filters_to_predicates(filters)
    parts: list[list[tuple[Path, Any]]] = [[] for _ in predicates]
    rest: list[tuple[Path, Any]] = []
    for path, leaf in pairs:
        for part, predicate in zip(parts, predicates, strict=True):
            if predicate(path, leaf):
                part.append((path, leaf))
                break
        else:
            rest.append((path, leaf))
    if rest and exhaustive:
        shown = ", ".join(
            f"{format_path(path)} ({type(leaf).__name__})" for path, leaf in rest[:8]
        )
        more = f" and {len(rest) - 8} more" if len(rest) > 8 else ""
        raise ValueError(
            f"no filter matches {shown}{more}: add a filter for the rest, such as "
            "`...` as the last one"
        )
    return parts


def states(parts: list[list[tuple[Path, Any]]]) -> State | tuple[State, ...]:
    """One State, or a tuple where there are several parts."""
    made = tuple(State.from_pairs(part) for part in parts)
    return made[0] if len(made) == 1 else made


def to_flat_state(state: Mapping[Key, Any]) -> FlatState:
    """Flattens nested mappings to sorted (path, leaf) pairs.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.to_flat_state(nnx.State({'b': {0: 1}, 'a': 2})).paths
      (('a',), ('b', 0))
    """
    return FlatState(flat_pairs(state), sort=False)


def from_flat_state(
    flat_state: Mapping[Path, Any] | FlatPairs, *, cls: type[State] = State
) -> State:
    """Builds a State from a mapping or pairs of paths and leaves.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.from_flat_state({('a', 'b'): 1})['a']['b']
      1
    """
    if isinstance(flat_state, Mapping):
        flat_state = flat_state.items()
    return cls.from_pairs((tuple(path), leaf) for path, leaf in flat_state)


def filter_state(
    state: Mapping[Key, Any], first: Filter, /, *filters: Filter
) -> State | tuple[State, ...]:
    """Selects leaves; with several filters a tuple, the first that matches wins.

    Example:
      >>> import nnxlite as nnx
      >>> state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> list(nnx.filter_state(state, nnx.PathContains('bias')))
      ['bias']
    """
    pairs = flat_pairs(state)
    return states(partitioned(pairs, (first, *filters), exhaustive=False))


def split_state(
    state: Mapping[Key, Any], first: Filter, /, *filters: Filter
) -> State | tuple[State, ...]:
    """Like `filter_state`, but every leaf must match.

    Raises:
      ValueError: naming the leaves that no filter matches.

    Example:
      >>> import nnxlite as nnx
      >>> state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> bias, rest = nnx.split_state(state, nnx.PathContains('bias'), ...)
      >>> list(rest)
      ['kernel']
    """
    return states(partitioned(flat_pairs(state), (first, *filters)))


def merge_state(
    state: Mapping[Key, Any],
    /,
    *states: Mapping[Key, Any],
    cls: type[State] = State,
    on_conflict: str | Callable[[Path, Any, Any], Any] = "new",
) -> State:
    """Merges States leaf by leaf.

    Args:
      state, *states: States or nested mappings.
      cls: the class of the result.
      on_conflict: which leaf of two States with the same path stays: "new", that of
        the later one; "old"; or what a function of path, old and new leaf gives.
        "error" raises.

    Raises:
      ValueError: naming the paths in conflict, with "error".

    Example:
      >>> import nnxlite as nnx
      >>> nnx.merge_state({'a': {'x': 1}}, {'a': {'y': 2}}).a.y
      2
      >>> nnx.merge_state({'a': 1}, {'a': 2}, on_conflict=lambda path, x, y: x + y).a
      3
    """
    if not callable(on_conflict) and on_conflict not in ("new", "old", "error"):
        raise ValueError(
            f"on_conflict={on_conflict!r}: use 'new', 'old', 'error', or a function "
            "(path, old, new) -> leaf"
        )
    leaves: dict[Path, Any] = {}
    clashes: list[str] = []
    for path, leaf in (pair for part in (state, *states) for pair in flat_pairs(part)):
        if path in leaves and on_conflict != "new":
            clashes.append(format_path(path))
            old = leaves[path]
            leaf = on_conflict(path, old, leaf) if callable(on_conflict) else old
        leaves[path] = leaf
    if clashes and on_conflict == "error":
        raise ValueError(
            f"more than one State has {', '.join(clashes[:8])}: say which stays, such "
            "as on_conflict='old'"
        )
    return cls.from_pairs(leaves.items())


def map_state(f: Callable[[Path, Any], Any], state: Mapping[Key, Any]) -> State:
    """Applies `f(path, leaf)` to every leaf.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.map_state(lambda path, x: x + 1, nnx.State({'a': 1})).a
      2
    """
    return State.from_pairs((path, f(path, leaf)) for path, leaf in flat_pairs(state))
