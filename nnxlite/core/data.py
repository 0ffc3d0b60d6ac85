"""Saying by hand what an attribute is: `data`, `static`, and dataclasses of nodes."""

import dataclasses
from typing import Any, dataclass_transform

from .module import _DATA, _STATIC, Marked, _check_static, _data_in, iter_nodes
from .paths import format_path
from .variable import MISSING


def data(value: Any = MISSING, /, **kwargs: Any) -> Any:
    """Marks an attribute as data, whatever its value is.

    Without a value it is a dataclass field: `x: float = nnx.data(default=0.0)`.

    Example:
      >>> import nnxlite as nnx
      >>> class Scale(nnx.Module):
      ...     def __init__(self):
      ...         self.factor = nnx.data(2.0)
      >>> nnx.state(Scale())['factor']
      2.0
    """
    return _marked(_DATA, value, kwargs)


def static(value: Any = MISSING, /, **kwargs: Any) -> Any:
    """Marks an attribute as static; without a value it is a dataclass field.

    Raises:
      ValueError: if the value contains data.

    Example:
      >>> import nnxlite as nnx
      >>> class Sizes(nnx.Module):
      ...     def __init__(self):
      ...         self.sizes = nnx.static((1, 2))
      >>> len(nnx.state(Sizes()))
      0
    """
    if value is not MISSING:
        _check_static(value, "nnx.static")
    return _marked(_STATIC, value, kwargs)


def _marked(mark: str, value: Any, field: dict[str, Any]) -> Any:
    if value is not MISSING and not field:
        return Marked(mark, value)
    if value is not MISSING:
        field = {"default": value, **field}
    metadata = {**field.pop("metadata", {}), "nnx": mark}
    return dataclasses.field(metadata=metadata, **field)


@dataclass_transform(field_specifiers=(dataclasses.field, data, static))
def dataclass(cls: Any = None, /, **options: Any) -> Any:
    """`dataclasses.dataclass` for nodes: fields may be `nnx.data` or `nnx.static`.

    Takes the options of `dataclasses.dataclass`; but instances compare and hash by
    identity, like all nodes, unless `eq=True` is asked for, and keep nnxlite's repr.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> @nnx.dataclass
      ... class Affine(nnx.Module):
      ...     w: nnx.Param
      ...     power: int = nnx.static(default=1)
      >>> Affine(nnx.Param(jnp.ones(2))).power
      1
    """
    if cls is None:
        return lambda cls: dataclass(cls, **options)
    identity_hash = cls.__hash__
    cls = dataclasses.dataclass(cls, **{"repr": False, "eq": False, **options})
    if options.get("eq") and not options.get("unsafe_hash"):
        cls.__hash__ = identity_hash
    cls._nnx_fields = {
        f.name: f.metadata["nnx"]
        for f in dataclasses.fields(cls)
        if "nnx" in f.metadata
    }
    return cls


def check_pytree(pytree: Any) -> None:
    """Raises ValueError if an attribute marked static contains data.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.check_pytree(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    """
    for path, node in iter_nodes(pytree):
        for name, mark in node._nnx_marks.items():
            if mark == _STATIC and (found := _data_in(getattr(node, name, None))):
                raise ValueError(
                    f"{format_path((*path, name))} is marked static but contains "
                    f"data, a {type(found[0]).__name__}: assign it without nnx.static"
                )
