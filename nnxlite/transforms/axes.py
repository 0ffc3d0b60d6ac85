"""Metadata that names axes, when an array gains or loses one.

`out_sharding` has an entry for each axis of the array, and so may other metadata of a
user's. Inside vmap or scan a sliced array has one axis less, outside a stacked one has
one more; the metadata follows.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ..core.metadata import NO_METADATA, Metadata

PARTITION_NAME = "partition_name"
Names = Mapping[str, Any]
NO_NAMES: Names = NO_METADATA


def with_axis(metadata: Metadata, axis: int, rank: int, names: Names) -> Metadata:
    """The metadata of an array after it has gained an axis.

    Args:
      metadata: that of the array without the axis.
      axis: where the axis is.
      rank: of the array with the axis.
      names: what the axis is called, by the name of the metadata; under
        `PARTITION_NAME` what `out_sharding` gets. None where nothing is said.
    """

    def insert(name: str, entries: list[Any]) -> None:
        place = axis % rank
        entries += [None] * (place - len(entries))
        key = PARTITION_NAME if name == "out_sharding" else name
        entries.insert(place, names.get(key))

    return _changed(metadata, names, insert)


def without_axis(metadata: Metadata, axis: int, rank: int, names: Names) -> Metadata:
    """The metadata of an array after it has lost an axis; see `with_axis`."""

    def remove(name: str, entries: list[Any]) -> None:
        del entries[axis % rank : axis % rank + 1]

    return _changed(metadata, names, remove)


def _changed(
    metadata: Metadata, names: Names, change: Callable[[str, list[Any]], None]
) -> Metadata:
    items = dict(metadata)
    for name in ("out_sharding", *names):
        value = items.get(name)
        if isinstance(value, tuple) and not hasattr(value, "device_set"):
            entries = list(value)
            change(name, entries)
            items[name] = tuple(entries)
    return Metadata.of(metadata.kind, items)


# Functions that remember how they were made, so that a name can be given to the axis
# by a decorator of its own, inside or outside. A copied attribute tells of no other
# function: it names the one that it is for.


def renamable(
    call: Callable[..., Any],
    transform: Callable[..., Any],
    f: Callable[..., Any],
    options: Mapping[str, Any],
) -> Callable[..., Any]:
    """Lets `partitioned` make the function `call = transform(f, **options)` again."""

    def again(names: Names) -> Callable[..., Any]:
        merged = {**options["transform_metadata"], **names}
        return transform(f, **{**options, "transform_metadata": merged})

    call._nnx_again = call, again  # pyright: ignore[reportFunctionMemberAccess]
    return call


def partitioned(
    call: Callable[..., Any], f: Callable[..., Any], names: Names
) -> Callable[..., Any]:
    """`call`, which does the bookkeeping for `f`, or a mapped `f` that does it."""
    owner, again = getattr(f, "_nnx_again", (None, None))
    if owner is f and again is not None:
        return again(names)
    call._nnx_names = call, f, names  # pyright: ignore[reportFunctionMemberAccess]
    return call


def named(f: Callable[..., Any], names: Names) -> tuple[Callable[..., Any], Names]:
    """The function to map and the names to use, if `f` is a `partitioned` one."""
    owner, inner, own = getattr(f, "_nnx_names", (None, None, {}))
    return (inner, {**names, **own}) if owner is f and inner is not None else (f, names)
