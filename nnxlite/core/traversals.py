"""Nested mappings as flat dicts of path tuples, and back."""

from collections.abc import Callable, Mapping
from typing import Any

from .paths import Path, set_in


class _EmptyNode:
    """Stands for an empty mapping in a flat dict."""

    def __repr__(self) -> str:
        return "empty_node"


empty_node: _EmptyNode = _EmptyNode()


def flatten_to_sequence(
    xs: Mapping[Any, Any], /, *, is_leaf: Callable[[Path, Any], bool] | None = None
) -> list[tuple[Path, Any]]:
    """Flattens nested mappings to pairs of path and value, in their own order.

    Args:
      xs: nested mappings; empty ones come out as `empty_node`.
      is_leaf: `(path, value) -> bool`, for mappings to leave whole.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.traversals.flatten_to_sequence({'a': {'b': 1}})
      [(('a', 'b'), 1)]
    """
    pairs: list[tuple[Path, Any]] = []

    def visit(value: Any, path: Path) -> None:
        if not isinstance(value, Mapping) or (is_leaf and is_leaf(path, value)):
            pairs.append((path, value))
        elif not value:
            if path:
                pairs.append((path, empty_node))
        else:
            for key in value:
                visit(value[key], (*path, key))

    visit(xs, ())
    return pairs


def flatten_mapping(
    xs: Mapping[Any, Any],
    /,
    *,
    keep_empty_nodes: bool = False,
    is_leaf: Callable[[Path, Any], bool] | None = None,
    sep: str | None = None,
) -> dict[Any, Any]:
    """Flattens nested mappings to a dict with path tuples, or joined strings, as keys.

    Args:
      xs: nested mappings.
      keep_empty_nodes: whether empty mappings stay, as `empty_node`; else they vanish.
      is_leaf: see `flatten_to_sequence`.
      sep: joins the parts of a path to a string.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.traversals.flatten_mapping({'a': {'b': 1, 'c': {}}}, sep='/')
      {'a/b': 1}
    """
    return {
        path if sep is None else sep.join(map(str, path)): value
        for path, value in flatten_to_sequence(xs, is_leaf=is_leaf)
        if keep_empty_nodes or value is not empty_node
    }


def unflatten_mapping(
    xs: Mapping[Any, Any], /, *, sep: str | None = None
) -> dict[Any, Any]:
    """The inverse of `flatten_mapping`.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.traversals.unflatten_mapping({('a', 'b'): 1})
      {'a': {'b': 1}}
    """
    nested: dict[Any, Any] = {}
    for key, value in xs.items():
        path = tuple(key.split(sep)) if sep is not None else tuple(key)
        set_in(nested, path, {} if value is empty_node else value)
    return nested
