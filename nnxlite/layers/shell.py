"""The shell of a layer: how it makes a parameter, finds its mode, calls its kernel."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jax import Array, lax
from jax.typing import DTypeLike

from ..core.kinds import Param
from ..core.module import Module
from ..core.rngs import Rngs
from ..core.variable import Variable
from ..functional.dtypes import promote_dtype

R = TypeVar("R")

# Functions that a layer may be given, and those of them that are known to be pure.
_PURE = {
    "promote_dtype": promote_dtype,
    "dot_general": lax.dot_general,
    "conv_general_dilated": lax.conv_general_dilated,
}


def parameter(
    initializer: Callable[..., Any],
    rngs: Rngs,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    metadata: Mapping[str, Any],
) -> Param[Array]:
    """A new Param, for which the next key of `params` is drawn, used or not.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> from jax.nn.initializers import zeros
        >>> parameter(zeros, Rngs(0), (2,), "float32", {"note": "bias"})
        Param(value=Array([0., 0.], dtype=float32), note='bias')
    """
    if not isinstance(rngs, Rngs):
        raise TypeError(
            f"rngs must be an nnx.Rngs, from which the parameters are drawn; got "
            f"{type(rngs).__name__}. Pass nnx.Rngs(seed)."
        )
    return Param(initializer(rngs.params(), shape, dtype), **metadata)


def optional(use: bool, *args: Any) -> Param[Array] | None:
    """A `parameter` made of the other arguments; None, and no key drawn, if not `use`.

    Example:
        >>> optional(False, None, Rngs(0), (2,), "float32", {})
    """
    return parameter(*args) if use else None


def mode(layer: Module, name: str, argument: bool | None) -> bool:
    """The argument of the call if there is one, or else the layer's attribute.

    Raises:
        ValueError: if both are None.
    """
    value = getattr(layer, name) if argument is None else argument
    if value is None:
        kind = type(layer).__name__
        raise ValueError(
            f"{kind}: `{name}` is None, in the call and in the layer. Pass it in the "
            f"call, layer(x, {name}=True), or to the constructor, nnx.{kind}(..., "
            f"{name}=True), or set it for a whole model with model.train(), "
            f"model.eval(), or a copy from nnx.view(model, {name}=True)."
        )
    return value


def apply(
    layer: Module, kernel: Callable[..., R], /, *arrays: Any, **configuration: Any
) -> R:
    """Calls a kernel for a layer, whose class its errors name.

    A compiled kernel takes what a function reads from elsewhere for a constant. So
    where a user's function replaces a step, what the kernel was made of is called.

    Args:
        arrays: arrays, Variables that hold them, or None.
        configuration: see `functional.kernels`; a function that does a step is given
            by its name in `_PURE`.
    """
    for name, pure in _PURE.items():
        if configuration.get(name, pure) is not pure:
            kernel = inspect.unwrap(kernel)
    values = [x.value if isinstance(x, Variable) else x for x in arrays]
    try:
        return kernel(*values, **configuration)
    except (TypeError, ValueError) as error:
        if type(error) in (TypeError, ValueError):
            text = str(error).removeprefix(f"{kernel.__name__}: ")
            error.args = (f"{type(layer).__name__}: {text}",)
        raise
