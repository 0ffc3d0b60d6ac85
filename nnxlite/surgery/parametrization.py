"""Parametrizations: a weight that is a function of what is stored and trained."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.arrays import value_repr
from ..core.filters import Filter
from ..core.paths import Path, format_path
from ..core.statics import Static
from ..core.variable import MISSING, Variable
from ..layers.stack import Stack
from .paths import as_path, get_path
from .selection import Selection, at, select


def parametrize(
    model: Any,
    where: str | Path | Filter,
    function: Callable[[Any], Any],
    *,
    inverse: Callable[[Any], Any] | None = None,
) -> None:
    """Makes parameters show a function of what they store, in place.

    Layers read `function(stored)`. What is stored is what gradients, the optimizer and
    `nnx.state` see; `raw_value` reads it. The Variables are replaced by others of a
    subclass of their kind, so make the Optimizer afterwards. Parametrized again, the
    next function is given what the last one shows. In stacked models (`nnx.stack`) the
    function is given all models' arrays at once where nothing is mapped.

    Args:
      model: a Module.
      where: a path, as text or tuple, or another filter.
      function: a pure function of what is stored: an array, or any pytree of arrays
        that `inverse` gives. What it sees besides must not change.
      inverse: given a weight, what to store for it; used now, and for writing. Without,
        the present weight is stored as it is, and only `raw_value` can be written.

    Raises:
      ValueError: if nothing is there, or the function changes the shape.

    Example:
      >>> import jax, jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx.parametrize(model, 'kernel', jnp.exp, inverse=lambda w: jnp.log(abs(w)))
      >>> bool((model.kernel.value > 0).all()), type(model.kernel).__name__
      (True, 'ParametrizedParam')
    """
    places = _places(model, where)
    news = []
    for path, old in places:
        step = Static((function, inverse))
        steps = (*old.get_metadata("parametrization", ()), step)
        kind = _kind(_base(type(old)))
        stored = old.raw_value if inverse is None else _stored(steps, old.value)
        new = kind.from_metadata(stored, {**old._metadata, "parametrization": steps})
        shapes = [jax.tree.map(jnp.shape, x) for x in (old.value, new.value)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"nnx.parametrize: {format_path(path)!r} has the shape {shapes[0]}, "
                f"but the function gives {shapes[1]}"
            )
        news.append(new)
    places._changed(news)


def unparametrize(model: Any, where: str | Path | Filter) -> None:
    """Makes parametrized parameters plain ones that store what they show, in place.

    Raises:
      ValueError: if nothing parametrized is there.

    Example:
      >>> import jax, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx.parametrize(model, 'kernel', jax.nn.relu)
      >>> nnx.unparametrize(model, 'kernel')
      >>> type(model.kernel).__name__, bool((model.kernel.value >= 0).all())
      ('Param', True)
    """
    places = _places(model, where).where(
        lambda path, x: isinstance(x, Variable) and x.has_metadata("parametrization")
    )
    if not places:
        raise ValueError(f"nnx.unparametrize: nothing parametrized at {where!r}")
    news = []
    for old in places.get():
        metadata = old.get_metadata()
        del metadata["parametrization"]
        news.append(_base(type(old)).from_metadata(old.value, metadata))
    places._changed(news)


def _places(model: Any, where: Any) -> Selection[Any]:
    if isinstance(where, (str, tuple)):
        places = at(model, [as_path(where)], copy=False)
    else:
        places = select(model, where).where(Variable)
    for path, value in places:
        for size in range(len(path)):
            if isinstance(get_path(model, path[:size]), Stack):
                raise ValueError(
                    f"nnx.parametrize: {format_path(path)!r} is in a Stack, which has "
                    "one array for all layers: parametrize the layers, then make the "
                    "Stack, nnx.Stack.from_layers(layers); nnx.unstack is the reverse"
                )
        if not isinstance(value, Variable):
            raise ValueError(
                f"nnx.parametrize: {format_path(path)!r} is a {type(value).__name__}, "
                "not a Variable"
            )
    if not places:
        raise ValueError(
            f"nnx.parametrize: no Variable of {type(model).__name__} matches {where!r}"
        )
    return places


def _base(kind: type[Variable[Any]]) -> type[Variable[Any]]:
    return getattr(kind, "_parametrized", kind)


@functools.cache
def _kind(base: type[Variable[Any]]) -> type[Variable[Any]]:
    """The subclass of a kind whose Variables show a function of what they store."""

    def get_value(self: Any, *, index: Any = MISSING) -> Any:
        value = self.raw_value
        for step in self._metadata["parametrization"]:
            value = step.value[0](value)
        return value if index is MISSING or index is ... else value[index]

    def set_value(self: Any, value: Any, *, index: Any = MISSING) -> None:
        if index is not MISSING:
            value = jnp.asarray(self.get_value()).at[index].set(value)
        self.raw_value = _stored(self._metadata["parametrization"], value)

    def text(self: Any) -> str:
        shown = {"value": self.value, "stored": self.raw_value, **self._metadata}
        del shown["parametrization"]
        texts = (f"{k}={value_repr(x)}" for k, x in shown.items())
        return f"{type(self).__name__}({', '.join(texts)})"

    def reduce(self: Any) -> Any:
        revive, (_, *rest) = base.__reduce__(self)
        return (_revived, (revive, base, *rest))

    body = {
        "get_value": get_value,
        "set_value": set_value,
        "__reduce__": reduce,
        "__repr__": text,
        "_parametrized": base,
    }
    return type(f"Parametrized{base.__name__}", (base,), body)


def _stored(steps: Sequence[Static], value: Any) -> Any:
    """What to store so that a value is shown."""
    for step in reversed(steps):
        function, inverse = step.value
        if inverse is None:
            raise ValueError(
                "the value of a parametrized Variable cannot be written without an "
                f"inverse of {getattr(function, '__name__', function)!r}: give "
                "nnx.parametrize one, or write what is stored, `v.raw_value = x`"
            )
        value = inverse(value)
    return value


def _revived(revive: Any, base: Any, *rest: Any) -> Any:
    return revive(_kind(base), *rest)
