"""How nodes print: nested, with shapes for big values and each object once.

A node met again prints as `Class(...)`. Behind the class stand the number of elements
and bytes below it.
"""

from typing import Any

import jax

from .arrays import array_repr, is_array
from .variable import Variable

_LONG = 60  # characters of a static value


def node_repr(node: Any, shown: set[int] | None = None) -> str:
    """The text of a node; `shown` holds the ids of nodes that are printed already."""
    shown = set() if shown is None else shown
    name = type(node).__name__
    if id(node) in shown:
        return f"{name}(...)"
    shown.add(id(node))
    items = node._nnx_items()
    if not items:
        return f"{name}()"
    lines = []
    for key, value in items.items():
        label = f"{key}=" if isinstance(key, str) else ""
        text = label + _value_repr(value, shown)
        lines.append("  " + text.replace("\n", "\n  "))
    return f"{name}({_counted(node)}\n" + ",\n".join(lines) + "\n)"


def _value_repr(value: Any, shown: set[int]) -> str:
    if hasattr(value, "_nnx_items"):
        return node_repr(value, shown)
    if isinstance(value, Variable):
        return repr(value)
    if is_array(value):
        return array_repr(value)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        parts = [_value_repr(part, shown) for part in value]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    if isinstance(value, type) or callable(value) and hasattr(value, "__name__"):
        return value.__name__
    text = repr(value)
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."


def _counted(node: Any) -> str:
    """` # 12 (48 B)`: see `totals`."""
    elements, size = totals(node)
    return f"  # {elements:,} ({_human(size)})" if elements else ""


def totals(node: Any) -> tuple[int, int]:
    """The elements and bytes of all arrays below a node, each once."""
    arrays: list[Any] = []
    seen: set[int] = set()

    def visit(value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Variable):
            arrays.extend(jax.tree.leaves(value.raw_value))
        elif is_array(value):
            arrays.append(value)
        elif hasattr(value, "_nnx_items"):
            for child in value._nnx_items().values():
                visit(child)
        elif isinstance(value, tuple):
            for child in value:
                visit(child)

    visit(node)
    return sum(getattr(a, "size", 1) for a in arrays), sum(map(_bytes, arrays))


def _bytes(array: Any) -> int:
    try:
        return array.size * array.dtype.itemsize
    except AttributeError:
        return 0


def _human(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError
