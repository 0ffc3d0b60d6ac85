"""Freezing: parameters that are not trained and cannot be written."""

from typing import Any

from ..core.filters import All, Filter
from ..core.graph import variables_of
from ..core.kinds import Param
from ..core.module import Pytree
from ..core.reprs import static_repr
from ..core.variable import Variable


def freeze(model: Any, *filters: Filter, kind: Filter = Param) -> None:
    """Marks parameters as frozen, in place.

    Gradients and the optimizer leave them out, so that a compiled step does not
    compute their gradients, and writing them raises an error. The mark is the metadata
    `frozen=True`. Make the Optimizer afterwards.

    Args:
      model: a Module, a Variable, or a pytree of them.
      *filters: which parameters: those that match any of these; all by default.
      kind: what may be frozen at all; `...` includes statistics and random streams.

    Raises:
      ValueError: if nothing matches.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> make = lambda n, m: nnx.Linear(n, m, rngs=nnx.Rngs(0))
      >>> model = nnx.Sequential(make(2, 3), make(3, 1))
      >>> nnx.freeze(model.layers[0])
      >>> grads = nnx.grad(lambda model: model(jnp.ones(2)).sum())(model)
      >>> nnx.to_flat_state(grads).paths
      (('layers', 1, 'bias'), ('layers', 1, 'kernel'))
    """
    _mark(model, filters, kind, True)


def unfreeze(model: Any, *filters: Filter) -> None:
    """Takes the mark of `freeze` away, in place; by default everywhere.

    Raises:
      ValueError: if a filter is given and nothing matches.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx.freeze(model)
      >>> nnx.unfreeze(model, nnx.PathContains('bias'))
      >>> list(nnx.state(model, nnx.trainable))
      ['bias']
    """
    _mark(model, filters, Variable, False)


def _advice(filters: tuple[Filter, ...]) -> str:
    for x in filters:
        if isinstance(x, str):
            return f"; a str is a tag, of paths ask nnx.PathContains({x!r})"
        if isinstance(x, type) and issubclass(x, Pytree):
            return "; filters see Variables, nnx.select(...) finds Modules"
    return ""


def _mark(model: Any, filters: tuple[Filter, ...], kind: Filter, frozen: bool) -> None:
    chosen = filters or ...
    found = [variable for _, variable in variables_of(model, All(kind, chosen))]
    if not found and (frozen or filters):
        others = {type(x).__name__ for _, x in variables_of(model, chosen)}
        verb = "freeze" if frozen else "unfreeze"
        hint = f", but there are {', '.join(sorted(others))}" if others else ""
        raise ValueError(
            f"nnx.{verb}: nothing in {type(model).__name__} matches {filters or ...!r} "
            f"and kind={static_repr(kind)}{hint}. Look at nnx.named_parameters(model)"
            + ("; kind=... freezes other kinds too" if others else "")
            + _advice(filters)
        )
    for variable in found:
        if frozen:
            variable.set_metadata(frozen=True)
        elif variable.has_metadata("frozen"):
            variable.del_metadata("frozen")
