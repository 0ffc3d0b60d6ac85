"""Uninferred: the value of a parameter whose shape depends on inputs not seen yet.

It holds the random key that the parameter was given, so that the value does not depend
on when it is made.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax

from .paths import Path, format_path
from .variable import Variable


class UninferredError(ValueError):
    """A parameter without a value was used.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(None, 3, rngs=nnx.Rngs(0))
      >>> try:
      ...     nnx.split(model)
      ... except nnx.UninferredError as error:
      ...     print('lazy_init' in str(error))
      True
    """


@dataclasses.dataclass(frozen=True, eq=False)
class Uninferred:
    """What stands in a Variable until its shape is known.

    Attributes:
      key: the random key of the initial value, or None; several for a stacked layer.
      initializer: makes the value of a key, a shape and a dtype.
      shape: None for each size that is not known.
      dtype: of the value.
    """

    key: Any
    initializer: Callable[..., Any]
    shape: tuple[int | None, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        """How many axes the value will have."""
        return len(self.shape)

    def made(self, shape: tuple[int, ...]) -> Any:
        """The initial value of a shape; one for each key."""

        def make(key: Any) -> Any:
            return self.initializer(key, shape, self.dtype)

        for _ in range(0 if self.key is None else self.key.ndim):
            make = jax.vmap(make)
        return make(self.key)

    def followed_by(self, change: Callable[[Any], Any]) -> "Uninferred":
        """One whose value is changed when it is made."""

        def initializer(*args: Any) -> Any:
            return change(self.initializer(*args))

        return dataclasses.replace(self, initializer=initializer)

    def __reduce__(self) -> Any:
        """For pickle and copy: JAX 0.9 cannot pickle keys itself."""
        rest = self.initializer, self.shape, self.dtype
        if self.key is None:
            return Uninferred, (None, *rest)
        implementation = str(jax.random.key_impl(self.key))
        return _revived, (jax.random.key_data(self.key), implementation, *rest)

    def __jax_array__(self) -> Any:
        raise UninferredError(
            f"a parameter of shape {self.shape} has no value before the first inputs "
            "have told its size. Call nnx.lazy_init(model, *inputs) first, or call the "
            "model once outside of transforms"
        )

    def __repr__(self) -> str:
        return f"Uninferred(shape={self.shape}, dtype={jax.numpy.dtype(self.dtype)})"


jax.tree_util.register_dataclass(Uninferred, ["key"], ["initializer", "shape", "dtype"])


def _revived(data: Any, implementation: str, *rest: Any) -> Uninferred:
    return Uninferred(jax.random.wrap_key_data(data, impl=implementation), *rest)


def check_inferred(pairs: Iterable[tuple[Path, Any]], what: str) -> None:
    """Raises an UninferredError that names all Variables without a value."""
    paths = [
        format_path(path)
        for path, x in pairs
        if isinstance(x, Variable) and isinstance(x.raw_value, Uninferred)
    ]
    if paths:
        raise UninferredError(
            f"{what}: no value yet for {', '.join(map(repr, paths))}, whose sizes the "
            "first inputs tell. Call the model once, or nnx.lazy_init(model,"
            " *inputs), before"
        )
