"""What random streams held, so that it can be given back.

Backups hold the streams themselves: what is restored is each stream, whether or not
the model that it was found in still has it.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax

from .rngs import RngStream


class StreamBackup(NamedTuple):
    """What a stream held: its key, and how many keys it had handed out."""

    stream: RngStream
    key: jax.Array
    drawn: jax.Array

    @classmethod
    def of(cls, stream: RngStream) -> "StreamBackup":
        """What the stream holds now."""
        return cls(stream, stream.key.value, stream.count.value)

    def restore(self) -> None:
        """Gives it back; what has not changed is not written."""
        if self.stream.key.value is not self.key:
            self.stream.key.value = self.key
        if self.stream.count.value is not self.drawn:
            self.stream.count.value = self.drawn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RngBackups:
    """What streams held before they were replaced.

    A context manager that restores them, an iterable of one backup for each stream,
    and a pytree, so that it can leave a transform.
    """

    backups: tuple[StreamBackup, ...]

    def __iter__(self) -> Iterator[StreamBackup]:
        return iter(self.backups)

    def __enter__(self) -> "RngBackups":
        return self

    def __exit__(self, *error: object) -> None:
        restore_rngs(self)


def restore_rngs(backups: Iterable[StreamBackup], /) -> None:
    """Gives streams back the keys and counts they had before they were replaced.

    Args:
      backups: from `split_rngs` or `fork_rngs`, all or some of them.

    Raises:
      TypeError: for anything else; nothing is changed then.

    Example:
      >>> import nnxlite as nnx
      >>> rngs = nnx.Rngs(0)
      >>> backups = nnx.split_rngs(rngs, splits=3)
      >>> nnx.restore_rngs(backups)
      >>> rngs.default.key.shape, rngs.default.count.value.item()
      ((), 1)
    """
    items = list(backups) if isinstance(backups, Iterable) else [backups]
    for item in items:
        if not isinstance(item, StreamBackup):
            raise TypeError(
                f"restore_rngs: a {type(item).__name__} is no backup of a stream: pass "
                "what split_rngs or fork_rngs returned, `backups = "
                "nnx.split_rngs(model, splits=2)`, then `nnx.restore_rngs(backups)`"
            )
    with undone_on_error([item.stream for item in items]):
        for item in items:
            item.restore()


@contextlib.contextmanager
def undone_on_error(streams: Iterable[RngStream]) -> Iterator[None]:
    """Restores the streams if the block raises."""
    before = [StreamBackup.of(stream) for stream in streams]
    try:
        yield
    except BaseException:
        for backup in before:
            backup.restore()
        raise
