"""Trees: models in notebooks, by treescope, which folds and colours them.

What is told is the outline that `repr` prints too; treescope adds arrays' pictures.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core.arrays import is_array, type_of
from ..core.kinds import BatchStat, Cache, Intermediate, Param, Perturbation
from ..core.module import Pytree
from ..core.paths import format_path
from ..core.reprs import Outline, outline
from ..core.rngs import RngState
from ..core.state import State
from ..core.variable import Variable

_MOST = 10_000_000  # elements of an array whose statistics are shown
_LINES = 40  # that are shown before anything is unfolded
_COLOURS = (  # of kinds of Variables, the first that fits
    (Param, "#a6c8ff"),
    (BatchStat, "#a8dfb1"),
    (RngState, "#e3c2f5"),
    (Cache, "#ffd59e"),
    ((Intermediate, Perturbation), "#f9b9c0"),
)


def display(*values: Any) -> None:
    """Shows models, Variables, States or anything else as well as it can be shown here.

    In a notebook as a tree that unfolds, with Variables coloured by kind, shapes and
    statistics, pictures of arrays, and frozen parts marked; elsewhere as text.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.display(nnx.Dropout(0.5))
      Dropout(rate=0.5)
    """
    for value in values:
        if _is_notebook():
            import treescope

            treescope.display(value, autovisualize=True)
        else:
            print(value)


def autovisualize() -> None:
    """Makes a notebook show models, Variables, States and arrays as `display` does.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.autovisualize()  # nothing happens outside of notebooks
    """
    if _is_notebook():
        formatter: Any = sys.modules["IPython"].get_ipython().display_formatter
        for kind in (*_KINDS, jax.Array, np.ndarray):
            formatter.formatters["text/html"].for_type(kind, _as_html)


def _as_html(value: Any) -> str:
    import treescope

    pictures = treescope.ArrayAutovisualizer()
    with treescope.active_autovisualizer.set_scoped(pictures):
        return treescope.render_to_html(value)


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _render(self: Any, path: str | None, subtree_renderer: Callable[..., Any]) -> Any:
    """What treescope calls."""
    from treescope import type_registries

    for kind in _KINDS:  # we say ourselves what is shared
        type_registries.IMMUTABLE_TYPES_REGISTRY[kind] = True
    whole = outline(self)
    colours: dict[int, str] = {}
    for item in _items(whole):
        if item.first is not None:
            hue = 137 * len(colours) % 360  # far apart, however many there are
            colours.setdefault(id(item.value), f"hsl({hue}deg 70% 45%)")
    return _Picture(path, subtree_renderer, colours).of(whole, _open_levels(whole))


def _items(item: Outline) -> Iterator[Outline]:
    yield item
    for part in item.parts:
        yield from _items(part)


def _open_levels(whole: Outline) -> int:
    """How many levels are shown unfolded, so that it is not too long."""
    level, lines, count = [whole], 1, 0
    while level and lines + sum(len(item.parts) for item in level) <= _LINES:
        level = [part for item in level for part in item.parts]
        lines, count = lines + len(level), count + 1
    return max(count, 1)


class _Picture(NamedTuple):
    """A picture of one whole.

    Attributes:
      path: of the whole, in treescope's spelling; None without paths.
      subtree: draws a value that is not ours.
      colours: of the lines below what stands in several places, by id.
    """

    path: str | None
    subtree: Callable[..., Any]
    colours: Mapping[int, str]

    def of(self, item: Outline, levels: int) -> Any:
        """A value with what is below it; so many levels are unfolded."""
        from treescope import rendering_parts as render

        value, path = item.value, self.path
        if path is not None:  # in treescope, paths begin with a dot or a bracket
            path += format_path(item.path, root="_")[1:]
        if item.first is not None:
            head = self.styled(f"{type(value).__name__}(", value)
            tail = self.styled(")", value)
            line = render.siblings(head, _comment(item.comment), tail)
            return render.build_one_line_tree_node(line, path)
        if isinstance(value, Variable):
            array, metadata = value.raw_value, value._metadata
            frozen = "frozen, " if metadata.is_frozen else ""
            summary = render.text(frozen + describe(array))
            inner = None if path is None else f"{path}.raw_value"
            below = [("value=", self.subtree(array, path=inner))]
            below += [(f"{name}=", self.subtree(x)) for name, x in metadata.items()]
            ends = f"{type(value).__name__}(", ")"
            return self.foldable(value, path, ends, summary, below, not item.path)
        if item.parts:
            summary = _comment(item.comment or "...")
            below = [(part.label, self.of(part, levels - 1)) for part in item.parts]
            ends = item.head, item.tail
            return self.foldable(value, path, ends, summary, below, levels > 0)
        if is_array(value) or isinstance(value, (int, float, str, type(None))):
            return self.subtree(value, path=path)
        return render.build_one_line_tree_node(item.head + item.tail, path)

    def foldable(
        self,
        value: Any,
        path: str | None,
        ends: tuple[str, str],
        summary: Any,
        below: Sequence[tuple[str, Any]],
        is_open: bool,
    ) -> Any:
        from treescope import rendering_parts as render

        head, tail = (self.styled(x, value) for x in ends)
        children = [render.siblings_with_annotations(*pair) for pair in below]
        unfolded = render.indented_children(children, comma_separated=True)
        inner = render.fold_condition(summary, render.siblings("  ", summary, unfolded))
        states = render.ExpandState
        state = states.WEAKLY_EXPANDED if is_open else states.COLLAPSED
        contents = render.siblings(inner, tail)
        return render.build_custom_foldable_tree_node(contents, path, head, state)

    def styled(self, text: str, value: Any) -> Any:
        """A class, coloured by kind, underlined where it stands in several places."""
        from treescope import rendering_parts as render

        style = f"background: {colour_of(value)}; border-radius: 3px"
        if not isinstance(value, Variable):
            style += "; font-weight: bold"
        elif value._metadata.is_frozen:
            style += "; border: 1px dashed #707070"
        if id(value) in self.colours:
            style += f"; border-bottom: 3px solid {self.colours[id(value)]}"
        return render.custom_style(render.text(text), style)


def _comment(text: str) -> Any:
    from treescope import rendering_parts as render

    return render.custom_text_color(render.text(text), "#707070")


def colour_of(value: Any) -> str:
    """The colour of a Variable by its kind, of anything else transparent; in CSS."""
    if not isinstance(value, Variable):
        return "transparent"
    return next((x for kind, x in _COLOURS if isinstance(value, kind)), "#d9d9d9")


def describe(value: Any) -> str:
    """An array in a line: type, shape, statistics, and sharding where there is one."""
    text = type_of(value)
    if not is_array(value):
        return text
    if isinstance(value, (Tracer, jax.ShapeDtypeStruct)) or value.size == 0:
        return text
    if value.ndim == 0 and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"{text} {np.asarray(value)[()]:.6g}"
    sharding = getattr(value, "sharding", None)
    if sharding is not None and len(sharding.device_set) > 1:
        text += f" {getattr(sharding, 'spec', sharding)}"
    if not jnp.issubdtype(value.dtype, jnp.inexact) or value.size > _MOST:
        return text
    numbers = np.asarray(value)
    numbers = numbers.astype(np.result_type(numbers.dtype, np.float32))
    finite = numbers[np.isfinite(numbers)]
    if finite.size:
        low, high = np.abs(finite).min(), np.abs(finite).max()
        if not np.iscomplexobj(finite):
            low, high = finite.min(), finite.max()
        text += f" {finite.mean():.3g} ± {finite.std():.3g}, {low:.3g} to {high:.3g}"
    if finite.size < numbers.size:
        text += f", {numbers.size - finite.size:,} NaN or inf"
    return text


_KINDS = (Pytree, Variable, State)
for _kind in _KINDS:
    setattr(_kind, "__treescope_repr__", _render)  # noqa: B010
