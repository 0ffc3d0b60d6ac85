"""What differs between two models or States."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arrays import is_array
from ..core.graph import described, records_by_path, taken
from ..core.paths import Path, format_path


class Difference:
    """What `nnx.diff` found: false if it is nothing; printed, a line for each place.

    Attributes:
      lines: by path, what differs.
    """

    def __init__(self, lines: dict[str, str]):
        self.lines = lines

    def __bool__(self) -> bool:
        return bool(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __repr__(self) -> str:
        if not self.lines:
            return "no difference"
        return "\n".join(f"{path}: {text}" for path, text in self.lines.items())


def diff(a: Any, b: Any, *, rtol: float = 0.0, atol: float = 0.0) -> Difference:
    """Compares two models or States: structure, metadata and values, by path.

    Args:
      a, b: Modules, States, or pytrees of them.
      rtol: values closer than `atol + rtol * abs(b)` count as equal.
      atol: likewise.

    Returns:
      the differences, to be printed or asked for their truth. Of values they name the
      largest absolute and relative difference.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> a = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> b = nnx.clone(a)
      >>> b.bias += 0.5
      >>> b.use_bias = False
      >>> nnx.diff(a, b)
      bias: 3 of 3 values differ, by at most 0.5 (relative 1)
      use_bias: True -> False
      >>> bool(nnx.diff(a, a))
      False
    """
    ours, theirs = _places(a), _places(b)
    lines: dict[str, str] = {}
    gone: set[Path] = set()
    for path in sorted({**ours, **theirs}, key=lambda path: [str(x) for x in path]):
        if any(path[:size] in gone for size in range(len(path))):
            continue
        here, there = ours.get(path), theirs.get(path)
        if here is None or there is None:
            gone.add(path)
            text = f"only in the {'second' if here is None else 'first'}: "
            lines[format_path(path)] = text + (here or there or ("", None, ""))[2]
            continue
        texts = []
        is_same = here[0] == there[0]
        if not is_same:
            another = "another " if here[2] == there[2] else ""
            texts.append(f"{here[2]} -> {another}{there[2]}")
        if is_same or here[1] is not None and there[1] is not None:
            texts.append(_value_difference(here[1], there[1], rtol, atol) or "")
        if text := "; ".join(filter(None, texts)):
            lines[format_path(path)] = text
    return Difference(lines)


def _places(value: Any) -> dict[Path, tuple[Any, Any, str]]:
    """By path: the record of what is there, the value of a leaf, and text."""
    walk = taken(value)
    values = dict(zip(walk.paths, walk.values, strict=True))
    return {
        path: (record, values.get(path), described(record))
        for path, record in records_by_path(walk.records)
    }


def _value_difference(a: Any, b: Any, rtol: float, atol: float) -> str | None:
    if not is_array(a) or not is_array(b):
        ours, theirs = (jax.tree.flatten(x) for x in (a, b))
        if ours[1] != theirs[1]:
            return f"{a!r} -> {b!r}"
        texts = [
            _value_difference(x, y, rtol, atol)
            if is_array(x) and is_array(y)
            else f"{x!r} -> {y!r}"
            for x, y in zip(ours[0], theirs[0], strict=True)
            if is_array(x) or is_array(y) or x != y
        ]
        return "; ".join(filter(None, texts)) or None
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{list(a.shape)} -> {b.dtype}{list(b.shape)}"
    if isinstance(a, jax.ShapeDtypeStruct) or isinstance(b, jax.ShapeDtypeStruct):
        return None
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    wide = np.complex128 if jnp.iscomplexobj(a) else np.float64
    x, y = (np.asarray(v).astype(wide) for v in (a, b))
    same = np.isclose(x, y, rtol, atol, equal_nan=True)
    if same.all():
        return None
    with np.errstate(all="ignore"):
        gap = np.abs(x - y)
        relative = np.nanmax(gap / np.maximum(np.abs(x), np.abs(y)), initial=0)
    return (
        f"{(~same).sum()} of {same.size} values differ, by at most "
        f"{np.nanmax(gap, initial=0):.3g} (relative {relative:.3g})"
    )
