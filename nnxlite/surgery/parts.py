"""A model in parts, and a model called with other values than its own."""

from collections.abc import Mapping
from typing import Any

from ..core.changes import update
from ..core.filters import Predicate, to_predicate
from ..core.graph import taken, variables_of
from ..core.paths import Path, format_path
from ..core.splitting import GraphState, clone, merge, unpack
from ..core.state import flat_pairs
from ..core.variable import Variable


def partition(model: Any, *filters: Any) -> tuple[Any, ...]:
    """Parts of a model: one for each filter, and one with the rest.

    The parts are pytrees, for plain JAX functions, and know the model's structure:
    `nnx.combine` needs nothing else. They hold the model's own Variables.

    Args:
      model: a Module or a pytree of them.
      *filters: filters, no two of which match the same leaf (but `...` as the last one
        is the rest); or nested mappings of bools with the model's paths, where what is
        left out is False.

    Raises:
      ValueError: naming leaves that two filters match, or paths of a mapping that the
        model does not have.

    Example:
      >>> import jax, jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> bias, rest = nnx.partition(model, nnx.PathContains('bias'))
      >>> loss = lambda bias: nnx.combine(bias, rest)(jnp.ones(2)).sum()
      >>> jax.grad(loss)(bias).bias.value
      Array([1., 1., 1.], dtype=float32)
      >>> _, rest = nnx.partition(model, {'bias': True})
      >>> list(rest)
      ['kernel']
    """
    walk = taken(model)
    if filters and filters[-1] is ...:
        filters = filters[:-1]
    chosen = [
        _of_bools(f, walk.paths) if isinstance(f, Mapping) else to_predicate(f)
        for f in filters
    ]
    for path, leaf in walk.pairs:
        pairs = zip(filters, chosen, strict=True)
        both = [f for f, matches in pairs if matches(path, leaf)]
        if len(both) > 1:
            raise ValueError(
                f"nnx.partition: {format_path(path)!r} matches {both[0]!r} and "
                f"{both[1]!r}: make one of them nnx.All(..., nnx.Not(...))"
            )
    return unpack(model, *chosen, ...) if chosen else (unpack(model),)


def _of_bools(tree: Mapping[Any, Any], paths: list[Path]) -> Predicate:
    """The filter of a nested mapping of bools; a bool holds for all below it."""
    wanted = {
        path: bool(x.get_value() if isinstance(x, Variable) else x)
        for path, x in flat_pairs(tree)
    }
    starts = {path[:n] for path in paths for n in range(len(path) + 1)}
    unknown = [format_path(path) for path in wanted if path not in starts]
    if unknown:
        raise ValueError(
            f"nnx.partition: the model has nothing at {', '.join(unknown[:8])}; it has "
            f"{', '.join(format_path(path) for path in paths[:8])}"
        )
    return lambda path, _: any(
        wanted.get(path[:n], False) for n in range(len(path) + 1)
    )


def combine(*parts: Any) -> Any:
    """The model of the parts that `partition` gave, in any order.

    Parts that hold Variables share them with the model.

    Raises:
      TypeError: for something else than such a part.
      ValueError: naming what two parts have, or what none has.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx.combine(*nnx.partition(model, nnx.Param)).kernel is model.kernel
      True
    """
    if not parts:
        raise TypeError("nnx.combine takes the parts that nnx.partition gave, not none")
    seen: set[Path] = set()
    for part in parts:
        if not isinstance(part, GraphState):
            raise TypeError(
                "nnx.combine takes the parts that nnx.partition gave, not a "
                f"{type(part).__name__}"
            )
        paths = {path for path, _ in flat_pairs(part)}
        if both := seen & paths:
            raise ValueError(
                f"nnx.combine: two parts have {format_path(min(both, key=repr))!r}: "
                "combine each part of one partition once"
            )
        if part.graphdef != parts[0].graphdef:
            raise ValueError(
                "nnx.combine: the parts belong to models of different structure: "
                "combine the parts of one partition"
            )
        seen |= paths
    return merge(*parts)


def call_with(model: Any, state: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Calls a model with other values in place of some of its own.

    What the call writes is written to a copy: the model does not change. The result
    can be differentiated with respect to the state.

    Args:
      model: a Module.
      state: a State or nested dict of arrays; what it leaves out is the model's own.
      *args, **kwargs: what the model is called with.

    Raises:
      ValueError: naming what does not fit the model.

    Example:
      >>> import jax, jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> loss = lambda b: nnx.call_with(model, {'bias': b}, jnp.ones(2)).sum()
      >>> jax.grad(loss)(jnp.zeros(3))
      Array([1., 1., 1.], dtype=float32)
    """
    copy = clone(model)
    for _, variable in variables_of(copy):
        if variable._metadata.is_frozen:
            variable.set_metadata(frozen=False)
    update(copy, state)
    return copy(*args, **kwargs)
