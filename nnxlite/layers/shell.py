"""The shell of a layer: how it makes a parameter, finds its mode, calls its kernel."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jax.typing import DTypeLike
from numpy.exceptions import AxisError

from ..core.arrays import is_array
from ..core.errors import name_of
from ..core.kinds import Param
from ..core.module import Module
from ..core.rngs import Rngs
from ..core.uninferred import Uninferred, UninferredError
from ..core.variable import Variable, set_initializer
from ..functional.kernels import configuration, frozen
from .lazy import infer, is_lazy

R = TypeVar("R")

# Functions that a layer may be given.
_STEPS = frozenset(
    (
        "activation_fn",
        "conv_general_dilated",
        "dot_general",
        "einsum_op",
        "gate_fn",
        "promote_dtype",
    )
)


class parameters:
    """Makes the parameters of a layer, each with the next key of the stream `params`.

    Args:
        rngs: gives the keys.
        dtype: of the parameters.
        kind: their class.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> from jax.nn.initializers import zeros
        >>> make = parameters(Rngs(0), "float32")
        >>> make(zeros, (2,), {"note": "bias"})
        Param(value=Array([0., 0.], dtype=float32), note='bias')
    """

    def __init__(self, rngs: Rngs, dtype: DTypeLike, kind: type[Variable[Any]] = Param):
        if not isinstance(rngs, Rngs):
            raise TypeError(
                f"rngs must be an nnx.Rngs, from which the parameters are drawn; got "
                f"{type(rngs).__name__}. Pass nnx.Rngs(seed)."
            )
        self.rngs = rngs
        self.dtype = dtype
        self.kind = kind

    def __call__(
        self,
        initializer: Callable[..., Any],
        shape: tuple[int | None, ...],
        metadata: Mapping[str, Any],
        use: bool = True,
    ) -> Any:
        """A new Param; None, and no key drawn, if not `use`."""
        if not use:
            return None
        value = initial(initializer, self.rngs.params(), shape, self.dtype)
        variable = self.kind(value, **metadata)
        set_initializer(variable, initializer)
        return variable


def check_given(layer: Any, **sizes: Any) -> None:
    """Raises a TypeError for a size that is None though no input can tell it."""
    for name, size in sizes.items():
        if size is None:
            raise TypeError(
                f"{type(layer).__name__}: {name} must be a number; only the size of "
                "the inputs may be None and is inferred."
            )


def initial(
    initializer: Callable[..., Any],
    key: Any,
    shape: tuple[int | None, ...],
    dtype: DTypeLike,
) -> Any:
    """An initial value; one still to be inferred if the shape is not known."""
    if None in shape:
        return Uninferred(key, initializer, shape, dtype)
    value = initializer(key, shape, dtype)
    if callable(value) and not is_array(value):
        name = getattr(initializer, "__name__", repr(initializer))
        raise TypeError(
            f"the initializer {name} gives a function, not an array: call it first, "
            f"such as kernel_init=nnx.initializers.{name}()"
        )
    return value


def mode(layer: Module, name: str, argument: bool | None) -> bool:
    """The argument of the call if there is one, or else the layer's attribute.

    Raises:
        ValueError: if both are None.
    """
    value = getattr(layer, name) if argument is None else argument
    if value is None:
        kind = type(layer).__name__
        raise ValueError(
            f"{name_of(layer)}: `{name}` is None, in the call and in the layer. Pass "
            f"it in the call, layer(x, {name}=True), or to the constructor, nnx.{kind}"
            f"(..., {name}=True), or set it for a whole model with model.train(), "
            f"model.eval(), or a copy from nnx.view(model, {name}=True)."
        )
    return value


def _is_pure(function: Any) -> bool:
    """Whether a step is a function of JAX or ours, which read nothing elsewhere."""
    module = str(getattr(function, "__module__", ""))
    return module.startswith(("jax.", "nnxlite.functional."))


def apply(
    layer: Module, kernel: Callable[..., R], /, *arrays: Any, **options: Any
) -> R:
    """Calls a kernel for a layer, whose class and path its errors name.

    The kernel is configured by the attributes of the layer that have the names of its
    configuration (see `functional.kernels`). A compiled kernel takes what a function
    reads from elsewhere for a constant. So where a user's function replaces a step,
    what the kernel was made of is called.

    Args:
        arrays: arrays, Variables that hold them, or None.
        options: configuration in place of attributes.
    """
    attributes, function = vars(layer), kernel
    known = configuration(kernel)
    settings: dict[str, Any] = {} if known else options
    for name, default in known:
        value = options[name] if name in options else attributes.get(name, default)
        if value is not default:  # the fewer there are, the faster the call
            settings[name] = frozen(value) if isinstance(value, list) else value
            if name in _STEPS and not _is_pure(value):
                function = inspect.unwrap(kernel)
    values = [x.value if isinstance(x, Variable) else x for x in arrays]
    try:
        return function(*values, **settings)
    except (TypeError, ValueError) as error:
        if is_lazy(error):
            infer(layer, values[0])
            return apply(layer, kernel, *arrays, **options)
        blame(error, layer, kernel.__name__)
        raise


def blame(error: Exception, layer: Any, kernel: str = "") -> None:
    """Puts class and path of the layer in which an error arose before its text."""
    if isinstance(error, AxisError):  # its text is not among its arguments
        raise ValueError(f"{name_of(layer)}: {error}") from error
    if type(error) in (TypeError, ValueError, UninferredError):
        text = str(error).removeprefix(f"{kernel}: ")
        error.args = (f"{name_of(layer)}: {text}",)
