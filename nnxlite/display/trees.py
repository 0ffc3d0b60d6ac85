"""Trees: models in notebooks, by treescope, which folds and colours them.

What is told is the outline that `repr` prints too; treescope adds arrays' pictures.
"""

import itertools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ..core.arrays import is_array, summary_of
from ..core.kinds import BatchStat, Cache, Intermediate, Param, Perturbation
from ..core.module import Pytree
from ..core.paths import format_path
from ..core.reprs import Outline, outline
from ..core.rngs import RngState
from ..core.state import State
from ..core.variable import Variable

_LINES = 40  # that are shown before anything is unfolded
_PLAIN = (int, float, str, type(None))
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
    from treescope import rendering_parts, type_registries

    for kind in _KINDS:  # we say ourselves what is shared
        type_registries.IMMUTABLE_TYPES_REGISTRY[kind] = True
    levels = [[outline(self)]]
    while below := [part for item in levels[-1] for part in item.parts]:
        levels.append(below)
    lines = itertools.accumulate(map(len, levels))
    opened = sum(count <= _LINES for count in lines) - 1
    items = itertools.chain(*levels)
    shared = dict.fromkeys(id(x.value) for x in items if x.first is not None)
    hues = {key: 137 * number % 360 for number, key in enumerate(shared)}  # far apart
    picture = _Picture(path, subtree_renderer, hues, rendering_parts)
    return picture.of(levels[0][0], max(opened, 1))


class _Picture(NamedTuple):
    """A picture of one whole.

    Attributes:
      path: of the whole, in treescope's spelling; None without paths.
      subtree: draws a value that is not ours.
      hues: of the lines below what stands in several places, by id, in degrees.
      render: treescope's parts of pictures.
    """

    path: str | None
    subtree: Callable[..., Any]
    hues: Mapping[int, int]
    render: Any

    def of(self, item: Outline, levels: int) -> Any:
        """A value with what is below it; so many levels are unfolded."""
        render, value, path = self.render, item.value, self.path
        if path is not None:  # in treescope, paths begin with a dot or a bracket
            path += format_path(item.path, root="_")[1:]
        ends, comment = (item.head, item.tail), item.comment
        below = [(part.label, self.of(part, levels - 1)) for part in item.parts]
        if item.first is not None:
            ends = f"{type(value).__name__}(", ")"
        elif isinstance(value, Variable):
            ends, metadata = (f"{type(value).__name__}(", ")"), value._metadata
            comment = "frozen, " * metadata.is_frozen + summary_of(value.raw_value)
            inner = None if path is None else f"{path}.raw_value"
            below = [("value=", self.subtree(value.raw_value, path=inner))]
            below += [(f"{name}=", self.subtree(x)) for name, x in metadata.items()]
            levels = 0 if item.path else 1
        elif not below and (is_array(value) or isinstance(value, _PLAIN)):
            return self.subtree(value, path=path)
        head, tail = (self.styled(text, value) for text in ends)
        comment = comment or "..." * bool(below)
        note = render.custom_text_color(render.text(comment), "#707070")
        if not below:
            line = render.siblings(head, note, tail)
            return render.build_one_line_tree_node(line, path)
        children = [render.siblings_with_annotations(*pair) for pair in below]
        unfolded = render.indented_children(children, comma_separated=True)
        inner = render.fold_condition(note, render.siblings("  ", note, unfolded))
        whole, states = render.siblings(inner, tail), render.ExpandState
        state = states.WEAKLY_EXPANDED if levels > 0 else states.COLLAPSED
        return render.build_custom_foldable_tree_node(whole, path, head, state)

    def styled(self, text: str, value: Any) -> Any:
        """A class, coloured by kind, underlined where it stands in several places."""
        style = f"background: {colour_of(value)}; border-radius: 3px"
        if isinstance(value, (Pytree, State)):
            style += "; font-weight: bold"
        if isinstance(value, Variable) and value._metadata.is_frozen:
            style += "; border: 1px dashed #707070"
        if id(value) in self.hues:
            hue = self.hues[id(value)]
            style += f"; border-bottom: 3px solid hsl({hue}deg 70% 45%)"
        return self.render.custom_style(self.render.text(text), style)


def colour_of(value: Any) -> str:
    """The colour of a Variable by its kind, of anything else none; in CSS."""
    if not isinstance(value, Variable):
        return "none"
    return next((x for kind, x in _COLOURS if isinstance(value, kind)), "#d9d9d9")


_KINDS = (Pytree, Variable, State)
for _kind in _KINDS:
    setattr(_kind, "__treescope_repr__", _render)  # noqa: B010
