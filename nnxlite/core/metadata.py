"""Metadata: what is said about a Variable's value, apart from the value.

Metadata is immutable, hashable, and unique: equal metadata is the same object, so
that compiled calls compare it by identity. Some entries have a meaning for nnxlite:
`out_sharding` says how the value's axes lie on a mesh, `tag` names an RNG stream,
`frozen=True` forbids to write the value, `persistent=False` keeps it out of files.
"""

import contextlib
import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import jax
from jax.core import Tracer

from .arrays import is_array

F = TypeVar("F", bound=Callable[..., Any])
NO_METADATA: Mapping[str, Any] = types.MappingProxyType({})
_HOOKS = (  # which Flax calls
    "on_add_axis",
    "on_create_value",
    "on_get_value",
    "on_remove_axis",
    "on_set_value",
)


class Metadata(Mapping[str, Any]):
    """An immutable mapping of which there is one object for each kind and content.

    So equality is identity, which is what compiled calls compare. The kind, a Variable
    class, is part of it because JAX's C++ code compares the static fields of a pytree
    node and forgets to compare its class.
    """

    __slots__ = ("__weakref__", "_items", "is_forwarded", "is_frozen", "kind")
    kind: type
    _items: dict[str, Any]
    is_frozen: bool
    is_forwarded: bool  # whether Variables have attributes of these names yet
    _all: "WeakValueDictionary[Any, Metadata]" = WeakValueDictionary()

    @classmethod
    def of(cls, kind: type, items: Mapping[str, Any]) -> "Metadata":
        """The Metadata of a kind with this content; lists in it become tuples."""
        if isinstance(items, Metadata) and items.kind is kind:
            return items
        items = {name: _frozen(value) for name, value in items.items()}
        try:
            key = (kind, frozenset((k, type(v), v) for k, v in items.items()))
        except TypeError:
            bad = [k for k, v in items.items() if not _is_hashable(v)]
            raise TypeError(
                f"metadata must be hashable, but {bad[0]!r} is "
                f"{items[bad[0]]!r}: use a tuple or a frozen dataclass"
            ) from None
        metadata = cls._all.get(key)
        if metadata is None:
            _refuse_hooks(kind, items)
            metadata = object.__new__(cls)
            metadata.kind = kind
            metadata._items = items
            metadata.is_frozen = bool(items.get("frozen"))
            metadata.is_forwarded = False
            metadata = cls._all.setdefault(key, metadata)
        return metadata

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    if TYPE_CHECKING:

        def __eq__(self, other: object, /) -> bool: ...
    else:
        __eq__ = object.__eq__
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> Any:
        return (Metadata.of, (self.kind, self._items))


def _refuse_hooks(kind: type, items: Mapping[str, Any]) -> None:
    for name in _HOOKS:
        if items.get(name):
            raise TypeError(
                f"metadata {name!r} would be a hook, and nobody would call it: write a "
                f"subclass of {kind.__name__} that overrides get_value or set_value"
            )


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class VariableMetadata:
    """What an initializer made by `with_metadata` returns: a value and its metadata.

    Example:
      >>> import jax, nnxlite as nnx
      >>> init = nnx.with_metadata(nnx.initializers.zeros, note='bias')
      >>> nnx.Param(init(jax.random.key(0), (2,))).note
      'bias'
    """

    raw_value: Any
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_shards_eagerly: list[bool] = [True]


def with_metadata(initializer: F, **metadata: Any) -> F:
    """Wraps an initializer so that the Variable made from it gets `metadata`.

    Example:
      >>> import nnxlite as nnx
      >>> init = nnx.with_metadata(nnx.initializers.ones, out_sharding=('a', None))
      >>> nnx.Linear(2, 3, kernel_init=init, rngs=nnx.Rngs(0)).kernel.out_sharding
      ('a', None)
    """

    def wrapped(*args: Any, **kwargs: Any) -> VariableMetadata:
        value = initializer(*args, **kwargs)
        if isinstance(value, VariableMetadata):
            return VariableMetadata(value.raw_value, {**value.metadata, **metadata})
        return VariableMetadata(value, metadata)

    return wrapped  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def _restoring(old: bool) -> Iterator[None]:
    try:
        yield
    finally:
        _shards_eagerly[0] = old


def use_eager_sharding(value: bool, /) -> contextlib.AbstractContextManager[None]:
    """Says whether a new Variable is placed by its `out_sharding` metadata at once.

    Takes effect immediately; as a context manager it is undone at the end.

    Example:
      >>> import nnxlite as nnx
      >>> with nnx.use_eager_sharding(False):
      ...     nnx.using_eager_sharding()
      False
    """
    old = _shards_eagerly[0]
    _shards_eagerly[0] = value
    return _restoring(old)


def using_eager_sharding() -> bool:
    """Tells whether new Variables are placed by their `out_sharding` metadata.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.using_eager_sharding()
      True
    """
    return _shards_eagerly[0]


def placed(value: Any, metadata: Mapping[str, Any]) -> Any:
    """Places a new value as its `out_sharding` says, if there is a mesh to place it on.

    The mesh is that of the metadata, or the one set by `jax.set_mesh`; without one
    the value stays where it is, so that the same model runs on a single device.
    """
    spec = metadata["out_sharding"]
    if spec is None or not is_array(value) or not _shards_eagerly[0]:
        return value
    sharding, is_explicit = spec, False
    if not isinstance(spec, jax.sharding.Sharding):
        mesh = metadata.get("mesh") or jax.sharding.get_abstract_mesh()
        manual = jax.sharding.AxisType.Manual  # inside shard_map: one shard, placed
        if mesh.empty or all(kind == manual for kind in mesh.axis_types):
            return value
        sharding = jax.sharding.PartitionSpec(*spec)
        if isinstance(mesh, jax.sharding.Mesh):
            sharding = jax.sharding.NamedSharding(mesh, sharding)
        is_explicit = jax.sharding.AxisType.Explicit in mesh.axis_types
    if isinstance(value, jax.ShapeDtypeStruct):
        if isinstance(sharding, jax.sharding.PartitionSpec):
            sharding = jax.sharding.NamedSharding(_mesh_in_use(), sharding)
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
    if not isinstance(value, Tracer):
        return jax.device_put(value, sharding)
    if is_explicit:
        return jax.sharding.reshard(value, sharding)
    return jax.lax.with_sharding_constraint(value, sharding)


def _mesh_in_use() -> Any:
    try:
        return jax.sharding.get_mesh()
    except ValueError:  # while tracing only the abstract mesh is known
        return jax.sharding.get_abstract_mesh()
