"""Pictures: learning curves, histograms of parameters, the object graph.

The first two need the package matplotlib; the third is SVG, made here.
"""

import functools
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arrays import is_array, type_of
from ..core.filters import Filter
from ..core.graph import variables_of
from ..core.kinds import Param
from ..core.module import Pytree
from ..core.paths import format_path
from ..core.reprs import Outline, in_runs, outline
from ..core.variable import Variable
from .trees import colour_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARTS = ("train", "training", "val", "valid", "validation", "test", "eval")
_LINE, _CHARACTER, _STEP = 26, 7.3, 28  # of the graph, in pixels


def history(
    values: Mapping[str, Any] | Iterable[Any],
    *,
    x: Sequence[float] | None = None,
    x_label: str = "step",
    log: bool = False,
) -> "Figure":
    """Learning curves: a panel for each quantity.

    Names that differ only in `train_`, `test_`, `val_` or the like share a panel.

    Args:
      values: by name the values of each step, shape (steps,); or for each step a
        mapping of names to scalars, or one scalar. Numbers, arrays and Variables; what
        is missing or NaN is left out.
      x: where the values lie, shape (steps,); counted from 0 if None.
      x_label: what `x` is.
      log: whether the values are drawn on a logarithmic scale.

    Raises:
      ImportError: if the package matplotlib is missing.
      ValueError: if there is nothing to draw.

    Example:
      >>> import nnxlite as nnx
      >>> figure = nnx.plot.history({'train_loss': [3., 2.], 'test_loss': [4., 3.]})
      >>> [axes.get_title() for axes in figure.axes]
      ['loss']
    """
    if isinstance(values, Mapping):
        named = {str(name): x for name, x in values.items()}
    else:
        rows = [x if isinstance(x, Mapping) else {"value": x} for x in values]
        names = dict.fromkeys(name for row in rows for name in row)
        named = {k: [row.get(k, float("nan")) for row in rows] for k in names}
    curves = {name: _numbers(list(curve)) for name, curve in named.items()}
    panels: dict[str, list[str]] = {}
    for name in curves:
        part, _, quantity = name.partition("_")
        panels.setdefault(quantity if part in _PARTS else name, []).append(name)
    figure, axes = _panels(len(panels), "nnx.plot.history", "values", width=4.5)
    for axis, (quantity, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            curve = curves[name]
            points = np.arange(len(curve)) if x is None else np.asarray(x)
            is_there = ~np.isnan(curve)
            marker = "." if is_there.sum() < 30 else None
            label = name.partition("_")[0] if len(names) > 1 else None
            axis.plot(points[is_there], curve[is_there], marker=marker, label=label)
        axis.set(title=quantity, xlabel=x_label, yscale="log" if log else "linear")
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend()
    return figure


def parameters(model: Any, only: Filter = Param, *, bins: int = 50) -> "Figure":
    """Histograms of a model's Variables, one for each, with mean and deviation.

    Args:
      model: a Module, or anything else with Variables in it.
      only: which Variables are drawn.
      bins: how many bins a histogram has.

    Raises:
      ImportError: if the package matplotlib is missing.
      ValueError: if no Variable matches.

    Example:
      >>> import nnxlite as nnx
      >>> figure = nnx.plot.parameters(nnx.Linear(20, 30, rngs=nnx.Rngs(0)))
      >>> [axes.get_title() for axes in figure.axes]
      ['bias float32[30]', 'kernel float32[20,30]']
    """
    found = [
        (format_path(path), x)
        for path, variable in variables_of(model, only)
        for x in jax.tree.leaves(variable.raw_value)
        if is_array(x) and jnp.issubdtype(x.dtype, jnp.number) and x.size
    ]
    figure, axes = _panels(len(found), "nnx.plot.parameters", "Variables", width=3.2)
    for axis, (path, array) in zip(axes, found, strict=True):
        numbers = _numbers(array)
        if np.iscomplexobj(numbers):
            numbers = np.abs(numbers)
        finite = numbers[np.isfinite(numbers)]
        axis.hist(finite, bins=bins)
        note = f"{finite.mean():.3g} ± {finite.std():.3g}" if finite.size else ""
        if finite.size < numbers.size:
            note += f"\n{numbers.size - finite.size:,} NaN or inf"
        axis.set_title(f"{path} {type_of(array)}", fontsize="small")
        axis.set_xlabel(note, fontsize="small")
        axis.tick_params(labelsize="small")
        axis.set_yticks([])
    return figure


def _numbers(values: Any) -> np.ndarray[Any, Any]:
    if isinstance(values, list):
        values = [x.value if isinstance(x, Variable) else x for x in values]
    array = np.asarray(jax.device_get(values)).ravel()
    return array.astype(np.result_type(array.dtype, np.float32))


@functools.cache
def _chart_class() -> Any:
    """The class of our figures: matplotlib's, which notebooks show without pyplot."""
    from matplotlib.figure import Figure

    class Chart(Figure):
        def __init__(self) -> None:
            super().__init__(layout="constrained")

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Chart


def _panels(count: int, caller: str, what: str, width: float) -> tuple["Figure", Any]:
    try:
        figure = _chart_class()()
    except ImportError:
        raise ImportError(
            f"{caller} needs the package matplotlib: pip install 'nnxlite[notebooks]'"
        ) from None
    if count == 0:
        raise ValueError(f"{caller}: there are no {what} to draw")
    columns = min(count, int(10 / width))
    rows = -(-count // columns)
    figure.set_size_inches(width * columns, 0.7 * width * rows)
    return figure, [figure.add_subplot(rows, columns, n + 1) for n in range(count)]


class Drawing(str):
    """SVG text; notebooks show it as a picture."""

    def __repr__(self) -> str:
        return f"<a drawing, {len(self):,} characters of SVG>"

    def _repr_svg_(self) -> str:
        return str(self)


def graph(model: Any, *, depth: int | None = None) -> Drawing:
    """The object graph of a model, as SVG.

    A box for each object, and an arrow from each further place in which it stands.

    Args:
      model: a Module, or anything else with Modules or Variables in it.
      depth: how many levels below the model are drawn; all if None.

    Returns:
      A text: `pathlib.Path('model.svg').write_text(nnx.plot.graph(model))`.

    Raises:
      ValueError: for a negative depth.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Dict(a=nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> model['b'] = model['a']
      >>> picture = nnx.plot.graph(model)  # Dict, a, its kernel and bias, b
      >>> picture.count('class="box"'), picture.count('class="arrow"')
      (5, 1)
    """
    if depth is not None and depth < 0:
        raise ValueError(f"nnx.plot.graph: depth must not be negative, and is {depth}")
    rows: list[_Row] = []
    _collect(outline(model), -1, 0, depth, rows)
    places: dict[Any, int] = {row.item.path: n for n, row in enumerate(rows)}
    drawn = [row.drawn(number) for number, row in enumerate(rows)]
    edge = max(row.right for row in rows)
    for number, row in enumerate(rows):
        middle, first = (number + 0.5) * _LINE, row.item.first
        if row.parent >= 0:
            left, top = (row.level - 0.6) * _STEP, (row.parent + 1) * _LINE - 3
            line = f"M{left} {top}V{middle}H{row.level * _STEP}"
            drawn.append(f'<path d="{line}" stroke="#999" fill="none"/>')
        if first in places:
            edge, target = edge + 12, places[first]
            line = f"M{row.right} {middle}H{edge}V{(target + 0.5) * _LINE}"
            drawn.append(
                f'<path class="arrow" d="{line}H{rows[target].right}" fill="none" '
                f'stroke="hsl({137 * number % 360} 70% 40%)" marker-end="url(#tip)"/>'
            )
    width, height = edge + 24, len(rows) * _LINE + 8
    return Drawing(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -4 {width} {height}" '
        f'width="{width}" height="{height}" font-family="monospace" font-size="12">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
        f'<rect x="-8" y="-4" width="100%" height="100%" fill="white"/>{"".join(drawn)}'
        "</svg>"
    )


class _Row(NamedTuple):
    """An object on a line of a picture, below the row number `parent`."""

    item: Outline
    parent: int
    level: int

    @property
    def name(self) -> str:
        item = self.item
        label = item.label.rstrip("=: ") or str(item.path[-1] if item.path else "")
        return f"{label} {type(item.value).__name__}".strip()

    @property
    def note(self) -> str:
        value = self.item.value
        if isinstance(value, Variable) and self.item.first is None:
            frozen = "frozen, " if value._metadata.is_frozen else ""
            return frozen + type_of(value.raw_value)
        return self.item.comment

    @property
    def width(self) -> int:
        return int(_CHARACTER * len(self.name)) + 12

    @property
    def right(self) -> int:
        note = int(_CHARACTER * len(self.note)) + 14
        return self.level * _STEP + self.width + note

    def drawn(self, number: int) -> str:
        left, middle = self.level * _STEP, int((number + 0.5) * _LINE)
        return (
            f'<rect class="box" x="{left}" y="{middle - 10}" width="{self.width}" '
            f'height="20" rx="4" fill="{colour_of(self.item.value)}" stroke="#999"/>'
            f'<text x="{left + 6}" y="{middle + 4}">{html.escape(self.name)}</text>'
            f'<text x="{left + self.width + 8}" y="{middle + 4}" fill="#707070">'
            f"{html.escape(self.note)}</text>"
        )


def _collect(
    item: Outline, parent: int, level: int, depth: int | None, rows: list[_Row]
) -> None:
    """Adds an object and those below it."""
    rows.append(_Row(item, parent, level))
    number = len(rows) - 1
    if depth is None or level < depth:
        for part in in_runs(item.parts):
            if _is_drawn(part):
                _collect(part, number, level + 1, depth, rows)


def _is_drawn(item: Outline) -> bool:
    value = item.value
    is_object = isinstance(value, (Pytree, Variable)) or is_array(value)
    is_container = isinstance(value, (list, dict, tuple))
    return is_object and not is_container or any(map(_is_drawn, item.parts))
