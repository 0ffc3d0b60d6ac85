"""`vmap`, `pmap` and `shard_map`: one function on many slices of its arguments.

Every array that goes in has a *label*, its axis (or, for shard_map, its spec), given by
the prefixes of the arguments; every array that comes out has one too: that of the
Variable or of the argument it belongs to, or that which `out_axes` gives. What the
function merely sees is the same for all slices, and must stay so.
"""

import functools
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import PartitionSpec

from ..core.arrays import is_dynamic
from ..core.errors import name_of
from ..core.filters import to_predicate
from ..core.graph import ArrayRecord, VariableRecord
from ..core.metadata import Metadata
from ..core.module import iter_nodes
from ..core.paths import Path, format_path
from ..core.rngs import RngStream
from ..core.variable import MISSING, Variable
from .axes import Names, with_axis, without_axis
from .boundary import RESULT, Packing, Visit, apply, numbers_as_arrays
from .captures import View, positional_parameters
from .compilation import Constant, compiled_at_top
from .plans import Opened, Plan
from .prefixes import Carry, StateLabels, label_of, object_labels


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
        values = self._plan.gather(self._opened)
        assert values is not None
        self.values = values
        self.inputs = self._plan.inputs(self._opened)
        labels = object_labels(
            [(_root(n), x, prefixes[n]) for n, x in self.arguments.items()], kind
        )
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
        return self._opened.arguments(dynamic)

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
                raise ValueError(
                    f"{name_of(variable)} is written in {self.transform}, but "
                    f"{self.kind} says None for it: it is the same in all steps, and "
                    "the write would be lost. Let it be carried, with "
                    "nnx.StateAxes({..., nnx.Carry}) for its argument, or slice it"
                )

    def not_sliced(self, exit: "Exit") -> list[Any]:
        """What changed its structure though it has no axis, or got a part without."""
        parting = exit.parting
        bad = [v for v, _ in parting.record.metadata if v not in self.sliced]
        for number, node in enumerate(parting.changed):
            prefix, _ = self._nodes.get(id(node), (None, ()))
            if prefix is None or prefix is Carry or number in exit.without_axis:
                bad.append(node)
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
                    f"its shape is {shape}: give another axis in {self.kind}, or None"
                )
            if given is None:
                given, first = shape[axis], number
            elif shape[axis] != given:
                other = "axis_size or length" if first is None else self.where(first)
                raise ValueError(
                    f"{self.transform} got different sizes: {given} for {other}, and "
                    f"{shape[axis]} for axis {axis} of {self.where(number)}, whose "
                    f"shape is {shape}"
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
        self.parting = parting = visit.part(numbers_as_arrays(result))
        labels = [entry.by_variable.get(v, entry.default) for v in parting.variables]
        self.without_axis: set[int] = set()  # changed nodes with such new parts
        for (root, *path), leaf in zip(parting.paths, parting.found, strict=True):
            if root == RESULT:
                labels.append(label_of(out_prefix, tuple(path), leaf, kind))
            else:
                node = parting.changed[root]
                labels.append(entry.label_of_node(node, tuple(path), leaf))
                if type(labels[-1]) is not int:
                    self.without_axis.add(root)
        items = [*parting.values, *parting.leaves]
        packing = Packing([parting.values, parting.leaves])
        self.arrays = [jnp.asarray(x) for x in packing.arrays]
        self.owners = [n for n, x in enumerate(items) for _ in Packing([x]).arrays]
        self.labels = [labels[n] for n in self.owners]
        record = parting.record
        record.packing = packing
        record.metadata = entry.grown(record.metadata, names)
        ranks = [jnp.ndim(x) if is_dynamic(x) else 0 for x in parting.leaves]
        axes = iter(zip(labels[len(parting.values) :], ranks, strict=True))
        assert record.walk is not None
        record.walk = tuple(_grown(x, axes, names) for x in record.walk)

    def groups(self, labels: Sequence[Any]) -> tuple[list[Any], ...]:
        """The arrays of each label."""
        pairs = list(zip(self.arrays, self.labels, strict=True))
        return tuple([x for x, own in pairs if own == label] for label in labels)

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
        owner = "the result" if root == RESULT else name_of(parting.changed[root])
        return format_path(tuple(path), root=owner)

    def applied(self, groups: Sequence[Sequence[Any]], labels: Sequence[Any]) -> Any:
        """Does outside what the function did, given the arrays of all slices."""
        rest = {label: iter(xs) for label, xs in zip(labels, groups, strict=True)}
        return self._applied([next(rest[label]) for label in self.labels])

    def moved(self, stacked: Sequence[Any]) -> Any:
        """Likewise, given each array with its axis first."""
        pairs = zip(stacked, self.labels, strict=True)
        return self._applied([jnp.moveaxis(x, 0, axis) for x, axis in pairs])

    def _applied(self, arrays: list[Any]) -> Any:
        return apply((self.parting.record, [], arrays))


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
    args = tuple(x.value if type(x) is Constant else x for x in args)
    parameters = list(positional_parameters(function))[len(args) :]
    for name in parameters:
        if name not in kwargs:
            break
        args = (*args, kwargs[name])
        kwargs = {k: v for k, v in kwargs.items() if k != name}
    return args, kwargs


def prefixes_of(
    transform: str, kind: str, prefix: Any, args: Sequence[Any]
) -> dict[int | str, Any]:
    """By position, the prefix of each argument.

    Raises:
      ValueError: if there are more or fewer than arguments.
    """
    if not isinstance(prefix, (tuple, list)) or isinstance(prefix, PartitionSpec):
        prefix = [prefix] * len(args)
    elif len(prefix) != len(args):
        raise ValueError(
            f"{kind} of {transform} has {len(prefix)} entries, but the call has "
            f"{len(args)} positional arguments: give one for each, or a single one "
            "for all"
        )
    return dict(enumerate(prefix))


def labels_in(prefix: Any) -> list[Any]:
    """All labels that a prefix may give."""
    if isinstance(prefix, StateLabels):
        return [label for _, label in prefix.rules]
    if isinstance(prefix, Mapping):
        prefix = list(prefix.values())
    if isinstance(prefix, (tuple, list)) and not isinstance(prefix, PartitionSpec):
        return [label for part in prefix for label in labels_in(part)]
    return [prefix]


class Streams:
    """The random streams that are split for the slices of a call."""

    def __init__(self, only: Any, entry: Entry, function: Any, size: int | None):
        self.variables: list[Variable[Any]] = []
        self.keys: list[Any] = []
        if only is False or only is None:
            return
        matches = to_predicate(... if only is True else only)
        seen, _ = View(function).look()
        for path, node in iter_nodes([*entry.arguments.values(), *seen]):
            if not isinstance(node, RngStream) or not matches(path, node.key):
                continue
            if entry.by_variable.get(node.key) is None:
                if size is None:
                    raise ValueError(f"{entry.transform}: split_rngs needs axis_size")
                self.keys.append(jax.random.split(node(), size))
                self.variables += [node.key, node.count]

    def show(self, visit: Visit, keys: Sequence[Any]) -> None:
        """Shows each stream the key of one slice, with nothing drawn from it yet."""
        counts = [jnp.zeros(key.shape, jnp.uint32) for key in keys]
        pairs = zip(keys, counts, strict=True)
        visit.show(self.variables, [x for pair in pairs for x in pair])

    def hide(self, visit: Visit) -> None:
        """Forgets what was drawn inside: outside, each stream gave one key."""
        for variable in self.variables:
            visit.frame.written.pop(variable, None)


def _mapped(
    transform: str,
    f: Callable[..., Any],
    prefixes: tuple[Any, Any],
    kinds: tuple[str, str],
    run: Callable[..., Any],
    *,
    default: Any = None,
    of_keyword: Any = 0,
    size: int | None = None,
    names: Names = types.MappingProxyType({}),
    split_rngs: Any = False,
) -> Callable[..., Any]:
    """A function that calls `f` on slices.

    Args:
      transform: what error messages call it.
      f: the function.
      prefixes: the labels of the arguments and of the result.
      kinds: what error messages call the two.
      run: given the pure function of (values, keys), the labels of the values, and
        the entry, runs it through JAX.
      default: the label of what belongs to no argument.
      of_keyword: the label of arguments that have no position.
      size: of the mapped axes, if it is given.
      names: see `with_axis`.
      split_rngs: see `vmap`.
    """
    name = getattr(f, "__name__", type(f).__name__)

    def mapped(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = bound(f, args, kwargs)
        by_argument = prefixes_of(transform, kinds[0], prefixes[0], args)
        by_argument.update(dict.fromkeys(kwargs, of_keyword))
        entry = Entry(transform, args, kwargs, by_argument, kinds[0], default)
        streams = Streams(split_rngs, entry, f, entry.size(size))
        labels = [*entry.labels, *labels_in(prefixes[1]), default]
        labels = list(dict.fromkeys(labels))
        exits: list[Exit] = []

        def pure(values: Sequence[Any], keys: Sequence[Any]) -> Any:
            with Visit(f"{transform} of '{name}'") as visit:
                inner_args, inner_kwargs = entry.show(visit, values)
                streams.show(visit, keys)
                entry.shrink(visit, names)
                result = f(*inner_args, **inner_kwargs)
                streams.hide(visit)
                exits.append(Exit(entry, visit, result, prefixes[1], kinds[1], names))
            return exits[-1].groups(labels)

        try:
            groups = run(pure, entry, labels, streams.keys)
        except ValueError as error:
            found = re.search(r"out_(?:axes|specs)\[(\d+)\](?:\[(\d+)\])?", str(error))
            if found is None or not exits:
                raise
            label = labels[int(found[1])]
            raise ValueError(
                f"{exits[-1].where(label, found[2])} differs from slice to slice in "
                f"{transform} of '{name}', but its label is {label}, which holds one "
                f"value for all: it is broadcast, captured, or {kinds[1]} says so. "
                "Give it an axis, or make it the same for all, for example with a "
                "mean over the axis name"
            ) from None
        return exits[-1].applied(groups, labels)

    return functools.update_wrapper(mapped, f, updated=())


def constants(args: Sequence[Any], prefix: Any) -> list[Any]:
    """Makes flags and sizes that are not mapped static, as they are in `jax.vmap`."""
    prefixes = prefix if isinstance(prefix, (tuple, list)) else [prefix] * len(args)
    prefixes = [*prefixes, *[0] * (len(args) - len(prefixes))]
    return [
        Constant(x) if axis is None and type(x) in (bool, int) else x
        for x, axis in zip(args, prefixes, strict=False)
    ]


def _check_axes(transform: str, kind: str, prefix: Any) -> None:
    for label in labels_in(prefix):
        if label is not None and type(label) is not int:
            hint = " Carry is for nnx.scan." if label is Carry else ""
            raise TypeError(
                f"{kind} of {transform} must be an int, None, a StateAxes, or a "
                f"container of these, not {label!r}.{hint}"
            )


def vmap(
    f: Any = MISSING,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Any = None,
    axis_size: int | None = None,
    spmd_axis_name: Any = None,
    transform_metadata: Names = types.MappingProxyType({}),
    split_rngs: Any = False,
) -> Any:
    """A function that does at once what `f` does for each slice of its arguments.

    Mapped Variables hold a slice inside and all slices outside, also when they are
    written. What is broadcast (None) or merely seen is the same for all slices: it may
    be written, with a value that is the same for all. New Variables of a mapped
    object, and of the result, are stacked.

    Args:
      f: a function, method, Module, or class; without it, returns a decorator.
      in_axes: for each argument an axis, None, a `StateAxes`, or a container of these.
        Flags and ints that are not mapped are static.
      out_axes: likewise for the result.
      axis_name: see `jax.vmap`, as is `spmd_axis_name`.
      axis_size: how many slices, needed if nothing is mapped.
      spmd_axis_name: which mesh axes the mapped one lies on.
      transform_metadata: `{nnx.PARTITION_NAME: name}` puts a name into the
        `out_sharding` of stacked Variables; without one they get None there.
      split_rngs: True, or a filter for random streams that are not mapped: each slice
        draws from keys of its own, split from one key of the stream.

    Raises:
      ValueError: if axes do not fit, if one object would get two axes, or if what has
        no axis depends on the slice.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> make = nnx.vmap(lambda rngs: nnx.Linear(2, 3, rngs=rngs), split_rngs=True,
      ...                 in_axes=None, axis_size=5)
      >>> models = make(nnx.Rngs(0))
      >>> models.kernel.shape
      (5, 2, 3)
      >>> apply = nnx.vmap(lambda model, x: model(x), in_axes=(0, None))
      >>> apply(models, jnp.ones(2)).shape
      (5, 3)
    """
    given = {k: v for k, v in locals().items() if k != "f"}
    if f is MISSING:
        return lambda f: vmap(f, **given)
    _check_axes("nnx.vmap", "in_axes", in_axes)
    _check_axes("nnx.vmap", "out_axes", out_axes)

    def run(pure: Any, entry: Entry, labels: Sequence[Any], keys: Any) -> Any:
        return jax.vmap(
            pure,
            in_axes=(entry.labels, 0),
            out_axes=tuple(labels),
            axis_name=axis_name,
            axis_size=axis_size,
            spmd_axis_name=spmd_axis_name,
        )(entry.values, keys)

    mapped = _mapped(
        "nnx.vmap",
        f,
        (in_axes, out_axes),
        ("in_axes", "out_axes"),
        run,
        size=axis_size,
        names=transform_metadata,
        split_rngs=split_rngs,
    )
    compiled = compiled_at_top("nnx.vmap", of=f)(mapped)

    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled(*constants(args, in_axes), **kwargs)

    return functools.update_wrapper(call, f, updated=())


def pmap(
    f: Any = MISSING,
    *,
    axis_name: Any = None,
    in_axes: Any = 0,
    out_axes: Any = 0,
    static_broadcasted_argnums: int | Sequence[int] = (),
    devices: Any = None,
    backend: str | None = None,
    axis_size: int | None = None,
    donate_argnums: int | Sequence[int] = (),
    transform_metadata: Names = types.MappingProxyType({}),
) -> Any:
    """`vmap` with each slice on a device of its own; see `vmap` and `jax.pmap`.

    Args:
      f: a function, method, Module, or class; without it, returns a decorator.
      axis_name: see `jax.pmap`, as are `devices` and `backend`.
      in_axes: see `vmap`.
      out_axes: see `vmap`.
      static_broadcasted_argnums: positions of arguments that are constants.
      devices: which devices to use.
      backend: which platform to use.
      axis_size: how many slices, needed if nothing is mapped.
      donate_argnums: positions of arguments whose buffers are given away.
      transform_metadata: see `vmap`.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> apply = nnx.pmap(lambda model, x: model(x), in_axes=(None, 0))
      >>> apply(model, jnp.ones((1, 2))).shape
      (1, 3)
    """
    given = {k: v for k, v in locals().items() if k != "f"}
    if f is MISSING:
        return lambda f: pmap(f, **given)
    _check_axes("nnx.pmap", "in_axes", in_axes)
    _check_axes("nnx.pmap", "out_axes", out_axes)
    static, donated = map(_numbers, (static_broadcasted_argnums, donate_argnums))

    def run(pure: Any, entry: Entry, labels: Sequence[Any], keys: Any) -> Any:
        gives = [n for n, x in enumerate(entry.inputs, 1) if x.argument in donated]
        groups = jax.pmap(
            lambda keys, *values: pure(values, keys),
            axis_name=axis_name,
            in_axes=(0, *entry.labels),
            out_axes=tuple(0 if label is None else label for label in labels),
            devices=devices,
            backend=backend,
            axis_size=axis_size,
            donate_argnums=gives,
        )(keys, *entry.values)
        return tuple(
            group if label is not None else _single(group, number)
            for number, (label, group) in enumerate(zip(labels, groups, strict=True))
        )

    mapped = _mapped(
        "nnx.pmap",
        f,
        (in_axes, out_axes),
        ("in_axes", "out_axes"),
        run,
        size=axis_size,
        names=transform_metadata,
    )

    def call(*args: Any, **kwargs: Any) -> Any:
        args = tuple(Constant(x) if n in static else x for n, x in enumerate(args))
        return mapped(*args, **kwargs)

    return functools.update_wrapper(call, f, updated=())


def _single(arrays: Sequence[Any], group: int) -> list[Any]:
    """The one value of each array that all devices agree on, which pmap cannot tell."""
    for index, x in enumerate(arrays):
        same = (x == x[:1]) | (x != x)
        if not isinstance(same, Tracer) and not same.all():
            raise ValueError(f"out_axes[{group}][{index}]")
    return [x[0] for x in arrays]


def _numbers(numbers: int | Sequence[int]) -> tuple[int, ...]:
    return (numbers,) if isinstance(numbers, int) else tuple(numbers)


def shard_map(
    f: Any = MISSING,
    *,
    mesh: Any,
    in_specs: Any,
    out_specs: Any,
    axis_names: Any = frozenset(),
    check_vma: bool = True,
) -> Any:
    """A function that runs on each device with its shard of the arguments.

    Args:
      f: a function, method, or Module; without it, returns a decorator.
      mesh: the devices, see `jax.shard_map`.
      in_specs: for each positional argument a PartitionSpec, a `StateSharding` of
        them, or a container of these. Keyword arguments are replicated.
      out_specs: likewise for the result.
      axis_names: see `jax.shard_map`, as is `check_vma`.
      check_vma: whether to check that what is replicated is the same everywhere.

    Raises:
      ValueError: if one object would get two specs.

    Example:
      >>> import jax, jax.numpy as jnp, nnxlite as nnx
      >>> P = jax.sharding.PartitionSpec
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> apply = nnx.shard_map(
      ...     lambda model, x: model(x), mesh=jax.make_mesh((1,), ('data',)),
      ...     in_specs=(P(), P('data')), out_specs=P('data'))
      >>> apply(model, jnp.ones((4, 2))).shape
      (4, 3)
    """
    given = {k: v for k, v in locals().items() if k != "f"}
    if f is MISSING:
        return lambda f: shard_map(f, **given)

    def run(pure: Any, entry: Entry, labels: Sequence[Any], keys: Any) -> Any:
        return jax.shard_map(
            pure,
            mesh=mesh,
            in_specs=(entry.labels, _EVERYWHERE),
            out_specs=tuple(labels),
            axis_names=axis_names,
            check_vma=check_vma,
        )(_laid_out(mesh, entry), keys)

    mapped = _mapped(
        "nnx.shard_map",
        f,
        (in_specs, out_specs),
        ("in_specs", "out_specs"),
        run,
        default=_EVERYWHERE,
        of_keyword=_EVERYWHERE,
    )
    return compiled_at_top("nnx.shard_map", of=f)(mapped)


_EVERYWHERE = PartitionSpec()


def _laid_out(mesh: Any, entry: Entry) -> list[Any]:
    """The arrays as the specs say; inside jit an explicit mesh asks for it."""
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return entry.values
    return [
        jax.sharding.reshard(value, jax.sharding.NamedSharding(mesh, spec))
        for value, spec in zip(entry.values, entry.labels, strict=True)
    ]
