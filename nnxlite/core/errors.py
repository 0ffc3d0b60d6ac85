"""Errors that a user may want to catch, and the names that error messages use.

An error says what happened, where (a path in the object graph), and what to do.
When no path is at hand, `name_of` looks for the attribute that holds an object.
"""

import gc
import types
from typing import Any

import jax

from .paths import format_path


class TraceContextError(ValueError):
    """An object was used at a trace level where it has no meaning.

    Raised when a Variable or Module that lives outside a plain JAX transform is
    changed inside it, when a compiled function reaches a Variable that it does not
    visibly see, and when an object made inside a transform is used after it.

    Example:
      >>> import jax, nnxlite as nnx
      >>> count = nnx.Variable(0)
      >>> @jax.jit
      ... def step(x):
      ...     count.value = x
      ...     return x
      >>> try:
      ...     step(1.0)
      ... except nnx.TraceContextError as error:
      ...     print('nnx.jit' in str(error))
      True
    """


class HiddenError(TraceContextError):
    """A compiled function reached an object that it does not visibly see."""


def title_of(transform: str, function: Any) -> str:
    """What messages call a transformed function, such as "nnx.grad of 'loss'"."""
    return f"{transform} of '{getattr(function, '__name__', type(function).__name__)}'"


def name_of(obj: Any) -> str:
    """Names an object by its class and, where one is held, where: `Param 'Net.l.bias'`.

    Only for error messages: it asks the garbage collector who refers to `obj`, and to
    its holder, which takes milliseconds. It may miss a holder and never guesses one.
    """
    label = "an array" if isinstance(obj, jax.Array) else type(obj).__name__
    path: list[Any] = []
    seen = {id(obj)}
    holder = _holder_of(obj)
    while holder is not None:
        owner, key = holder
        path.insert(0, key)
        if id(owner) in seen:
            break
        seen.add(id(owner))
        obj, holder = owner, _holder_of(owner, only_nodes=True)
    if not path:
        return label
    return f"{label} '{format_path(tuple(path), root=type(obj).__name__)}'"


def _holder_of(obj: Any, only_nodes: bool = False) -> tuple[Any, Any] | None:
    """An object that holds another, and the attribute or key where it does."""
    for referrer in gc.get_referrers(obj):
        if hasattr(referrer, "_nnx_stamp"):
            owners = [referrer]
        elif isinstance(referrer, dict):
            owners = [o for o in gc.get_referrers(referrer) if _owns(o, referrer)]
        else:
            owners = []
        for owner in owners:
            if isinstance(owner, types.ModuleType):
                continue
            if only_nodes and not getattr(owner, "_nnx_names_parts", False):
                continue
            for key, value in _items_of(owner):
                if value is obj:
                    return owner, key
    return None


def _owns(owner: Any, attributes: dict[str, Any]) -> bool:
    return getattr(owner, "__dict__", None) is attributes


def _items_of(owner: Any) -> list[tuple[Any, Any]]:
    items: list[tuple[Any, Any]] = list(getattr(owner, "__dict__", {}).items())
    if isinstance(owner, list):
        items += enumerate(owner)
    elif isinstance(owner, dict):
        items += owner.items()
    return items
