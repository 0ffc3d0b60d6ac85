"""Labelled arrays: how they enter and leave a function that runs on slices.

Every array that goes in has a *label*, its axis (or, for shard_map, its spec), given by
the prefixes of the arguments (`Entry`). Every array that comes out has one too
(`Exit`): that of the Variable or of the argument that it belongs to, or that which the
prefix of the results gives. A loop that slices its arguments does the same.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..core.arrays import is_dynamic
from ..core.errors import name_of
from ..core.graph import ArrayRecord, VariableRecord
from ..core.metadata import Metadata
from ..core.module import iter_nodes, key_of
from ..core.paths import Key, Path, format_path
from ..core.rngs import RngState
from ..core.variable import MISSING, Variable
from .axes import Names, with_axis, without_axis
from .boundary import RESULT, Packing, Parting, Visit, apply, numbers_as_arrays
from .captures import positional_parameters
from .leaves import PLAIN, Constant, flatten_with_path, given, kind_of
from .plans import Input, Opened, Plan
from .prefixes import Carry, label_of, object_labels

METADATA = "changes its metadata"


class Entry:
    """The arguments of a call, each array with a label.

    Args:
      transform: what error messages call the transform.
      args: the positional arguments.
      kwargs: the keyword arguments.
      prefixes: by position or name, the prefix of each argument.
      kind: what error messages call the prefixes.
      default: the label of what belongs to no argument.

    Attributes:
      values: the arrays, in order.
      labels: their labels.
      by_variable: the labels of the Variables of the arguments.
      plain: the plain objects among the arguments.

    Raises:
      ValueError: if an object gets two labels, or a plain object one of its own.
    """

    def __init__(
        self,
        transform: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        prefixes: Mapping[int | str, Any],
        kind: str,
        default: Any = None,
    ):
        self.transform = transform
        self.kind = kind
        self.default = default
        self.prefixes = prefixes
        self.arguments: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
        self._opened = Opened(tuple(args), dict(kwargs))
        self._plan = Plan(self._opened)
        self.plain: list[Any] = self._opened.plain
        values = self._plan.gather(self._opened)
        assert values is not None
        self.values = values
        self.inputs: list[Input] = self._plan.inputs(self._opened)
        labels = object_labels(
            [(_root(n), x, prefixes[n]) for n, x in self.arguments.items()], kind
        )
        for number, argument in self.arguments.items():
            self._check_plain(number, argument)
        self.labels: list[Any] = []
        self.by_variable: dict[Variable[Any], Any] = {}
        for source in self.inputs:
            label = default
            if isinstance(source.leaf, Variable):
                label = labels.get(id(source.leaf), default)
                if id(source.leaf) in labels:
                    self.by_variable[source.leaf] = label
            elif source.argument is not None:
                prefix = prefixes[source.argument]
                label = label_of(prefix, source.path, source.leaf, kind)
            self.labels.append(label)

    def _check_plain(self, number: int | str, argument: Any) -> None:
        """Raises ValueError for a plain object with a label: it is merely seen."""
        for keys, leaf in flatten_with_path(argument):
            if kind_of(leaf) != PLAIN:
                continue
            path = tuple(map(key_of, keys))
            label = label_of(self.prefixes[number], path, leaf, self.kind)
            if label not in (None, self.default, Carry):
                name = type(leaf).__name__
                raise ValueError(
                    f"{format_path(path, root=_root(number))} of {self.transform} is "
                    f"a {name}, which is no Module, so that {self.kind} cannot give "
                    f"its parts the label {label!r}: give None for it, pass the "
                    f"Modules that it holds, or make {name} an nnx.Module"
                )

    @functools.cached_property
    def _nodes(self) -> dict[int, tuple[Any, Path]]:
        """By id of each node below the arguments: the prefix, and the path below it."""
        return {
            id(node): (self.prefixes[number], path)
            for number, argument in self.arguments.items()
            for path, node in iter_nodes(argument)
        }

    def show(self, visit: Visit, values: Sequence[Any]) -> tuple[Any, Any]:
        """Shows the values inside; returns args and kwargs."""
        dynamic = self._plan.show(visit, self._opened, values)
        args, kwargs = self._opened.arguments(dynamic)
        return given(args), kwargs

    def shrink(self, visit: Visit, names: Names) -> None:
        """Takes the mapped axes out of the metadata that is seen inside."""
        self.shrunk: dict[Variable[Any], Metadata] = {}
        for variable, axis in self.by_variable.items():
            if type(axis) is int and is_dynamic(variable.raw_value):
                rank = jnp.ndim(variable.raw_value) + 1
                before = variable._metadata
                after = without_axis(before, axis, rank, names)
                if after is not before:
                    variable._change_metadata(after)
                    self.shrunk[variable] = after

    def grown(self, changes: Any, names: Names) -> list[tuple[Any, Metadata]]:
        """Changes of metadata as they are outside, where there is one axis more."""
        grown = []
        for variable, metadata in changes:
            axis = self.by_variable.get(variable)
            if metadata is self.shrunk.get(variable):
                continue
            if type(axis) is int:
                rank = jnp.ndim(variable.raw_value) + 1
                metadata = with_axis(metadata, axis, rank, names)
            grown.append((variable, metadata))
        return grown

    @functools.cached_property
    def sliced(self) -> dict[Variable[Any], int]:
        """The Variables of the arguments that have an axis, with it."""
        return {v: x for v, x in self.by_variable.items() if type(x) is int}

    def slices(self) -> list[Any]:
        """The arrays that have an axis, with that axis first."""
        return [
            jnp.moveaxis(value, axis, 0)
            for value, axis in zip(self.values, self.labels, strict=True)
            if type(axis) is int
        ]

    def with_slices(self, slices: Sequence[Any]) -> list[Any]:
        """All values, with slices for those that have an axis."""
        rest = iter(slices)
        return [
            next(rest) if type(axis) is int else value
            for value, axis in zip(self.values, self.labels, strict=True)
        ]

    def check_broadcast(self, written: Iterable[Variable[Any]]) -> None:
        """Raises ValueError if a Variable of a broadcast argument was written."""
        for variable in written:
            if self.by_variable.get(variable, MISSING) is None:
                raise self._written(variable)

    def _written(self, obj: Any, key: Key | None = None) -> ValueError:
        name = name_of(obj) if key is None else f"{key!r} of {name_of(obj)}"
        keys = "give each step keys of its own, with split_rngs=True, or "
        return ValueError(
            f"{name} is written in {self.transform}, but {self.kind} says None for it: "
            "it is the same in all steps, and the write would be lost. To keep it, "
            f"{keys if isinstance(obj, RngState) else ''}let it be carried, with "
            "nnx.StateAxes({...: nnx.Carry}) for its argument, or slice it"
        )

    def is_carried(self, node: Any, key: Key, leaf: Any) -> bool:
        """Whether a bare array of a node or plain object is no slice of its own.

        Raises:
          ValueError: if it belongs to a broadcast argument.
        """
        label = self.label_of_node(node, (key,), leaf)
        if label is None and id(node) in self._nodes:
            raise self._written(node, key)
        return type(label) is not int

    def not_sliced(self, exit: "Exit") -> list[tuple[Any, str]]:
        """What changed its structure though it has no axis, or got a part without."""
        parting = exit.parting
        bad = [
            (v, METADATA) for v, _ in parting.record.metadata if v not in self.sliced
        ]
        for number, change in enumerate(parting.changes):
            prefix, _ = self._nodes.get(id(change.owner), (None, ()))
            if prefix is None or prefix is Carry or number in exit.without_axis:
                bad.append((change.owner, str(change)))
        return bad

    def where(self, number: int) -> str:
        """Names the place of the n-th value."""
        source = self.inputs[number]
        if source.argument is None:
            return name_of(source.leaf)
        return format_path(source.path, root=_root(source.argument))

    def label_of_node(self, node: Any, path: Path, leaf: Any) -> Any:
        """The label of a new leaf of a node: that of its place in the arguments."""
        prefix, start = self._nodes.get(id(node), (self.default, ()))
        return label_of(prefix, (*start, *path), leaf, self.kind)

    def size(self, given: int | None = None) -> int | None:
        """The size of the mapped axes; checks that they exist and agree."""
        first = None
        for number, (value, axis) in enumerate(
            zip(self.values, self.labels, strict=True)
        ):
            if type(axis) is not int:
                continue
            shape = jnp.shape(value)
            if not -len(shape) <= axis < len(shape):
                raise ValueError(
                    f"{self.transform} maps {self.where(number)} over axis {axis}, but "
                    f"its shape is {shape}: give another axis in {self.kind}, or None "
                    "for what is the same for all"
                )
            if given is None:
                given, first = shape[axis], number
            elif shape[axis] != given:
                other = "axis_size or length" if first is None else self.where(first)
                raise ValueError(
                    f"{self.transform} got different sizes: {given} for {other}, and "
                    f"{shape[axis]} for axis {axis} of {self.where(number)}, whose "
                    f"shape is {shape}. For what is the same for all, give None in "
                    f"{self.kind}"
                )
        return given


def _root(argument: int | str) -> str:
    return f"args[{argument}]" if isinstance(argument, int) else argument


class Exit:
    """What comes out of a mapped function: arrays, in groups of one label each.

    Args:
      entry: the arguments.
      visit: the function's stay, still under way.
      result: what it returned.
      out_prefix: the labels of the result.
      kind: what error messages call `out_prefix`.
      names: see `with_axis`.
    """

    def __init__(
        self,
        entry: Entry,
        visit: Visit,
        result: Any,
        out_prefix: Any,
        kind: str,
        names: Names,
    ):
        parting = visit.part(numbers_as_arrays(result))
        self.parting: Parting = parting
        labels = [entry.by_variable.get(v, entry.default) for v in parting.variables]
        self.without_axis: set[int] = set()  # changes with such new parts
        for (root, *path), leaf in zip(parting.paths, parting.found, strict=True):
            if root == RESULT:
                labels.append(label_of(out_prefix, tuple(path), leaf, kind))
            else:
                owner = parting.changes[root].owner
                labels.append(entry.label_of_node(owner, tuple(path), leaf))
                if type(labels[-1]) is not int:
                    self.without_axis.add(root)
        items = [*parting.values, *parting.leaves]
        packing = Packing([parting.values, parting.leaves])
        self.arrays: list[Array] = [jnp.asarray(x) for x in packing.arrays]
        self.owners: list[int] = [
            n for n, x in enumerate(items) for _ in Packing([x]).arrays
        ]
        self.labels: list[Any] = [labels[n] for n in self.owners]
        record = parting.record
        record.packing = packing
        record.metadata = entry.grown(record.metadata, names)
        ranks = [jnp.ndim(x) if is_dynamic(x) else 0 for x in parting.leaves]
        axes = iter(zip(labels[len(parting.values) :], ranks, strict=True))
        assert record.walk is not None
        record.walk = tuple(_grown(x, axes, names) for x in record.walk)

    def groups(self, labels: Sequence[Any]) -> tuple[list[Any], ...]:
        """The arrays of each label."""
        for number, (x, label) in enumerate(zip(self.arrays, self.labels, strict=True)):
            self._check_axis(number, label, x.ndim + 1)
        pairs = list(zip(self.arrays, self.labels, strict=True))
        return tuple([x for x, own in pairs if own == label] for label in labels)

    def _check_axis(self, number: int, axis: Any, rank: int) -> None:
        if type(axis) is int and not -rank <= axis < rank:
            raise ValueError(
                f"{self._name(self.owners[number])} cannot be stacked along axis "
                f"{axis}, since it has {rank} with the new one: give another in "
                "out_axes"
            )

    def where(self, label: Any, index: str | None) -> str:
        """Names the n-th array of a label, or all of them."""
        owners = zip(self.owners, self.labels, strict=True)
        numbers = [n for n, own in owners if own == label]
        if index is not None:
            numbers = [numbers[int(index)]]
        return " or ".join(map(self._name, numbers))

    def _name(self, number: int) -> str:
        parting = self.parting
        if number < len(parting.variables):
            return name_of(parting.variables[number])
        root, *path = parting.paths[number - len(parting.variables)]
        return parting.where(root, tuple(path))

    def applied(self, groups: Sequence[Sequence[Any]], labels: Sequence[Any]) -> Any:
        """Does outside what the function did, given the arrays of all slices."""
        rest = {label: iter(xs) for label, xs in zip(labels, groups, strict=True)}
        return self.applied_to([next(rest[label]) for label in self.labels])

    def moved(self, stacked: Sequence[Any]) -> list[Any]:
        """The arrays of all slices with their axes in place, given them with it first.

        Raises:
          ValueError: for an axis that an array does not have.
        """
        moved = []
        for number, (x, axis) in enumerate(zip(stacked, self.labels, strict=True)):
            self._check_axis(number, axis, x.ndim)
            moved.append(jnp.moveaxis(x, 0, axis))
        return moved

    def applied_to(self, arrays: Sequence[Any]) -> Any:
        """Does outside what the function did, given the arrays of all slices."""
        return apply((self.parting.record, [], list(arrays)))


def _grown(record: Any, axes: Iterator[tuple[Any, int]], names: Names) -> Any:
    """A record of the walk, after stacking; `axes` has one entry for each leaf."""
    if not isinstance(record, (VariableRecord, ArrayRecord)):
        return record
    axis, rank = next(axes)
    if isinstance(record, ArrayRecord) or type(axis) is not int:
        return record
    return record._replace(metadata=with_axis(record.metadata, axis, rank + 1, names))


def bound(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Moves keyword arguments to their positions, as far as there are some."""
    if not kwargs:
        return args, kwargs
    parameters = list(positional_parameters(function))[len(args) :]
    for name in parameters:
        if name not in kwargs:
            break
        args = (*args, kwargs[name])
        kwargs = {k: v for k, v in kwargs.items() if k != name}
    return args, kwargs


def constants(args: Sequence[Any], prefix: Any) -> tuple[Any, ...]:
    """Makes flags and sizes that are not mapped static, as they are in `jax.vmap`."""
    prefixes = prefix if isinstance(prefix, (tuple, list)) else [prefix] * len(args)
    prefixes = [*prefixes, *[0] * (len(args) - len(prefixes))]
    return tuple(
        Constant(x) if axis is None and type(x) in (bool, int) else x
        for x, axis in zip(args, prefixes, strict=False)
    )
