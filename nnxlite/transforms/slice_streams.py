"""Random streams for the slices of a `vmap` or `scan`, each of which draws its own."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.filters import to_predicate
from ..core.module import iter_nodes
from ..core.rng_backups import undone_on_error
from ..core.rngs import RngStream
from .boundary import Visit
from .captures import View
from .labels import Entry


class SliceStreams:
    """The random streams that are split for the slices of a call.

    Args:
      only: which, see `vmap`.
      entry: the arguments.
      function: the function that is called, whose own streams count too.
    """

    def __init__(self, only: Any, entry: Entry, function: Any):
        self.streams: list[RngStream] = []
        if only is False or only is None:
            return
        matches = to_predicate(... if only is True else only)
        seen, _ = View(function).look()
        for path, node in iter_nodes([*entry.arguments.values(), *seen, function]):
            if not isinstance(node, RngStream) or not matches(path, node.key):
                continue
            if entry.by_variable.get(node.key) is None:
                self.streams.append(node)
        if only is not True and not self.streams:
            raise ValueError(
                f"{entry.transform}: split_rngs={only!r} matches no random stream: "
                "check the spelling, or pass True for all streams"
            )

    @contextlib.contextmanager
    def split(self, size: int | None) -> Iterator[list[Any]]:
        """The keys of all slices; if the block raises, no key has been drawn."""
        with undone_on_error(self.streams):
            yield [_split(stream(), size or 1) for stream in self.streams]

    def show(self, visit: Visit, keys: Sequence[Any]) -> None:
        """Shows each stream the key of one slice, with nothing drawn from it yet."""
        for stream, key in zip(self.streams, keys, strict=True):
            values = key, jnp.zeros(key.shape, jnp.uint32)
            visit.show((stream.key, stream.count), values)

    def hide(self, visit: Visit) -> None:
        """Forgets what was drawn inside: outside, each stream gave one key."""
        for stream in self.streams:
            visit.frame.written.pop(stream.key, None)
            visit.frame.written.pop(stream.count, None)


def _split(key: Any, size: int) -> Any:
    """Splits a key, or each of several; the slices come first."""

    def split(key: Any) -> Any:
        return jax.random.split(key, size)

    for _ in range(key.ndim):
        split = jax.vmap(split, out_axes=1)
    return split(key)
