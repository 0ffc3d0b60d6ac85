"""Sequential: layers called one after the other."""

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ..core.containers import List
from ..core.errors import name_of
from ..core.module import Module
from ..core.rngs import Rngs


class Sequential(Module):
    """Calls its layers in order, each with what the one before returned.

    A tuple that a layer returns becomes the positional arguments of the next, a dict
    its keyword arguments. Keyword arguments of the call go to each layer that declares
    them, unless the layer before returned that argument; `rngs` to no layer that only
    declares `**kwargs`. Without layers it returns its arguments.

    Args:
        *fns: Modules or other callables.

    Attributes:
        layers: the List of them, which may be changed at any time.

    Raises:
        TypeError: if one of them is not callable.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(
        ...     nnx.Linear(2, 4, rngs=rngs), nnx.relu, nnx.Dropout(0.1, rngs=rngs)
        ... )
        >>> model.layers.append(nnx.Linear(4, 1, rngs=rngs))
        >>> model(jnp.ones((3, 2)), deterministic=True).shape
        (3, 1)
    """

    layers: List[Callable[..., Any]]

    def __init__(self, *fns: Callable[..., Any]):
        self.layers = List(fns)
        self._check_layers()

    def __call__(self, *args: Any, rngs: Rngs | None = None, **kwargs: Any) -> Any:
        """Calls the layers; returns what the last one returns.

        Raises:
            TypeError: naming a keyword that no layer declares, or the index of a layer
                that is not callable. No layer has been called then.
        """
        self._check_layers()
        for name in kwargs:
            if not self._takes(name, 0):
                raise TypeError(
                    f"{name_of(self)}: no layer takes the keyword argument {name!r}. "
                    "Check "
                    f"the spelling, or declare it, as in `def __call__(self, x, *, "
                    f"{name})`."
                )
        if rngs is not None:
            kwargs["rngs"] = rngs
        result: Any = args[0] if len(args) == 1 else args
        named: dict[str, Any] = {}
        for index, layer in enumerate(self.layers):
            if index:
                args, named = _as_arguments(result)
            bound = len(args) if index else 0
            taken = {k: v for k, v in kwargs.items() if _takes(layer, k, bound)}
            result = layer(*args, **{**taken, **named})
        return result

    def _takes(self, name: str, bound: int) -> bool:
        return any(
            _takes(layer, name, 1 if index else bound)
            for index, layer in enumerate(self.layers)
        )

    def _check_layers(self) -> None:
        for index, layer in enumerate(self.layers):
            if not callable(layer):
                raise TypeError(
                    f"{name_of(self)}: layers[{index}] is not callable, a "
                    f"{type(layer).__name__}. Give a Module with a `__call__`, or a "
                    "function of what the layer before it returns; unpack a list, "
                    "nnx.Sequential(*layers)."
                )


def _as_arguments(result: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(result, tuple):
        return result, {}
    return ((), dict(result)) if isinstance(result, dict) else ((result,), {})


class _Signature(NamedTuple):
    """Which arguments a layer takes."""

    positional: tuple[str, ...]
    keywords: frozenset[str]
    takes_all: bool


# By class of a Module, or by function: no model is kept alive.
_signatures: "WeakKeyDictionary[Any, _Signature]" = WeakKeyDictionary()


def _takes(layer: Any, name: str, bound: int) -> bool:
    """Whether a layer called with `bound` positional arguments also takes `name`.

    The first layer of a Sequential is asked with 0, so that a clash of arguments that
    the caller gave is the same error as in any other call.
    """
    if type(layer).__call__ is Sequential.__call__:
        return layer._takes(name, bound)
    key = type(layer) if isinstance(layer, Module) else layer
    try:
        signature = _signatures.get(key)
        if signature is None:
            signature = _signatures[key] = _signature_of(layer)
    except TypeError:  # not hashable, or without weak references
        signature = _signature_of(layer)
    if name in signature.positional[:bound]:
        return False
    return name in signature.keywords or signature.takes_all and name != "rngs"


def _signature_of(layer: Any) -> _Signature:
    try:
        parameters = inspect.signature(layer).parameters.values()
    except ValueError:  # some functions written in C have none
        return _Signature((), frozenset(), False)
    by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return _Signature(
        tuple(p.name for p in parameters if p.kind in by_position),
        frozenset(p.name for p in parameters if p.kind in by_name),
        any(p.kind is Parameter.VAR_KEYWORD for p in parameters),
    )
