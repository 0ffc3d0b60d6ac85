"""Trees: models in notebooks, by treescope, which folds and colours them.

treescope asks an object for its part of the picture, with the path at which it is. The
object that it asks first is the root; what is met again below it is shown once and
named after that.
"""

import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core.arrays import is_array, type_of
from ..core.module import Pytree
from ..core.reprs import totals
from ..core.state import State
from ..core.variable import Variable

_MOST = 10_000_000  # elements of an array whose statistics are shown


class _Rendering(threading.local):
    """The objects shown so far below the present root, by id, and where."""

    places: dict[int, str] | None = None


_rendering = _Rendering()


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
    """Makes a notebook show every result as `display` does.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.autovisualize()  # nothing happens outside of notebooks
    """
    if _is_notebook():
        import treescope

        treescope.basic_interactive_setup(autovisualize_arrays=True)


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _render(self: Any, path: str | None, subtree_renderer: Any) -> Any:
    """What treescope calls."""
    is_root = _rendering.places is None
    if is_root:
        _rendering.places = {}
    try:
        places = _rendering.places
        assert places is not None
        if id(self) in places:
            return _again(self, path, places[id(self)])
        places[id(self)] = path or ""
        if isinstance(self, Variable):
            return _variable(self, path, subtree_renderer)
        return _node(self, path, subtree_renderer)
    finally:
        if is_root:
            _rendering.places = None


def _again(value: Any, path: str | None, first: str) -> Any:
    from treescope import rendering_parts as parts

    where = f"  # the same as {first}" if first else "  # the root"
    return parts.build_one_line_tree_node(
        parts.siblings(
            f"{type(value).__name__}(...)", parts.comment_color(parts.text(where))
        ),
        path,
    )


def _node(node: Pytree, path: str | None, subtree: Any) -> Any:
    from treescope import rendering_parts as parts
    from treescope.formatting_util import color_from_string

    children = []
    for key, value in node._nnx_items().items():
        is_name = isinstance(key, str) and key.isidentifier()
        step = f".{key}" if is_name else f"[{key!r}]"
        label = f"{key}=" if is_name else "" if isinstance(key, int) else f"{key!r}: "
        name = getattr(value, "__name__", None)
        if callable(value) and name and not isinstance(value, (Pytree, type)):
            shown: Any = parts.text(name)
        else:
            shown = subtree(value, path=None if path is None else path + step)
        children.append(parts.siblings_with_annotations(label, shown))
    numbers, size = totals(node)
    summary = f"# {numbers:,} numbers, {size:,} bytes" if numbers else ""
    return parts.build_foldable_tree_node_from_children(
        prefix=f"{type(node).__name__}(",
        children=children,
        suffix=")",
        comma_separated=True,
        path=path,
        background_color=color_from_string(type(node).__qualname__),
        first_line_annotation=parts.comment_color(parts.text(summary)),
        expand_state=parts.ExpandState.EXPANDED
        if path == ""
        else parts.ExpandState.WEAKLY_COLLAPSED,
    )


def _variable(variable: Variable[Any], path: str | None, subtree: Any) -> Any:
    from treescope import rendering_parts as parts
    from treescope.formatting_util import color_from_string

    value, kind = variable.raw_value, type(variable)
    inner = None if path is None else f"{path}.raw_value"
    children = [
        parts.siblings_with_annotations("value=", subtree(value, path=inner)),
        *(
            parts.siblings_with_annotations(f"{name}=", subtree(x, path=None))
            for name, x in variable._metadata.items()
        ),
    ]
    frozen = "frozen, " if variable._metadata.is_frozen else ""
    summary = parts.comment_color(parts.text(f"  # {frozen}{describe(value)}"))
    return parts.build_foldable_tree_node_from_children(
        prefix=f"{kind.__name__}(",
        children=children,
        suffix=parts.siblings(")", parts.fold_condition(collapsed=summary)),
        comma_separated=True,
        path=path,
        background_color="#c8c8c8" if frozen else color_from_string(kind.__name__),
        first_line_annotation=summary,
    )


def describe(value: Any) -> str:
    """An array in a line: type, shape, statistics, and sharding where there is one."""
    if not is_array(value):
        return type(value).__name__
    text = type_of(value)
    if isinstance(value, (Tracer, jax.ShapeDtypeStruct)) or value.size == 0:
        return text
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


def _state(self: State, path: str | None, subtree_renderer: Any) -> Any:
    from treescope import repr_lib

    return repr_lib.render_dictionary_wrapper(
        object_type=type(self),
        wrapped_dict=dict(self),
        path=path,
        subtree_renderer=subtree_renderer,
    )


for _kind, _method in ((Pytree, _render), (Variable, _render), (State, _state)):
    setattr(_kind, "__treescope_repr__", _method)  # noqa: B010
