"""How nodes print: nested and short, each object once.

Left out are attributes with the default value of the constructor's argument of that
name. Layers in a row that look alike print once, as `12 x Block(...)`, and the inner
nodes of a big model as `Block(...)`. Behind a class stand the number of elements and
bytes below it; an object met again is said to be the same as at its first place.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax

from .arrays import is_array, type_of, value_repr
from .paths import Key, Path, format_path
from .variable import Variable

_LONG = 60  # characters of a static value
_WIDTH = 88  # characters of a line
_MANY = 100  # lines, from which on the inner nodes are folded


class Outline(NamedTuple):
    """A value on its way to text.

    Attributes:
      value: the value.
      path: where it is.
      label: what stands before it, such as `kernel=`.
      head, tail: the text; between the two stand the parts, if there are any.
      parts: of what it consists.
      comment: what stands behind the first line.
      form: what is equal if two elements of a list look alike; None for plain values.
      first: of an object that was met before, where.
    """

    value: Any
    path: Path
    label: str
    head: str
    tail: str = ""
    parts: tuple["Outline", ...] = ()
    comment: str = ""
    form: Any = None
    first: Path | None = None


def tree_repr(value: Any) -> str:
    """The text of a node or of a mapping with nodes, Variables and arrays in it."""
    whole = outline(value)
    depth = _depth(whole)
    lines = _lines(whole, _WIDTH, depth)
    while len(lines) > _MANY and depth > 1:
        depth -= 1
        lines = _lines(whole, _WIDTH, depth)
    return "\n".join(f"{line}  # {note}" if note else line for line, note in lines)


def outline(value: Any) -> Outline:
    """What is told of a value, each object once."""
    return _outlined("", value, (), {})


def _outlined(label: str, value: Any, path: Path, seen: dict[int, Path]) -> Outline:
    start = (value, path, label)
    is_node = hasattr(value, "_nnx_items")
    if is_node or isinstance(value, Variable):
        name = type(value).__name__
        if id(value) in seen:
            first = seen[id(value)]
            comment = f"the same as {format_path(first)}"
            head, form = f"{name}(...)", (label, comment)
            return Outline(*start, head, comment=comment, form=form, first=first)
        seen[id(value)] = path
    if isinstance(value, Variable):
        return Outline(*start, repr(value), form=(label, _form(value)))
    if is_array(value):
        return Outline(*start, value_repr(value), form=(label, type_of(value)))
    opened = _opened(value, bool(path))
    if opened is None:
        return Outline(*start, static_repr(value))
    head, tail, items = opened
    comment = _counted(value) if is_node else ""
    parts = tuple(_outlined(part, x, (*path, key), seen) for part, key, x in items)
    looks = tuple(part.form or part.label + part.head for part in parts)
    return Outline(*start, head, tail, parts, comment, (label, head, looks))


def _opened(
    value: Any, is_inner: bool
) -> tuple[str, str, Iterable[tuple[str, Key, Any]]] | None:
    """What stands before and behind the parts of a value, and these with their labels;
    None if it has no parts."""
    name = type(value).__name__
    if hasattr(value, "_nnx_items"):
        return f"{name}(", ")", _told(value)
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", None)
        if fields is not None:
            items = zip(fields, value, strict=True)
            return f"{name}(", ")", ((f"{key}=", key, x) for key, x in items)
        return (
            "(",
            ",)" if len(value) == 1 else ")",
            (("", key, x) for key, x in enumerate(value)),
        )
    if isinstance(value, Mapping):
        head, tail = ("{", "}") if is_inner else (f"{name}({{", "})")
        return head, tail, ((f"{key!r}: ", key, x) for key, x in value.items())
    return None


def _told(node: Any) -> Iterator[tuple[str, Key, Any]]:
    """The attributes and elements of a node that are worth a word."""
    defaults = _defaults(type(node))
    for key, value in node._nnx_items().items():
        if key in defaults:
            says_nothing = key.endswith(getattr(value, "__name__", "?"))
            if says_nothing or _is_same(value, defaults[key]):
                continue  # such as promote_dtype=promote_dtype
        label = "" if isinstance(node, list) else f"{key!r}: "
        yield f"{key}=" if isinstance(key, str) else label, key, value


def _defaults(kind: type) -> dict[str, Any]:
    try:
        parameters = inspect.signature(kind.__init__).parameters
    except (TypeError, ValueError):
        return {}
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }


def _is_same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    if type(value) is not type(default) or is_array(value):
        return False
    try:
        return bool(value == default)
    except Exception:  # a class of the user's, with an == of its own
        return False


def _form(variable: Variable[Any]) -> Any:
    value = variable.raw_value
    shown = type_of(value) if is_array(value) else repr(value)
    return type(variable).__name__, shown, repr(variable._metadata)


def static_repr(value: Any) -> str:
    """A static value in a few words: functions and classes by name, the rest cut."""
    if isinstance(value, type) or callable(value) and hasattr(value, "__name__"):
        return value.__name__
    text = repr(value)
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."


# Layout


def _depth(item: Outline) -> int:
    return 1 + max(map(_depth, item.parts)) if item.parts else 0


def _lines(item: Outline, width: int, depth: int) -> list[tuple[str, str]]:
    """Lines with their comments; below `depth` only what fits on one."""
    head = item.label + item.head
    inner = max(depth - 1, 0)
    blocks = [_lines(part, width - 2, inner) for part in in_runs(item.parts)]
    rows = _filled(blocks, width - 3)  # a comma may follow
    if not rows:
        return [(head + item.tail, item.comment)]
    if len(rows) == 1 and len(rows[0]) == 1:
        whole, note = rows[0][0]
        whole = head + whole + item.tail
        if not note and len(whole + item.comment) < width - 4:
            return [(whole, item.comment)]
    if depth == 0:
        return [(f"{head}...{item.tail}", item.comment)]
    lines = [(head, item.comment)]
    for number, row in enumerate(rows, 1):
        *before, (last, note) = row
        lines += [("  " + line, x) for line, x in before]
        lines.append(("  " + last + ("," if number < len(rows) else ""), note))
    return [*lines, (item.tail, "")]


def in_runs(parts: Sequence[Outline]) -> Iterator[Outline]:
    """The parts, with one for many in a row that look alike."""
    for form, group in groupby(parts, lambda part: part.form):
        first, *others = group
        if others and form is not None and not first.label:
            comment = f"each {first.comment}" if first.comment else ""
            label = f"{len(others) + 1} x "
            yield first._replace(label=label, comment=comment)
        else:
            yield from (first, *others)


def _filled(
    blocks: Sequence[list[tuple[str, str]]], width: int
) -> list[list[tuple[str, str]]]:
    """The same, with short ones together on one line."""
    rows: list[list[tuple[str, str]]] = []
    is_open = False  # whether the last row may grow
    for block in blocks:
        is_short = len(block) == 1 and not block[0][1]
        if is_short and is_open:
            joined = f"{rows[-1][0][0]}, {block[0][0]}"
            if len(joined) <= width:
                rows[-1] = [(joined, "")]
                continue
        rows.append(block)
        is_open = is_short
    return rows


# Sizes


def _counted(node: Any) -> str:
    """`12 (48 B)`: see `totals`."""
    elements, size = totals(node)
    return f"{elements:,} ({_human(size)})" if size else ""


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
