"""Metadata that names axes, when an array gains or loses one.

`out_sharding` has an entry for each axis of the array, and so may other metadata of a
user's. Inside vmap or scan a sliced array has one axis less, outside a stacked one has
one more; the metadata follows.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ..core.metadata import Metadata

PARTITION_NAME = "partition_name"
Names = Mapping[str, Any]


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
