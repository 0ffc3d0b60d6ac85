"""Looking through object graphs: what is where, and what is shared."""

from collections.abc import Iterator
from typing import Any

from .filters import Filter, to_predicate
from .module import (
    Module,
    Pytree,
    children_of,
    has_data,
    is_data,
    is_leaf,
    iter_nodes,
)
from .paths import Key, Path, sorted_keys
from .variable import Variable


def iter_graph(node: Any, /) -> Iterator[tuple[Path, Any]]:
    """Yields (path, value) for nodes, leaves and static values, children first.

    Each node, Variable and array is yielded once, siblings in sorted order; the root
    has the path `()`.

    Example:
      >>> import nnxlite as nnx
      >>> [path for path, value in nnx.iter_graph(nnx.List([1, nnx.Param(2)]))]
      [(0,), (1,), ()]
    """
    seen: set[int] = set()

    def visit(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
        if is_data(value) or not is_leaf(value):
            if id(value) in seen:
                return
            seen.add(id(value))
            if not (isinstance(value, tuple) and not has_data(value)):
                children = children_of(value)
                for key in sorted_keys(children):
                    yield from visit(children[key], (*path, key))
        yield path, value

    return visit(node, ())


def iter_modules(module: Any, /) -> Iterator[tuple[Path, Any]]:
    """Yields (path, node) for every node once, children first.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> [path for path, module in nnx.iter_modules(model)]
      [('layers', 0), ('layers',), ()]
    """
    return (
        (path, node) for path, node in iter_nodes(module) if isinstance(node, Module)
    )


def iter_children(node: Any, /) -> Iterator[tuple[Key, Any]]:
    """Yields (key, child) for the direct children that are nodes or Variables.

    Example:
      >>> import nnxlite as nnx
      >>> [key for key, child in nnx.iter_children(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))]
      ['bias', 'kernel']
    """
    items = children_of(node)
    for key in sorted_keys(items):
        if isinstance(items[key], (Pytree, Variable)):
            yield key, items[key]


def iter_module_children(node: Any, /) -> Iterator[tuple[Key, Any]]:
    """Yields (key, child) for the direct children that are nodes.

    Example:
      >>> import nnxlite as nnx
      >>> [key for key, child in nnx.iter_module_children(nnx.Sequential(nnx.relu))]
      ['layers']
    """
    return ((k, child) for k, child in iter_children(node) if isinstance(child, Pytree))


def find_duplicates(node: Any, /, *, only: Filter = ...) -> list[list[Path]]:
    """The paths of each object that is referred to more than once.

    Example:
      >>> import nnxlite as nnx
      >>> layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
      >>> nnx.find_duplicates(nnx.List([layer, layer]))
      [[(0,), (1,)]]
    """
    matches = to_predicate(only)
    found: dict[int, tuple[Any, list[Path]]] = {}

    def visit(value: Any, path: Path) -> None:
        if isinstance(value, (Pytree, Variable)):
            _, paths = found.setdefault(id(value), (value, []))
            paths.append(path)
            if len(paths) > 1:
                return
        items = children_of(value)
        for key in sorted_keys(items):
            visit(items[key], (*path, key))

    visit(node, ())
    return [
        paths
        for value, paths in found.values()
        if len(paths) > 1 and matches(paths[0], value)
    ]
