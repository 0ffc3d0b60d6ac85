"""`vmap`, `pmap` and `shard_map`: one function on many slices of its arguments.

What comes from an argument is mapped as its label says (see `labels`). What the
function merely sees is the same for all slices, and must stay so.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, overload

import jax
from jax.sharding import PartitionSpec

from ..core.errors import title_of
from ..core.frames import is_outermost
from ..core.statics import Static
from ..core.variable import MISSING
from .axes import NO_NAMES, PARTITION_NAME, Names, named, partitioned, renamable
from .boundary import Visit
from .compilation import compiled_at_top
from .labels import Entry, Exit, bound, constants
from .leaves import Constant
from .prefixes import Carry, label_of_keyword, labels_in, prefixes_of
from .slice_streams import SliceStreams

P = ParamSpec("P")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class _Mapping:
    """A transform that calls a function on slices of its arguments.

    Attributes:
      transform: what error messages call it.
      prefixes: the labels of the arguments and of the result.
      kinds: what error messages call the two.
      default: the label of what belongs to no argument.
      size: of the mapped axes, if it is given.
      names: see `with_axis`.
      split_rngs: see `vmap`.
    """

    transform: str
    prefixes: tuple[Any, Any]
    kinds: tuple[str, str] = ("in_axes", "out_axes")
    default: Any = None
    size: int | None = None
    names: Names = dataclasses.field(default_factory=dict)
    split_rngs: Any = False

    def enter(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Entry:
        """Labels the arguments."""
        prefix, kind = self.prefixes[0], self.kinds[0]
        labels = prefixes_of(self.transform, kind, prefix, args)
        labels.update(dict.fromkeys(kwargs, label_of_keyword(prefix, self.default)))
        return Entry(self.transform, args, kwargs, labels, kind, self.default)

    def call(
        self,
        f: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        run: Callable[..., Any],
    ) -> Any:
        """Calls `f` on slices.

        Args:
          f: the function.
          args: its positional arguments.
          kwargs: its keyword arguments.
          run: given the pure function of (values, keys), the entry, the labels that
            may come out, and the keys, runs it through JAX.
        """
        title = title_of(self.transform, f)
        entry = self.enter(args, kwargs)
        size = entry.size(self.size)
        if size is None and self.default is None:
            raise ValueError(
                f"{title} maps none of its arguments: give one an "
                "axis in in_axes, or say axis_size=..."
            )
        labels = [*entry.labels, *labels_in(self.prefixes[1]), self.default]
        labels = list(dict.fromkeys(labels))
        exits: list[Exit] = []
        streams = SliceStreams(self.split_rngs, entry, f)

        def pure(values: Sequence[Any], keys: Sequence[Any]) -> Any:
            visit = Visit(title, plain=entry.plain)
            with visit:
                inner_args, inner_kwargs = entry.show(visit, values)
                streams.show(visit, keys)
                entry.shrink(visit, self.names)
                result = f(*inner_args, **inner_kwargs)
                streams.hide(visit)
                out = self.prefixes[1], self.kinds[1], self.names
                exits.append(Exit(entry, visit, result, *out))
            return exits[-1].groups(labels)

        with streams.split(size) as keys:
            try:
                groups = run(pure, entry, labels, keys)
            except ValueError as error:
                found = _LABEL_IN_ERROR.search(str(error))
                if found is None or not exits:
                    raise
                what = exits[-1].where(labels[int(found[1])], found[2])
                raise self._differs(what, labels[int(found[1])], title) from None
            return exits[-1].applied(groups, labels)

    def _differs(self, what: str, label: Any, title: str) -> ValueError:
        return ValueError(
            f"{what} differs from slice to slice in {title}, but has one value for all "
            f"({label}): it is broadcast, captured, or {self.kinds[1]} says so. Give "
            "it an axis, return it, or make it the same for all, for example with a "
            "mean over the axis name"
        )


# How JAX names a result that does not fit its label: the label, and perhaps the array.
_LABEL_IN_ERROR = re.compile(r"out_(?:axes|specs)\[(\d+)\](?:\[(\d+)\])?")


def _check_axes(transform: str, in_axes: Any, out_axes: Any) -> None:
    for kind, prefix in (("in_axes", in_axes), ("out_axes", out_axes)):
        for label in labels_in(prefix):
            if label is not None and type(label) is not int:
                hint = " Carry is for nnx.scan." if label is Carry else ""
                raise TypeError(
                    f"{kind} of {transform} must be an int, None, a StateAxes, or a "
                    f"container of these, not {label!r}.{hint}"
                )


@overload
def vmap(f: Callable[P, R], /, **options: Any) -> Callable[P, R]: ...
@overload
def vmap(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def vmap(  # pyright: ignore[reportInconsistentOverload]
    f: Any = MISSING,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Any = None,
    axis_size: int | None = None,
    spmd_axis_name: Any = None,
    transform_metadata: Names = NO_NAMES,
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
    options = {k: v for k, v in locals().items() if k != "f"}
    if f is MISSING:
        return lambda f: vmap(f, **options)
    _check_axes("nnx.vmap", in_axes, out_axes)
    return over_slices(vmap, _vmapped, f, options)


def over_slices(
    transform: Any, implementation: Any, f: Any, options: dict[str, Any]
) -> Any:
    """What `vmap` and `scan` return, given the function that does their work."""
    f, options["transform_metadata"] = named(f, options["transform_metadata"])
    static = Static(options)

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = bound(f, args, kwargs)
        return implementation(static, f, constants(args, options["in_axes"]), kwargs)

    call = functools.update_wrapper(call, f, updated=())
    return renamable(call, transform, f, options)


@compiled_at_top("nnx.vmap")
def _vmapped(static: Static, f: Any, args: Any, kwargs: Any) -> Any:
    options = dict(static.value)
    axes = options.pop("in_axes"), options.pop("out_axes")
    names, split_rngs = options.pop("transform_metadata"), options.pop("split_rngs")

    def run(pure: Any, entry: Entry, labels: Sequence[Any], keys: Any) -> Any:
        in_axes, out_axes = (entry.labels, 0), tuple(labels)
        mapped = jax.vmap(pure, in_axes=in_axes, out_axes=out_axes, **options)
        return mapped(entry.values, keys)

    mapping = _Mapping(
        "nnx.vmap",
        axes,
        size=options["axis_size"],
        names=names,
        split_rngs=split_rngs,
    )
    return mapping.call(f, args, kwargs, run)


@overload
def pmap(f: Callable[P, R], /, **options: Any) -> Callable[P, R]: ...
@overload
def pmap(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def pmap(  # pyright: ignore[reportInconsistentOverload]
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
    transform_metadata: Names = NO_NAMES,
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
    options = {k: v for k, v in locals().items() if k != "f"}
    if f is MISSING:
        return lambda f: pmap(f, **options)
    _check_axes("nnx.pmap", in_axes, out_axes)
    f, names = named(f, transform_metadata)
    static, donated = map(_numbers, (static_broadcasted_argnums, donate_argnums))
    mapping = _Mapping("nnx.pmap", (in_axes, out_axes), size=axis_size, names=names)

    def run(pure: Any, entry: Entry, labels: Sequence[Any], keys: Any) -> Any:
        # jax.pmap cannot tell whether a result is the same on all devices; vmap can.
        checked = jax.vmap(
            pure,
            in_axes=(entry.labels, 0),
            out_axes=tuple(labels),
            axis_name=axis_name,
            axis_size=entry.size(axis_size),
        )
        jax.eval_shape(checked, entry.values, keys)
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
            [x[0] for x in group] if label is None else group
            for label, group in zip(labels, groups, strict=True)
        )

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = bound(f, args, kwargs)
        args = tuple(Constant(x) if n in static else x for n, x in enumerate(args))
        return mapping.call(f, constants(args, in_axes), kwargs, run)

    return renamable(functools.update_wrapper(call, f, updated=()), pmap, f, options)


def _numbers(numbers: int | Sequence[int]) -> tuple[int, ...]:
    return (numbers,) if isinstance(numbers, int) else tuple(numbers)


@overload
def shard_map(f: Callable[P, R], /, **options: Any) -> Callable[P, R]: ...
@overload
def shard_map(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def shard_map(  # pyright: ignore[reportInconsistentOverload]
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
    options = {k: v for k, v in locals().items() if k != "f"}
    if f is MISSING:
        return lambda f: shard_map(f, **options)
    static = Static(options)

    def call(*args: Any, **kwargs: Any) -> Any:
        return _shard_mapped(static, f, *bound(f, args, kwargs))

    return functools.update_wrapper(call, f, updated=())


@compiled_at_top("nnx.shard_map")
def _shard_mapped(static: Static, f: Any, args: Any, kwargs: Any) -> Any:
    options = dict(static.value)
    specs = options.pop("in_specs"), options.pop("out_specs")

    def run(pure: Any, entry: Entry, labels: Sequence[Any], keys: Any) -> Any:
        in_specs = entry.labels, _EVERYWHERE
        mapped = jax.shard_map(
            pure, in_specs=in_specs, out_specs=tuple(labels), **options
        )
        if is_outermost():  # operation by operation, JAX says less of what is wrong
            mapped = jax.jit(mapped)
        return mapped(_laid_out(options["mesh"], entry), keys)

    kinds = "in_specs", "out_specs"
    mapping = _Mapping("nnx.shard_map", specs, kinds, default=_EVERYWHERE)
    return mapping.call(f, args, kwargs, run)


_EVERYWHERE = PartitionSpec()


def _laid_out(mesh: Any, entry: Entry) -> list[Any]:
    """The arrays as the specs say; inside jit an explicit mesh asks for it."""
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return entry.values
    return [
        jax.sharding.reshard(value, jax.sharding.NamedSharding(mesh, spec))
        for value, spec in zip(entry.values, entry.labels, strict=True)
    ]


@overload
def transform_metadata(f: Callable[P, R], /, **options: Any) -> Callable[P, R]: ...
@overload
def transform_metadata(
    **options: Any,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def transform_metadata(  # pyright: ignore[reportInconsistentOverload]
    f: Any = MISSING, *, in_axes: Any = 0, out_axes: Any = 0, partition: str | None
) -> Any:
    """Gives the axis of a mapped function a name in `out_sharding`, and does only that.

    Around or inside a `vmap`, `pmap` or `scan` it is their
    `transform_metadata={nnx.PARTITION_NAME: partition}`. Around any other function, as
    one that is given to `jax.vmap`, it takes the axis out of the metadata that the
    function sees, and puts it into that of the Variables that it makes and returns.

    Args:
      f: the function; without it, returns a decorator.
      in_axes: the axes of the arguments, see `vmap`.
      out_axes: the axes of the results, see `vmap`.
      partition: the name of the axis.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> @nnx.vmap(axis_size=3)
      ... @nnx.transform_metadata(partition='layers')
      ... def make():
      ...     return nnx.Param(jnp.ones(2), out_sharding=('data',))
      >>> make().out_sharding
      ('layers', 'data')
    """
    if f is MISSING:
        options = {"in_axes": in_axes, "out_axes": out_axes, "partition": partition}
        return lambda f: transform_metadata(f, **options)
    _check_axes("nnx.transform_metadata", in_axes, out_axes)
    names = {PARTITION_NAME: partition}
    mapping = _Mapping("nnx.transform_metadata", (in_axes, out_axes), names=names)

    def call(*args: Any, **kwargs: Any) -> Any:
        entry = mapping.enter(*bound(f, args, kwargs))
        with Visit(mapping.transform, plain=entry.plain) as visit:
            inner_args, inner_kwargs = entry.show(visit, entry.values)
            entry.shrink(visit, names)
            result = f(*inner_args, **inner_kwargs)
            exit = Exit(entry, visit, result, out_axes, "out_axes", names)
        return exit.applied_to(exit.arrays)

    return partitioned(functools.update_wrapper(call, f, updated=()), f, names)
