"""Streams replaced for a while: split for the lanes of a vmap, forked, then restored.

`split_rngs` and `fork_rngs` change the streams of a graph in place and hand out
*backups* (see `rng_backups`) that bring back what was. `with_rngs` makes a copy of the
graph with other streams instead. Each of the three is also a decorator, which does it
to the arguments of every call.

Each stream gives up one key, from which all that replaces it is made, and a backup
already counts that key: what is drawn from the replacement and what is drawn after it
never comes from one key. A stream in several places is replaced once. Everything is
checked before anything is changed, and what fails nevertheless is undone.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, overload

from .filters import All, Filter
from .key_shapes import Rule, Shape, first_rule, rule, rules_of, shape_of
from .module import is_leaf, iter_nodes
from .paths import Path, format_path
from .rng_backups import RngBackups, StreamBackup, undone_on_error
from .rngs import RngStream, check_is_single
from .splitting import clone
from .variable import MISSING

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Splits = int | Shape | Mapping[Any, int | Shape | None]


@overload
def split_rngs(
    node: Any, /, *, splits: int | Shape, only: Filter = ..., squeeze: bool = False
) -> RngBackups: ...
@overload
def split_rngs(
    *, splits: int | Shape, only: Filter = ..., squeeze: bool = False
) -> Callable[[F], F]: ...
def split_rngs(
    node: Any = MISSING,
    /,
    *,
    splits: int | Shape,
    only: Filter = ...,
    squeeze: bool = False,
) -> Any:
    """Splits streams in place, each into several keys from its next one.

    So that the lanes of a vmap, or the steps of a scan, draw different numbers: map
    the split streams over their first axis.

    Args:
      node: a Module or a pytree of them. Without one, the result is a decorator that
        splits the streams in the arguments of each call and restores them after it.
      splits: how many keys, or the shape of the keys.
      only: which streams: those whose key and count Variables both match. A str is
        a stream's tag.
      squeeze: with `splits=1`, whether the key keeps no axis.

    Returns:
      The backups, for `restore_rngs` or `with nnx.split_rngs(...):`. They already
      count the one key that each stream gives up.

    Raises:
      TypeError: if `splits` is neither an int nor a tuple of ints.
      ValueError: if it is negative, for `squeeze` with other splits than 1, and,
        naming its path, for a stream that is split already.

    Example:
      >>> import jax, nnxlite as nnx
      >>> dropout, x = nnx.Dropout(0.5, rngs=nnx.Rngs(0)), jax.numpy.ones((4, 8))
      >>> with nnx.split_rngs(dropout, splits=4):
      ...     dropout.rngs.key.shape
      (4,)
      >>> dropout.rngs.key.shape
      ()
      >>> @nnx.split_rngs(splits=4)
      ... def shape_inside(layer):
      ...     return layer.rngs.key.shape
      >>> shape_inside(dropout)
      (4,)
    """
    shape = shape_of(splits)
    if squeeze and splits != 1:
        raise ValueError(
            f"split_rngs: squeeze=True takes away the axis of splits=1, but splits is "
            f"{splits!r}: pass splits=1, or leave squeeze out"
        )
    make = _fork_of_one if squeeze else _fork
    return _in_place(node, _Operation("split_rngs", [rule(only, shape)], make))


@overload
def fork_rngs(node: Any, /, *, split: Splits | None = None) -> RngBackups: ...
@overload
def fork_rngs(*, split: Splits | None = None) -> Callable[[F], F]: ...
def fork_rngs(node: Any = MISSING, /, *, split: Splits | None = None) -> Any:
    """Forks streams in place: each goes on from its next key, with a count of 0.

    So that what a function draws leaves no trace but one key in each stream.

    Args:
      node: see `split_rngs`.
      split: None, or how many keys each fork has: a number or shape for all streams,
        or a mapping of filters to these or None. The first filter that matches wins,
        see `only` of `split_rngs`; streams that none matches are left alone.

    Returns:
      The backups, see `split_rngs`.

    Raises:
      TypeError: if a number of keys is neither an int nor a tuple of ints.
      ValueError: if it is negative, and, naming its path, for a stream to be split
        that is split already.

    Example:
      >>> import nnxlite as nnx
      >>> rngs = nnx.Rngs(0, dropout=1)
      >>> with nnx.fork_rngs(rngs):
      ...     keys = [rngs(), rngs(), rngs()]
      >>> rngs.default.count.value.item()
      1
    """
    return _in_place(node, _Operation("fork_rngs", rules_of(split), _fork))


@overload
def with_rngs(
    node: T,
    /,
    *,
    split: Splits | None = None,
    fork: Filter = None,
    broadcast: Splits | None = None,
    only: Filter = True,
) -> T: ...
@overload
def with_rngs(
    *,
    split: Splits | None = None,
    fork: Filter = None,
    broadcast: Splits | None = None,
    only: Filter = True,
) -> Callable[[F], F]: ...
def with_rngs(
    node: Any = MISSING,
    /,
    *,
    split: Splits | None = None,
    fork: Filter = None,
    broadcast: Splits | None = None,
    only: Filter = True,
) -> Any:
    """A copy whose streams are split, forked or broadcast; it shares other Variables.

    The filters are asked about the streams themselves, as those of `Rngs.split`. A
    stream is split if a filter of `split` matches it, or else broadcast, or else
    forked. One that none matches is shared with the original.

    Args:
      node: a Module or a pytree of them. Without one, the result is a decorator that
        calls the function with such copies of its arguments.
      split: how many keys each stream is split into, or a mapping of filters to
        that; the first that matches wins, None is no match.
      fork: the streams that start anew from their next key.
      broadcast: as `split`, for streams of one key repeated.
      only: which streams all this is about.

    Returns:
      The copy. The original streams have given up one key each.

    Raises:
      TypeError: if a number of keys is neither an int nor a tuple of ints.
      ValueError: if it is negative, and, naming its path, for a stream to be split
        that is split already, or that matches specific filters (other than `...`
        and True) of two of the operations.

    Example:
      >>> import nnxlite as nnx
      >>> rngs = nnx.Rngs(params=0, dropout=1, noise=2)
      >>> new = nnx.with_rngs(rngs, split={'params': 5}, broadcast={'dropout': 2})
      >>> new.params.key.shape, new.dropout.key.shape, new.noise.key is rngs.noise.key
      ((5,), (2,), True)
    """
    forks = fork if isinstance(fork, (list, tuple)) else [fork]
    operations = [
        _Operation("split", _only(rules_of(split), only), _fork, False),
        _Operation("broadcast", _only(rules_of(broadcast), only), _broadcast, False),
        _Operation("fork", _only([rule(f, None) for f in forks], only), _fork),
    ]

    def copied(node: Any, where: Callable[[Path], str] = format_path) -> Any:
        with _made(node, operations, _itself, where) as made:
            copy = clone(node, variables=False)
            for old, new in zip(_streams(node), _streams(copy), strict=True):
                if old in made:
                    new.key = old.key.copy(made[old].key.value)
                    new.count = old.count.copy(made[old].count.value)
        return copy

    def call(f: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = copied((args, kwargs), _where_in_call)
        return f(*args, **kwargs)

    return _decorator(call) if _is_missing("with_rngs", node) else copied(node)


# The three are one: operations that choose streams by rules and make what replaces
# them. Those in place ask a filter about a stream's Variables, as Flax does.


class _Operation(NamedTuple):
    """One way to make a new stream from a stream's next key.

    Attributes:
      name: how messages call it.
      rules: which streams it is for, and their shape.
      make: makes the new stream.
      takes_none: whether a rule without a shape counts, too.
    """

    name: str
    rules: list[Rule]
    make: Callable[[RngStream, Any], RngStream]
    takes_none: bool = True


def _fork(stream: RngStream, shape: Shape | None) -> RngStream:
    return stream.fork(split=shape)


def _fork_of_one(stream: RngStream, shape: Shape) -> RngStream:
    return RngStream(stream.split(shape).key.value[0], tag=stream.tag)


def _broadcast(stream: RngStream, shape: Shape) -> RngStream:
    return stream.broadcast(shape)


def _only(rules: list[Rule], only: Filter) -> list[Rule]:
    return [r._replace(matches=All(only, r.filter)) for r in rules]


Places = Iterable[tuple[Path, Any]]


def _variables(path: Path, stream: RngStream) -> Places:
    return ((*path, "key"), stream.key), ((*path, "count"), stream.count)


def _itself(path: Path, stream: RngStream) -> Places:
    return ((path, stream),)


def _streams(node: Any) -> list[RngStream]:
    return [stream for _, stream in iter_nodes(node) if isinstance(stream, RngStream)]


@contextlib.contextmanager
def _made(
    node: Any,
    operations: list[_Operation],
    places: Callable[[Path, RngStream], Places],
    where: Callable[[Path], str],
) -> Iterator[dict[RngStream, RngStream]]:
    """Gives what each chosen stream is to be replaced by; undoes all on an error."""
    chosen: dict[RngStream, tuple[_Operation, Rule]] = {}
    for path, stream in iter_nodes(node):
        if not isinstance(stream, RngStream):
            continue
        found = _operations_for(operations, places(path, stream))
        _check_unambiguous(found, path, where)
        if found:
            operation, matched = found[0]
            if matched.shape is not None:
                check_is_single(stream, f"the stream {where(path)!r}")
            chosen[stream] = found[0]
    with undone_on_error(chosen):
        yield {
            stream: operation.make(stream, matched.shape)
            for stream, (operation, matched) in chosen.items()
        }


def _operations_for(
    operations: list[_Operation], places: Places
) -> list[tuple[_Operation, Rule]]:
    found = [(each, first_rule(each.rules, *places)) for each in operations]
    return [
        (operation, matched)
        for operation, matched in found
        if matched is not None and (operation.takes_none or matched.shape is not None)
    ]


def _check_unambiguous(
    found: list[tuple[_Operation, Rule]], path: Path, where: Callable[[Path], str]
) -> None:
    specific = [
        f"{operation.name} by {matched.filter!r}"
        for operation, matched in found
        if matched.filter is not ... and matched.filter is not True
    ]
    if len(specific) > 1:
        raise ValueError(
            f"with_rngs: the stream {where(path)!r} is matched for "
            f"{' and for '.join(specific)}: narrow these filters, with nnx.All and "
            "nnx.Not, so that only one matches it"
        )


def _in_place(node: Any, operation: _Operation) -> Any:
    def replaced(node: Any, where: Callable[[Path], str] = format_path) -> RngBackups:
        with _made(node, [operation], _variables, where) as made:
            backups = RngBackups(tuple(StreamBackup.of(stream) for stream in made))
            for stream, new in made.items():
                stream.key.value = new.key.value
                stream.count.value = new.count.value
        return backups

    def call(f: Any, args: Any, kwargs: Any) -> Any:
        with replaced((args, kwargs), _where_in_call):
            return f(*args, **kwargs)

    return _decorator(call) if _is_missing(operation.name, node) else replaced(node)


def _decorator(call: Callable[[Any, Any, Any], Any]) -> Callable[[Any], Any]:
    def decorator(f: Any) -> Any:
        @functools.wraps(f)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return call(f, args, kwargs)

        return wrapper

    return decorator


def _where_in_call(path: Path) -> str:
    return format_path(path[1:], ("args", "kwargs")[path[0]])


def _is_missing(name: str, node: Any) -> bool:
    if callable(node) and is_leaf(node):
        raise TypeError(
            f"{name} was given a function, {node!r}, which holds no streams: as a "
            f"decorator it is called with keywords only, `@nnx.{name}(...)`"
        )
    return node is MISSING
