"""Pictures, by matplotlib: learning curves, histograms, the object graph."""

import functools
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arrays import is_abstract, is_array, statistics, type_of
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
_CHARACTER, _LINE = 0.082, 0.27  # of the graph, in inches, with 9 points


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
        mapping of names to scalars, or one scalar. Numbers, arrays and Variables, all
        of them real; what is missing or NaN is left out.
      x: where the values lie, shape (steps,); counted from 0 if None.
      x_label: what `x` is.
      log: whether the values are drawn on a logarithmic scale.

    Raises:
      ImportError: if the package matplotlib is missing.
      ValueError: if there is nothing to draw, or it is no scalar a step.

    Example:
      >>> import nnxlite as nnx
      >>> figure = nnx.plot.history({'train_loss': [3., 2.], 'test_loss': [4., 3.]})
      >>> [axes.get_title() for axes in figure.axes]
      ['loss']
    """
    if not isinstance(values, Mapping):
        rows = [x if isinstance(x, Mapping) else {"value": x} for x in values]
        names = dict.fromkeys(name for row in rows for name in row)
        values = {k: [row.get(k, float("nan")) for row in rows] for k in names}
    panels: dict[str, list[tuple[str, Any]]] = {}
    for name, curve in values.items():
        part, _, quantity = str(name).partition("_")
        panel = panels.setdefault(quantity if part in _PARTS else str(name), [])
        if not is_array(curve):
            curve = [x.value if isinstance(x, Variable) else x for x in curve]
        numbers = np.atleast_1d(np.array(jax.device_get(curve), float))
        if numbers.size != (count := len(numbers if x is None else x)):
            found = f"{name!r} has the shape {numbers.shape}, and wants ({count},)"
            raise ValueError(f"nnx.plot.history: {found}")
        panel.append((part, numbers.ravel()))
    figure, axes = _panels(len(panels), "nnx.plot.history", "values", width=4.5)
    for axis, (quantity, curves) in zip(axes, panels.items(), strict=True):
        for part, curve in curves:
            points = np.arange(len(curve)) if x is None else np.asarray(x)
            is_there = ~np.isnan(curve)
            marker = "." if is_there.sum() < 30 else None
            label = part if len(curves) > 1 else None
            axis.plot(points[is_there], curve[is_there], marker=marker, label=label)
        axis.set(title=quantity, xlabel=x_label, yscale="log" if log else "linear")
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend()
    return figure


def parameters(model: Any, only: Filter = Param, *, bins: int = 50) -> "Figure":
    """Histograms of a model's Variables, one for each, with mean, deviation and range.

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
        (f"{format_path(path)} {type_of(x)}", *statistics(x))
        for path, variable in variables_of(model, only)
        for x in filter(is_array, jax.tree.leaves(variable.raw_value))
        if jnp.issubdtype(x.dtype, jnp.number) and x.size and not is_abstract(x)
    ]
    figure, axes = _panels(len(found), "nnx.plot.parameters", "Variables", width=3.2)
    for axis, (title, numbers, texts) in zip(axes, found, strict=True):
        axis.hist(numbers.astype(float), bins=bins)
        axis.set_title(title, fontsize="small")
        axis.set_xlabel("\n".join(texts), fontsize="small")
        axis.tick_params(left=False, labelleft=False, labelsize="small")
        axis.locator_params("x", nbins=5)
    return figure


def graph(model: Any, *, depth: int | None = None) -> "Figure":
    """The object graph of a model.

    A box for each object, and an arrow from each further place in which it stands.
    Notebooks show it as SVG, which `figure.savefig('model.svg')` writes.

    Args:
      model: a Module, a State, or a dict or tuple of such.
      depth: how many levels below it are drawn, best few if it is large; all if None.

    Raises:
      ImportError: if the package matplotlib is missing.
      ValueError: for a negative depth.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Dict(a=nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
      >>> model['b'] = model['a']
      >>> [text.get_text() for text in nnx.plot.graph(model, depth=1).axes[0].texts]
      ['Dict', '2 (12 B)', 'a Dropout', '2 (12 B)', 'b Dropout', 'the same as a', '']
    """
    if depth is not None and depth < 0:
        raise ValueError(f"nnx.plot.graph: depth must not be negative, and is {depth}")
    axis = (figure := _chart("nnx.plot.graph", "svg")).add_axes((0, 0, 1, 1))
    boxes = list(_boxes(outline(model), 0, depth))
    rows = {box.item.path: row for row, box in enumerate(boxes)}
    last, lines = {}, []  # the last row of each level, what joins the boxes
    edge = max(box.end for box in boxes)
    font: Any = {"family": "monospace", "size": 9, "va": "center_baseline"}
    font["parse_math"] = False
    for row, (item, level, name, note) in enumerate(boxes):
        left, last[level] = 4 * level, row
        colours = {"facecolor": colour_of(item.value), "edgecolor": "#999"}
        frame = {"boxstyle": "round,pad=0.25", "linewidth": 0.8, **colours}
        axis.text(left, row, name, bbox=frame, **font)
        axis.text(left + len(name) + 1.2, row, note, color="#707070", **font)
        if level:
            lines += [left - 3, left - 3, left - 0.5], [last[level - 1] + 0.4, row, row]
        if item.first in rows:
            edge, first = edge + 1.5, rows[item.first]
            tip = boxes[first].end, first
            look = {"color": f"C{len(axis.lines)}", "linewidth": 1}
            axis.plot([boxes[row].end, edge, edge], [row, row, first], **look)
            arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **look}
            axis.annotate("", tip, (edge, first), arrowprops=arrow)
    axis.plot(*lines, color="#999", linewidth=0.8, zorder=0)
    axis.set(xlim=(-1, edge + 1), ylim=(len(boxes) - 0.4, -0.6))
    axis.axis("off")
    figure.set_size_inches((edge + 2) * _CHARACTER, len(boxes) * _LINE)
    return figure


class _Box(NamedTuple):
    """An object on a row of a picture, so many levels below the whole."""

    item: Outline
    level: int
    name: str
    note: str

    @property
    def end(self) -> int:
        """Where its text ends, in characters."""
        return 4 * self.level + len(self.name) + len(self.note) + 2


def _boxes(item: Outline, level: int, depth: int | None) -> Iterator[_Box]:
    """An object and those below it."""
    value, note = item.value, item.comment
    if isinstance(value, Variable) and item.first is None:
        note = "frozen, " * value._metadata.is_frozen + type_of(value.raw_value)
    label = item.label.rstrip("=: ") or str(item.path[-1] if item.path else "")
    yield _Box(item, level, f"{label} {type(value).__name__}".strip(), note)
    if depth is None or level < depth:
        for part in filter(_is_drawn, in_runs(item.parts)):
            yield from _boxes(part, level + 1, depth)


def _is_drawn(item: Outline) -> bool:
    value = item.value
    is_object = isinstance(value, (Pytree, Variable)) or is_array(value)
    is_container = isinstance(value, (list, dict, tuple))
    return is_object and not is_container or any(map(_is_drawn, item.parts))


def _chart(caller: str, form: str) -> "Figure":
    """A figure that notebooks show in the given format, without pyplot."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            f"{caller} needs the package matplotlib: pip install 'nnxlite[notebooks]'"
        ) from None
    figure = Figure()
    setattr(figure, f"_repr_{form}_", functools.partial(_shown, figure, form))
    return figure


def _shown(figure: "Figure", form: str) -> bytes | str:
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "nnxlite"}):
        figure.savefig(file, format=form, metadata={"Date": None})
    return file.getvalue().decode() if form == "svg" else file.getvalue()


def _panels(count: int, caller: str, what: str, width: float) -> tuple["Figure", Any]:
    figure = _chart(caller, "png")
    if count == 0:
        raise ValueError(f"{caller}: there are no {what} to draw")
    figure.set_layout_engine("constrained")
    columns = min(count, int(10 / width))
    rows = -(-count // columns)
    figure.set_size_inches(width * columns, 0.7 * width * rows)
    return figure, [figure.add_subplot(rows, columns, n + 1) for n in range(count)]
