"""Whole models: cast, placed, initialized anew, adapted, cleaned up."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ..core.arrays import is_array
from ..core.changes import change, pop
from ..core.filters import All, Filter, to_predicate
from ..core.graph import taken, variables_of
from ..core.kinds import Param
from ..core.module import Pytree, iter_nodes
from ..core.paths import Path, format_path
from ..core.rngs import Rngs
from ..core.uninferred import Uninferred
from ..core.variable import Variable
from ..layers.linear import Linear, LinearGeneral
from ..layers.lora import LoRA, LoRALinear
from .selection import select


def _variables(model: Any, only: Filter, verb: str) -> list[tuple[Path, Variable[Any]]]:
    """The Variables that match; at least one."""
    found = variables_of(model, only)
    if not found:
        of_modules = isinstance(only, type) and issubclass(only, Pytree)
        raise ValueError(
            f"nnx.{verb}: no Variable of {type(model).__name__} matches {only!r}"
            + ("; it asks for Modules" if of_modules else "")
        )
    return found


def cast(model: Any, dtype: DTypeLike, only: Filter = ...) -> None:
    """Casts the Variables of a model that hold floats to a dtype, in place.

    Integers, bools and random keys stay as they are.

    Args:
      model: a Module or a pytree of them.
      dtype: a floating dtype.
      only: which Variables.

    Raises:
      TypeError: if the dtype is no floating one.
      ValueError: if nothing matches.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx.cast(model, jnp.bfloat16)
      >>> model.kernel.dtype
      dtype(bfloat16)
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"nnx.cast: {dtype!r} is no floating dtype, as jnp.bfloat16 is")

    def converted(x: Any) -> Any:
        if isinstance(x, Uninferred):
            is_float = jnp.issubdtype(x.dtype, jnp.floating)
            return dataclasses.replace(x, dtype=dtype) if is_float else x
        if not is_array(x) or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
        return x.astype(dtype)

    def is_uninferred(x: Any) -> bool:
        return isinstance(x, Uninferred)

    for _, variable in _variables(model, only, "cast"):
        value = jax.tree.map(converted, variable.raw_value, is_leaf=is_uninferred)
        variable._write(value)


def device_put(model: Any, where: Any, only: Filter = ...) -> None:
    """Puts the arrays of a model on a device or into a sharding, in place.

    Args:
      model: a Module or a pytree of them.
      where: a device or sharding, see `jax.device_put`; or a function of path and
        Variable that gives one, or None to leave the Variable where it is.
      only: which Variables.

    Raises:
      ValueError: if nothing matches.

    Example:
      >>> import jax, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx.device_put(model, jax.devices()[0])
      >>> model.kernel.devices() == {jax.devices()[0]}
      True
    """
    placed = []
    for path, variable in _variables(model, only, "device_put"):
        place = where(path, variable) if callable(where) else where
        if place is not None:
            placed.append((variable, jax.device_put(variable.raw_value, place)))
    for variable, value in placed:
        variable._write(value)


def reinit(
    model: Any,
    rngs: Rngs,
    only: Filter = Param,
    *,
    init: Callable[..., Any] | None = None,
) -> None:
    """Draws parameters anew, in place, with the initializers of their layers.

    Args:
      model: a Module or a pytree of them.
      rngs: gives one key of the stream `params` for each parameter, in sorted order.
      only: which Variables.
      init: an initializer `(key, shape, dtype)` in place of the layers' own.

    Raises:
      ValueError: if nothing matches, or, with the paths, for Variables of which no
        initializer is known: no layer of nnxlite made them, or they were loaded or
        stacked. Nothing is changed then.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> before = model.kernel.value
      >>> nnx.reinit(model, nnx.Rngs(1))
      >>> bool((before == model.kernel.value).any())
      False
    """
    if not isinstance(rngs, Rngs):
        raise TypeError(f"nnx.reinit: rngs must be an nnx.Rngs, not {rngs!r}")
    found = _variables(model, only, "reinit")
    problems = [
        f"{format_path(path)} is frozen (nnx.unfreeze lets it be written)"
        if v._metadata.is_frozen
        else f"no initializer known of {format_path(path)} (pass init=)"
        for path, v in found
        if v._metadata.is_frozen or init is None and _initializer(v) is None
    ]
    if problems:
        raise ValueError(f"nnx.reinit: {'; '.join(problems)}")
    counts = [(s.count, s.count.value) for _, s in rngs.items()]
    try:
        news = [_drawn(v, init or _initializer(v), rngs.params()) for _, v in found]
    except BaseException:
        for count, value in counts:
            count.value = value
        raise
    for (_, variable), new in zip(found, news, strict=True):
        variable.raw_value = new


def _drawn(variable: Variable[Any], draw: Any, key: Any) -> Any:
    """What a Variable stores for a value drawn anew."""
    old, shown = variable.raw_value, variable.get_value()
    if isinstance(old, Uninferred):
        return Uninferred(key, draw, old.shape, old.dtype)
    new = variable.copy()
    new.value = draw(key, shown.shape, shown.dtype)
    return new.raw_value


def _initializer(variable: Variable[Any]) -> Callable[..., Any] | None:
    return getattr(variable, "_initializer", None)


def apply(model: Any, function: Callable[[Any], Any], only: Filter = ...) -> None:
    """Calls a function with every Module of a model, children first.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5))
      >>> nnx.apply(model, lambda dropout: setattr(dropout, 'rate', 0.1), nnx.Dropout)
      >>> model.layers[1].rate
      0.1
    """
    matches = to_predicate(only)
    for path, node in list(iter_nodes(model)):
        if matches(path, node):
            function(node)


@contextlib.contextmanager
def temporary(model: Any, *filters: Filter) -> Iterator[None]:
    """A context after which the Variables are gone that were made in it.

    Args:
      model: a Module or a pytree of them.
      *filters: which of the new Variables go, by default all. Those that took the
        place of others stay, and what was deleted or written is not brought back.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> class Net(nnx.Module):
      ...     def __call__(self, x):
      ...         self.seen = nnx.Intermediate(x)
      ...         return x
      >>> net = Net()
      >>> with nnx.temporary(net, nnx.Intermediate):
      ...     y = net(jnp.ones(2))
      >>> hasattr(net, 'seen')
      False
    """
    before = taken(model)
    held, known = {id(leaf): leaf for leaf in before.leaves}, set(before.paths)
    try:
        yield
    finally:
        new = All(filters or ..., lambda path, x: id(x) not in held)
        pop(model, All(new, lambda path, _: path not in known))


def loraify(model: Any, *filters: Filter, rank: int, rngs: Rngs) -> None:
    """Puts low-rank maps beside Linears and LinearGenerals, and freezes the rest.

    What the model computes does not change before the maps are trained. All Params but
    those of the maps are frozen, so that `nnx.grad` and `nnx.Optimizer` leave them out.

    Args:
      model: a Module; what is adapted is replaced by a `LoRA` around it.
      *filters: which of its Linears and LinearGenerals (as in attention), by default
        all.
      rank: see `LoRA`.
      rngs: gives the keys.

    Raises:
      ValueError: if no layer matches, or one is stacked.

    Example:
      >>> import nnxlite as nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.relu)
      >>> nnx.loraify(model, rank=1, rngs=rngs)
      >>> [name for name, _ in nnx.named_parameters(model, nnx.trainable)]
      ['layers.0.lora_a', 'layers.0.lora_b']
    """
    if rank < 1:
        raise ValueError(f"nnx.loraify: rank must be at least 1, not {rank}")
    chosen = filters or ...
    found = select(model, All(Linear | LinearGeneral, chosen))
    if not found:
        layers = select(model, Linear | LinearGeneral)
        raise ValueError(
            f"nnx.loraify: no Linear or LinearGeneral below {type(model).__name__} "
            f"matches {chosen!r}; there are "
            f"{', '.join(map(format_path, layers.paths)) or 'none'}"
        )
    for path, layer in found:
        size = np.size(layer.in_features) + np.size(layer.out_features)
        if layer.kernel.ndim != size:
            raise ValueError(
                f"nnx.loraify: {format_path(path)!r} is stacked, or has batch axes: "
                f"its kernel has the shape {layer.kernel.shape}. Adapt the layers, "
                "then stack them"
            )

    def adapted(linear: Any) -> LoRA:
        return LoRA(
            linear.in_features,
            rank,
            linear.out_features,
            base_module=linear,
            axis=getattr(linear, "axis", -1),
            dtype=linear.dtype,
            param_dtype=linear.param_dtype,
            rngs=rngs,
        )

    others = _variables(model, Param, "loraify")
    found.wrap(adapted)
    for _, variable in others:
        variable.set_metadata(frozen=True)


def merge_lora(model: Any) -> None:
    """Adds the low-rank maps to the kernels beside them and takes the maps away.

    What the model computes stays the same up to rounding; what was frozen still is.

    Raises:
      ValueError: if there is no `LoRA` around a layer with a kernel.

    Example:
      >>> import nnxlite as nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.relu)
      >>> nnx.loraify(model, rank=1, rngs=rngs)
      >>> nnx.merge_lora(model)
      >>> type(model.layers[0]).__name__
      'Linear'
    """
    found = select(model, LoRALinear | LoRA).where(_is_over_kernel)
    if not found:
        raise ValueError(
            f"nnx.merge_lora: {type(model).__name__} has no LoRA around a layer with a "
            "kernel, as nnx.loraify makes them"
        )
    kernels: dict[int, Path] = {}
    for path, layer in found:
        kernel = _base(layer).kernel
        if id(kernel) in kernels:
            raise ValueError(
                f"nnx.merge_lora: {format_path(path)!r} and "
                f"{format_path(kernels[id(kernel)])!r} share a kernel, which cannot "
                "take the maps of both: give one of them a copy, `layer.kernel = "
                "nnx.clone(layer.kernel)`"
            )
        kernels[id(kernel)] = path
    news = [(layer, _product(layer)) for layer in found.get()]
    for layer, stored in news:
        _base(layer).kernel._write(stored)
    found.wrap(_plain)


def _product(layer: Any) -> Any:
    """What the kernel stores that has taken up the map beside it."""
    lora = getattr(layer, "lora", layer)
    kernel = _base(layer).kernel
    a, b = lora.lora_a.value, lora.lora_b.value
    merged = kernel.copy(frozen=False)
    merged.value = kernel.value + jnp.tensordot(a, b, 1).astype(kernel.dtype)
    return merged.raw_value


def _is_over_kernel(path: Path, layer: Any) -> bool:
    return isinstance(getattr(_base(layer), "kernel", None), Param)


def _base(layer: Any) -> Any:
    """The layer whose kernel a map is beside; a LoRALinear is that itself."""
    return getattr(layer, "base_module", layer)


def _plain(layer: Any) -> Any:
    if not isinstance(layer, LoRALinear):
        return layer.base_module
    plain = Linear.__new__(Linear)
    change(plain, {k: x for k, x in layer._nnx_items().items() if k != "lora"})
    return plain
