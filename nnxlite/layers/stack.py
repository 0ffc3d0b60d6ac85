"""Equal Modules as one: `stack`, `unstack`, and `Stack`, which calls them in a loop.

A stacked Module has the class and attributes of each single one; its Variables and
arrays have one axis more, the first. It is what `vmap` makes of a constructor, and
what `vmap` and `scan` take apart again.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from ..core.arrays import is_array, is_dynamic, type_of
from ..core.graph import Putting, Taking, VariableRecord, first_difference, taken
from ..core.module import Module
from ..core.paths import format_path
from ..core.rngs import Rngs
from ..core.splitting import clone
from ..core.variable import Variable
from ..transforms.axes import with_axis, without_axis
from ..transforms.labels import constants, given
from ..transforms.linearization import remat as rematerialize
from ..transforms.loops import scan
from ..transforms.mapping import vmap
from ..transforms.prefixes import Carry, StateAxes
from .lazy import copy_sizes, lazily, lazy_init


def stack(modules: Sequence[Any], /) -> Any:
    """One Module whose Variables hold those of all modules, stacked along a new axis.

    Args:
        modules: at least one Module, or pytree of them, all of the same structure:
            classes, attributes, static values, metadata and sharing.

    Returns:
        A new object. `out_sharding` metadata has None for the new axis.

    Raises:
        ValueError: for no modules, or naming the place where two of them differ, or a
            Variable that two of them share.

    Example:
        >>> import nnxlite as nnx
        >>> models = [nnx.Linear(2, 3, rngs=nnx.Rngs(seed)) for seed in range(5)]
        >>> nnx.stack(models).kernel.shape
        (5, 2, 3)
    """
    walks = [taken(module) for module in modules]
    if not walks:
        raise ValueError("nnx.stack needs at least one Module")
    first = walks[0]
    for number, walk in enumerate(walks):
        found = first_difference(first.records, walk.records)
        if found is not None:
            _, path, here, there = found
            raise ValueError(
                "nnx.stack needs Modules of equal structure, but "
                f"{format_path(path)!r} is {here} in the first and {there} in number "
                f"{number}"
            )
    owners: dict[int, int] = {}
    for number, walk in enumerate(walks):
        for path, leaf in walk.pairs:
            other = owners.setdefault(id(leaf), number)
            if isinstance(leaf, Variable) and other != number:
                raise ValueError(
                    f"nnx.stack: {format_path(path)!r} of number {number} is the same "
                    f"{type(leaf).__name__} as in number {other}, but stacked Modules "
                    "have one each: stack independent copies, nnx.clone(module), or "
                    "hold what they share outside of them"
                )
    leaves = [
        _stacked(path, values)
        for path, *values in zip(
            first.paths, *(walk.values for walk in walks), strict=True
        )
    ]
    return _put(first, leaves, with_axis)


def unstack(module: Any, /) -> list[Any]:
    """The single Modules of a stacked one; the reverse of `stack`.

    Args:
        module: a Module, or pytree of them, all of whose arrays have a first axis of
            the same size.

    Returns:
        New objects, one for each slice.

    Raises:
        ValueError: naming the Variable that does not fit, or if there is none.

    Example:
        >>> import nnxlite as nnx
        >>> models = [nnx.Linear(2, 3, rngs=nnx.Rngs(seed)) for seed in range(5)]
        >>> again = nnx.unstack(nnx.stack(models))
        >>> len(again), bool((again[4].kernel == models[4].kernel).all())
        (5, True)
    """
    return [_sliced(module, index) for index in range(_size(module))]


def _size(module: Any) -> int:
    walk = taken(module)
    size = None
    for path, value in zip(walk.paths, walk.values, strict=True):
        for array in filter(is_dynamic, jax.tree.leaves(value)):
            shape = jnp.shape(array)
            if not shape or size not in (None, shape[0]):
                raise ValueError(
                    f"{format_path(path)!r} has the shape {shape}, but a stacked "
                    f"Module needs {'an axis' if size is None else size} in the first "
                    "place"
                )
            size = shape[0]
    if size is None:
        raise ValueError(f"{type(module).__name__} holds no arrays to take apart")
    return size


def _sliced(module: Any, index: Any) -> Any:
    walk = taken(module)
    leaves = [
        jax.tree.map(lambda x: x[index] if is_array(x) else x, value)
        for value in walk.values
    ]
    return _put(walk, leaves, without_axis if isinstance(index, int) else None)


def _stacked(path: Any, values: Sequence[Any]) -> Any:
    if not all(is_array(x) for value in values for x in jax.tree.leaves(value)):
        return values[0]
    try:
        return jax.tree.map(lambda *xs: jnp.stack(xs), *values)
    except ValueError as error:
        shapes = [jax.tree.map(jnp.shape, value) for value in values]
        raise ValueError(
            f"nnx.stack needs arrays of one shape, but {format_path(path)!r} has "
            f"{shapes}"
        ) from error


def _put(walk: Taking, leaves: Iterable[Any], change: Any) -> Any:
    """Puts a graph together from other leaves, with metadata changed to fit them."""
    rest = iter(leaves)

    def leaf(record: Any) -> Any:
        value = next(rest)
        if not isinstance(record, VariableRecord) or isinstance(value, Variable):
            return value
        metadata = record.metadata
        if change is not None and is_array(value):
            rank = jnp.ndim(value) + (change is without_axis)
            metadata = change(metadata, 0, rank, {})
        return record.type.from_metadata(value, metadata)

    return Putting(walk.records, leaf).put()


@functools.lru_cache(typed=True)  # unroll=True is not unroll=1
def _forward(remat: Any, unroll: int | bool, length: int) -> Callable[..., Any]:
    """The loop over layers; one function for equal options, so that it traces once."""

    def forward(x: Any, layer: Any, args: Any, kwargs: Any) -> Any:
        names, values = list(kwargs), given(kwargs.values())
        y = layer(x, *given(args), **dict(zip(names, values, strict=True)))
        gets, returns = (jax.tree.map(type_of, tree) for tree in (x, y))
        if gets != returns:
            raise TypeError(
                f"a layer of nnx.Stack gets {gets} and returns {returns}: each layer "
                "gets what the one before returned, so all must be of one kind. Cast "
                "the input or the result, or take a list of layers"
            )
        return y

    if remat:
        policy = None if remat is True else remat
        forward = rematerialize(forward, policy=policy)
    axes = (Carry, 0, *[StateAxes({...: Carry})] * 2)
    return scan(forward, length=length, in_axes=axes, out_axes=Carry, unroll=unroll)


class Stack(Module):
    """Layers of equal structure, called one after the other by a single `scan`.

    It computes what a list of the layers would, but is traced and compiled in a time
    that does not depend on how many there are. Each layer has its own parameters,
    random streams and statistics. `stack[0]` is a copy of a layer, so that changing it
    changes nothing in the Stack; `stack[0] = layer` writes one, and
    `Stack.from_layers` makes a Stack of layers that exist. Metadata, hooks, and whether
    a parameter is frozen are of all layers together: what one layer needs for itself
    needs a list of layers.

    Args:
        make_layer: given an Rngs, makes one layer.
        n: how many layers.
        rngs: seeds; each stream gives one key, which is split among the layers.
        remat: whether gradients compute each layer's intermediate values again, or a
            policy that says which; see `remat`.
        unroll: how many layers to compile at a time; see `jax.lax.scan`.

    Attributes:
        layers: the layers as one stacked Module.
        length: how many there are.

    Raises:
        ValueError: if n is less than 1.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> make = lambda rngs: nnx.Linear(3, 3, rngs=rngs)
        >>> model = nnx.Stack(make, 12, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 3))).shape, len(model), model[0].kernel.shape
        ((2, 3), 12, (3, 3))
    """

    layers: Any

    def __init__(
        self,
        make_layer: Callable[[Rngs], Any],
        n: int,
        *,
        rngs: Rngs,
        remat: Any = False,
        unroll: int | bool = 1,
    ):
        if not callable(make_layer) or isinstance(make_layer, Module):
            raise TypeError(
                "nnx.Stack needs a function that makes a layer, nnx.Stack(lambda rngs: "
                f"nnx.Linear(3, 3, rngs=rngs), {n}, rngs=rngs), and got a "
                f"{type(make_layer).__name__}. Of layers that exist, "
                "nnx.Stack.from_layers([...]) makes one"
            )
        if n < 1:
            raise ValueError(f"nnx.Stack needs at least one layer, not {n}")

        def make_one(rngs: Rngs) -> Any:
            return make_layer(clone(rngs))  # its own, if the layer keeps it

        make = vmap(make_one, in_axes=None, axis_size=n, split_rngs=True)
        self._begin(make(rngs), n, remat, unroll)

    def _begin(self, layers: Any, length: int, remat: Any, unroll: Any) -> None:
        self.layers = layers
        self.length = length
        self.remat = remat
        self.unroll = unroll

    @classmethod
    def from_layers(
        cls, layers: Sequence[Any], *, remat: Any = False, unroll: int | bool = 1
    ) -> Self:
        """A Stack of copies of single layers; `nnx.unstack(s.layers)` is the reverse.

        Raises:
            ValueError: naming the place where two layers differ.
        """
        new = cls.__new__(cls)
        new._begin(stack(layers), len(layers), remat, unroll)
        return new

    def _nnx_for_each(self, change: Callable[[Any], None]) -> None:
        vmap(change)(self.layers)

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layers in order, each with what the one before returned.

        Args:
            x: the first input; every layer must return what has its shapes and dtypes.
            *args: further arguments, the same for all layers; flags and ints are
                static.
            **kwargs: likewise.

        Raises:
            TypeError: if a layer returns another shape or dtype than it gets.
        """
        forward = _forward(self.remat, self.unroll, self.length)
        args, values = constants(args, None), constants(list(kwargs.values()), None)
        named = dict(zip(kwargs, values, strict=True))
        return lazily(
            lambda: forward(x, self.layers, args, named),
            lambda: self._infer(x, given(args), given(values), kwargs),
        )

    def _infer(self, x: Any, args: Any, values: Any, names: Any) -> None:
        """Makes what the first layer has inferred, for all layers."""
        kwargs = dict(zip(names, values, strict=True))
        one = self[0]
        lazy_init(one, x, *args, **kwargs)
        ours, theirs = taken(self.layers), taken(one)
        for own, other in zip(ours.objects, theirs.objects, strict=True):
            copy_sizes(own, other)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int | slice) -> Any:
        """A copy of one layer, or a Stack with copies of some."""
        if isinstance(index, int) and not -self.length <= index < self.length:
            raise IndexError(f"there is no layer {index} in a Stack of {self.length}")
        numbers = range(self.length)[index]
        if isinstance(numbers, int):
            return _sliced(self.layers, numbers)
        new = clone(self)
        new._begin(_sliced(self.layers, index), len(numbers), self.remat, self.unroll)
        return new

    def __setitem__(self, index: int | slice, layer: Any) -> None:
        """Gives one layer the values of another, or some those of another Stack.

        Raises:
            ValueError: if structures differ, or how many layers there are.
        """
        numbers: Any = range(self.length)[index]
        if isinstance(numbers, range):
            if not isinstance(layer, Stack) or layer.length != len(numbers):
                raise ValueError(f"a Stack of {len(numbers)} layers belongs there")
            expected, layer, numbers = self[index].layers, layer.layers, list(numbers)
        else:
            expected = self[numbers]
        at = jnp.asarray(numbers, int)
        ours, theirs = taken(self.layers), taken(_checked(expected, layer))
        for own, other in zip(ours.leaves, theirs.leaves, strict=True):
            if isinstance(own, Variable):
                own.value = jax.tree.map(
                    lambda x, y: x.at[at].set(y) if is_array(x) else x,
                    own.raw_value,
                    other.raw_value,
                )

    def __iter__(self) -> Iterator[Any]:
        return iter(unstack(self.layers))


def _checked(expected: Any, layer: Any) -> Any:
    found = first_difference(taken(expected).records, taken(layer).records)
    if found is not None:
        _, path, here, there = found
        raise ValueError(
            f"the layer differs from those of the Stack at {format_path(path)!r}: it "
            f"has {there}, they have {here}"
        )
    return layer
