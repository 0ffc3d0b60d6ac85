"""Key paths: where something is in an object graph, and how that is printed.

A path is a tuple of keys: attribute names and dict keys, and ints for positions.
The root has the path `()`. Keys of one level are visited in sorted order, ints
before strings before anything else, so that a path's place does not depend on the
order in which attributes were assigned.
"""

from collections.abc import Iterable
from typing import Any

Key = Any
Path = tuple[Key, ...]


def sorted_keys(keys: Iterable[Key]) -> list[Key]:
    """Sorts the keys of one level; mixed types are ordered instead of refused."""
    keys = list(keys)
    try:
        return sorted(keys)
    except TypeError:
        return sorted(keys, key=order)


def order(key: Key) -> tuple[int, str, Any]:
    """What keys of any types can be sorted by."""
    if isinstance(key, int):
        return (0, "", key)
    if isinstance(key, str):
        return (1, "", key)
    return (2, type(key).__name__, repr(key))


def format_path(path: Path, root: str = "") -> str:
    """Prints a path as the expression that reaches it.

    Example:
      >>> format_path(("layers", 0, "kernel"), root="model")
      'model.layers[0].kernel'
      >>> format_path(("a b", ("x", 1)))
      "['a b'][('x', 1)]"
    """
    text = root
    for key in path:
        if isinstance(key, str) and key.isidentifier():
            text += f".{key}" if text else key
        else:
            text += f"[{key!r}]"
    return text or "the root"


def get_in(mapping: Any, path: Path) -> Any:
    """Follows `path` through nested mappings; KeyError if a part is missing."""
    for key in path:
        mapping = mapping[key]
    return mapping


def set_in(mapping: dict[Key, Any], path: Path, value: Any) -> None:
    """Writes into nested dicts at a non-empty path, making the levels it needs."""
    for key in path[:-1]:
        if type(mapping.get(key)) is not dict:  # not there, or a leaf: it is replaced
            mapping[key] = {}
        mapping = mapping[key]
    mapping[path[-1]] = value
