"""Lazy sizes: layers that learn the size of their inputs from the first ones.

Where a size is None, a layer holds `Uninferred` values. Its kernel refuses them, and
then `infer` makes the parameters: at once, or under `lazy_init` when the shapes of all
layers are known.
"""

import threading
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ..core import frames
from ..core.errors import name_of
from ..core.uninferred import Uninferred, UninferredError
from ..core.variable import Variable
from ..transforms.tracing import eval_shape

# What a layer tells of its inputs: attributes to set, and the sizes that were None.
Sizes = tuple[dict[str, Any], tuple[int, ...]]


class _Recording:
    """What a `lazy_init` has found out so far."""

    def __init__(self) -> None:
        frame = frames.current()
        self.depth = 0 if frame is None else frame.depth + 1
        self.shapes: dict[Variable[Any], tuple[int, ...]] = {}
        self.attributes: list[tuple[Any, str, Any]] = []


class _State(threading.local):
    recording: _Recording | None = None


_state = _State()


def is_lazy(error: BaseException) -> bool:
    """Whether a layer can learn from an error that a size is missing, and go on."""
    return isinstance(error, UninferredError) and may_infer()


def may_infer() -> bool:
    """Whether sizes may be inferred here: not inside of transforms."""
    frame, recording = frames.current(), _state.recording
    if recording is not None:
        return frame is not None and frame.depth == recording.depth
    return frames.is_outermost()


def lazily(call: Callable[[], Any], infer: Callable[[], Any]) -> Any:
    """Calls, and where sizes are missing that may be inferred here, once more."""
    try:
        return call()
    except UninferredError:
        if not may_infer():
            raise
    infer()
    return call()


def infer(layer: Any, inputs: Any) -> None:
    """Makes the parameters of a layer that have no value yet.

    The layer tells by its method `_sizes(inputs)` what the inputs say.
    """
    if not hasattr(layer, "_sizes"):
        raise UninferredError(
            f"{name_of(layer)} cannot tell the sizes of what it wraps: call the layer "
            "inside it first, or give it its sizes"
        )
    attributes, sizes = layer._sizes(inputs)
    for name, value in attributes.items():
        _set(layer, name, value)
    for variable in vars(layer).values():
        if isinstance(variable, Variable) and is_open(variable):
            rest = iter(sizes)
            shape = variable.raw_value.shape
            _settle(variable, tuple(next(rest) if n is None else n for n in shape))


def is_open(variable: Any) -> bool:
    """Whether a Variable has no value yet."""
    return isinstance(variable.raw_value, Uninferred)


def _recording_of(obj: Any) -> _Recording | None:
    """The recording that is told of changes of an object; none if it was made there."""
    frame, recording = frames.current(), _state.recording
    is_new = frame is not None and id(obj) in frame.made
    return None if is_new else recording


def _set(layer: Any, name: str, value: Any) -> None:
    recording = _recording_of(layer)
    if recording is not None:
        recording.attributes.append((layer, name, value))
    setattr(layer, name, value)


def _settle(variable: Any, shape: tuple[int, ...]) -> None:
    """Gives a Variable its value, or within `lazy_init` one of its shape."""
    value, recording = variable.raw_value, _recording_of(variable)
    if recording is not None:
        recording.shapes[variable] = shape
        batch = () if value.key is None else value.key.shape
        variable._write(jnp.zeros(batch + shape, value.dtype))
    else:
        variable._write(value.made(shape))


def copy_sizes(own: Any, other: Any) -> None:
    """Infers for one of several stacked layers, or Variables, what a single one has."""
    if isinstance(own, Variable):
        if is_open(own):
            _settle(own, other.raw_value.shape)
        return
    for name, value in vars(other).items():
        if vars(own).get(name) is None and value is not None:
            _set(own, name, value)


def lazy_init(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Makes the parameters of a model whose sizes its inputs tell.

    The model is called with shapes only: nothing is computed but initial values, and
    nothing else is changed. Values do not depend on whether a size was given or
    inferred.

    Args:
        model: a Module, one of its bound methods, or a function that sees it.
        *args: inputs, or `jax.ShapeDtypeStruct`s of them.
        **kwargs: likewise.

    Returns:
        What was given, `model`.

    Raises:
        UninferredError: if a size is needed inside a loop or another transform.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(
        ...     nnx.Linear(None, 4, rngs=rngs), nnx.BatchNorm(None, rngs=rngs)
        ... )
        >>> nnx.lazy_init(model, jnp.ones((2, 3))).layers[0].kernel.shape
        (3, 4)
    """
    around = _state.recording
    recording = _state.recording = _Recording()
    try:
        eval_shape(model, *args, **kwargs)
    finally:
        _state.recording = around
    for layer, name, value in recording.attributes:
        _set(layer, name, value)
    for variable, shape in recording.shapes.items():
        _settle(variable, shape)
    return model
