"""The kinds of Variables that nnxlite knows, and their collection names.

A kind is a subclass of `Variable` without behaviour of its own: filters select by it.
Users add kinds by subclassing, or by name with `variable_type_from_name`.
"""

from typing import Any, TypeVar

from .paths import Path
from .variable import MISSING, Variable

A = TypeVar("A")


class Param(Variable[A]):
    """A learnable parameter: what `grad` and `Optimizer` select by default.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> nnx.Param(jnp.zeros(2))
      Param(value=Array([0., 0.], dtype=float32))
    """


class BatchStat(Variable[A]):
    """A running statistic, such as the mean of a BatchNorm.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> nnx.BatchStat(jnp.zeros(2)).shape
      (2,)
    """


class Cache(Variable[A]):
    """An autoregressive decoding cache.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> nnx.Cache(jnp.zeros(2)).shape
      (2,)
    """


class Intermediate(Variable[A]):
    """A value that a layer leaves behind for inspection.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.Intermediate((1.0,)).value
      (1.0,)
    """


class Perturbation(Intermediate[A]):
    """A zero added to an activation, whose gradient is the activation's.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> nnx.Perturbation(jnp.zeros(2)).shape
      (2,)
    """


def trainable(path: Path, value: Any) -> bool:
    """A filter: Params that are not frozen; see `freeze`.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx.freeze(model, nnx.PathContains('kernel'))
      >>> list(nnx.state(model, nnx.trainable))
      ['bias']
    """
    return isinstance(value, Param) and not value._metadata.is_frozen


_kinds: dict[str, type[Variable[Any]]] = {
    "params": Param,
    "batch_stats": BatchStat,
    "cache": Cache,
    "intermediates": Intermediate,
    "perturbations": Perturbation,
}


def variable_type_from_name(
    name: str,
    /,
    *,
    base: type[Variable[Any]] = Variable,
    allow_register: bool = False,
) -> type[Variable[Any]]:
    """Returns the Variable class registered under a collection name.

    Args:
      name: such as "params" or "batch_stats".
      base: the base class of a class made here.
      allow_register: whether an unknown name makes and registers a class.

    Raises:
      ValueError: for an unknown name.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.variable_type_from_name('params').__name__
      'Param'
    """
    if name not in _kinds:
        if not allow_register:
            raise ValueError(
                f"no Variable class is registered under {name!r}, only under "
                f"{sorted(_kinds)}: register one with "
                f"nnx.register_variable_name({name!r}, cls), or pass "
                "allow_register=True"
            )
        _kinds[name] = type(name, (base,), {})
    return _kinds[name]


def variable_name_from_type(
    typ: type[Variable[Any]], /, *, allow_register: bool = False
) -> str:
    """Returns the collection name of exactly this class.

    Args:
      typ: a Variable class.
      allow_register: whether an unknown class is registered under its own name.

    Raises:
      ValueError: for an unknown class, or one whose own name is taken.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.variable_name_from_type(nnx.BatchStat)
      'batch_stats'
    """
    for name, kind in _kinds.items():
        if kind is typ:
            return name
    if not allow_register:
        raise ValueError(
            f"{typ.__name__} is registered under no name: register it with "
            f"nnx.register_variable_name('name', {typ.__name__}), or pass "
            "allow_register=True"
        )
    register_variable_name(typ.__name__, typ)
    return typ.__name__


def register_variable_name(
    name: str, typ: Any = MISSING, *, overwrite: bool = False
) -> Any:
    """Registers a Variable class under a collection name; also a class decorator.

    Raises:
      ValueError: if another class has the name, unless `overwrite`.

    Example:
      >>> import nnxlite as nnx
      >>> @nnx.register_variable_name('docs_stats', overwrite=True)
      ... class Stats(nnx.Variable):
      ...     pass
      >>> nnx.variable_type_from_name('docs_stats') is Stats
      True
    """
    if typ is MISSING:
        return lambda cls: register_variable_name(name, cls, overwrite=overwrite)
    if _kinds.get(name, typ) is not typ and not overwrite:
        raise ValueError(
            f"the name {name!r} belongs to {_kinds[name].__name__}: choose another, or "
            "pass overwrite=True"
        )
    _kinds[name] = typ
    return typ
