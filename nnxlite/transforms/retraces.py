"""Why a function was traced again: what its traces saw, and where two of them differ.

What is kept of a trace is what the program is found by anyway, with the shapes: no
text is made before somebody asks, and no object is kept alive.
"""

import types
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..core.arrays import is_dynamic
from ..core.graph import (
    ArrayRecord,
    ContainerRecord,
    NodeRecord,
    Outside,
    Reference,
    VariableRecord,
    described,
    records_by_path,
)
from ..core.paths import format_path


class Trace(NamedTuple):
    """What one trace saw.

    Attributes:
      arguments: by name, arrays and static values among the arguments.
      roots: the names of the objects, in the order of the walk.
      records: of the objects, with keys for static values.
      odd: which of their Variables hold no arrays.
      shapes: of the arrays below the objects, Variables first.
      constants: by name, keys of what else the function sees.
    """

    arguments: dict[str, Any]
    roots: Sequence[str]
    records: Sequence[Any]
    odd: Sequence[int]
    shapes: Sequence[Any]
    constants: dict[str, Any]


def differences(old: Trace, new: Trace) -> list[str]:
    """A line for each difference between two traces."""
    before, after = _places(old), _places(new)
    nothing = (None, "nothing")
    lines = []
    for name in sorted({**before, **after}):
        here, there = before.get(name, nothing), after.get(name, nothing)
        if here[0] != there[0]:
            another = "another " if here[1] == there[1] else ""
            lines.append(f"{name}: {here[1]} -> {another}{there[1]}")
    return lines


def _places(trace: Trace) -> dict[str, tuple[Any, str]]:
    """By name, what is compared and its text."""
    places = {name: (x, _text(x)) for name, x in trace.arguments.items()}
    for name, key in trace.constants.items():
        places[name] = (key, _text(key))
    records, shapes = iter(trace.records), iter(trace.shapes)
    variables = arrays = 0

    for root in trace.roots:
        for path, record in records_by_path(records):
            shape = None
            if isinstance(record, VariableRecord):
                shape = next(shapes, None) if variables not in trace.odd else None
                variables += 1
            elif isinstance(record, ArrayRecord):
                arrays += 1
            text = _text(record) if shape is None else f"{_text(record)}, {shape}"
            places[format_path(path, root=root)] = ((record, shape), text)
    for number, shape in enumerate(shapes):
        places[f"array {number} that no Variable holds"] = (shape, str(shape))
    return places


_RECORDS = (
    NodeRecord,
    ContainerRecord,
    VariableRecord,
    ArrayRecord,
    Outside,
    Reference,
)


def _text(value: Any) -> str:
    """A record, a static key, or the type of an array, as text."""
    if isinstance(value, _RECORDS):
        return described(value)
    if not isinstance(value, tuple) or not value:
        return str(value)
    kind, *parts = value
    if kind is types.FunctionType:
        code = parts[0]
        return f"the function {code.co_name!r} of line {code.co_firstlineno}"
    if kind is float:
        return repr(float.fromhex(parts[0]))
    if len(parts) == 1 and (is_dynamic(parts[0]) or isinstance(parts[0], str)):
        return repr(parts[0])
    if len(parts) == 1:
        return getattr(parts[0], "__name__", None) or repr(parts[0])
    name = getattr(kind, "__name__", str(kind))
    return f"{name}({', '.join(map(_text, parts))})"
