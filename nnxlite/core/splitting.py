"""Splitting object graphs into a GraphDef and States, and merging them again.

`split`, `merge`, `state` and `clone` are the walk of `graph` with names for its ends;
`unpack`, `call`, `flatten` and `unflatten` are other forms of the same.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import jax

from .arrays import is_array
from .filters import Filter
from .frames import is_local
from .graph import ArrayRecord, GraphDef, Putting, taken
from .paths import Path, format_path
from .state import FlatState, State, partitioned, states
from .uninferred import check_inferred
from .variable import Variable

T = TypeVar("T")
PureState = tuple[GraphDef, State]


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
      UninferredError: naming parameters that have no value yet.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
      >>> graphdef, params, rest = nnx.split(model, nnx.Param, ...)
      >>> list(params), list(rest)
      (['bias', 'scale'], ['mean', 'var'])
    """
    walk = taken(node)
    pairs = walk.pairs
    check_inferred(pairs, "nnx.split")
    if walk.paths == [()]:
        return walk.graphdef, walk.leaves[0]
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
    if not isinstance(graphdef, GraphDef):
        raise TypeError(
            "nnx.merge takes a GraphDef and then States, nnx.merge(graphdef, *states), "
            f"but the first argument is a {type(graphdef).__name__}"
        )
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
    pairs = walk.pairs
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
        safe, since arrays are immutable, unless one of both is given to
        `nnx.jit(..., donate_argnums=...)`; `donate="state"` leaves shared ones alone.

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


def _apply(self: GraphDef, state: Any, *more: Any) -> Any:
    """See `call`: `graphdef.apply(state).method(x)`."""
    return call((self, state, *more))


setattr(GraphDef, "apply", _apply)  # noqa: B010  (the walk itself knows no `call`)


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
    pairs = walk.pairs
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
