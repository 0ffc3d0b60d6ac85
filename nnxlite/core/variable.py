"""Variables: mutable cells that hold one value, and what is said about it.

A Variable has a *value* (an array, or any pytree, or any object), *metadata* (string
keys, hashable values) and a *kind*, its class: `Param`, `BatchStat`, ... Writing the
value is cheap and no structural change. Metadata is immutable and shared between all
Variables that have the same; changing it gives the Variable another one.

The value lies in the Variable's *cell*. Compiled calls hold
cells, not Variables, so that a cached call keeps no model alive and reads and writes
a value in nanoseconds. An empty cell says "look again": the Variable has moved to
another cell (its metadata or the kind of its value has changed), or it never had a
value outside a frame that has ended.

A Variable is not a container of Variables, and it knows neither its name nor its
owner.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar, overload

import jax
import jax.numpy as jnp

from . import frames
from .arrays import is_array, is_dynamic, value_repr
from .errors import name_of
from .frames import everywhere
from .metadata import Metadata, VariableMetadata, placed
from .operators import ArrayOperators, value_of
from .workarounds import let_lax_take

A = TypeVar("A")
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()


class Cell:
    """Where one value lies; without the attribute `value` it is empty."""

    __slots__ = ("value",)
    value: Any


class Variable(ArrayOperators, Generic[A]):
    """A mutable cell with a value and metadata.

    Read with `v.value`, `v[...]` or `v[index]`; write with `v.value = x`,
    `v[...] = x` (keeps shape and dtype), `v[index] = x` or `v += x`. Operators and
    functions of `jnp` (from jax 0.10 also `jax.lax`) take it as its value and return
    plain arrays.

    Metadata, and what attributes the value has when it is written, are attributes of
    the Variable too: `v.shape`, `v.sum()`.

    A subclass may override `get_value` and `set_value` to store something else than
    it shows; gradients are then with respect to what is stored (`raw_value`).

    Args:
      value: the value; a `VariableMetadata` or Variable gives value and metadata.
      **metadata: hashable facts about the value, readable as attributes.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> v = nnx.Variable(jnp.arange(3.0), note='three')
      >>> v[0] = 5.0
      >>> v += 1
      >>> print(v * 2, v.note, v.shape)
      [12.  4.  6.] three (3,)
    """

    __slots__ = ("__weakref__", "_cell", "_home", "_initializer", "_metadata")
    _no_metadata: Metadata
    _initializer: Any  # what a layer drew the value with; lost where values are loaded

    def __init__(self, value: A | VariableMetadata, **metadata: Any):
        if "_metadata" in metadata:  # from JAX, when it makes Variables of leaves
            _begin(self, value, metadata["_metadata"])
            return
        if isinstance(value, VariableMetadata):
            metadata = {**value.metadata, **metadata}
            value = value.raw_value
        elif isinstance(value, Variable):
            metadata = {**value._metadata, **metadata}
            value = value.raw_value
        elif _is_ref(value):
            raise ValueError(
                f"a {type(self).__name__} cannot hold a jax Ref: it is mutable itself; "
                "pass its value, `ref[...]`"
            )
        kind = type(self)
        given = Metadata.of(kind, metadata) if metadata else kind._no_metadata
        if "out_sharding" in given:
            value = placed(value, given)
        _begin(self, value, given)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._no_metadata = Metadata.of(cls, {})
        setattr(cls, "__hash__", object.__hash__)  # noqa: B010
        overridden = cls.get_value, cls.set_value
        if overridden != (Variable.get_value, Variable.set_value):
            setattr(cls, "value", property(*overridden))  # noqa: B010
        register_as_pytree(cls)

    def get_value(self, *, index: Any = MISSING) -> Any:
        """Returns the value, or a part of it; dicts and lists are copied."""
        value = self.raw_value
        if index is not MISSING and index is not ...:
            return value[index]
        if isinstance(value, (dict, list)):
            return jax.tree.map(lambda leaf: leaf, value)
        return value

    def set_value(self, value: Any, *, index: Any = MISSING) -> None:
        """Replaces the value, or a part of it.

        Shape and dtype may change when the whole value is replaced.
        """
        value = value_of(value)
        if index is not MISSING:
            value = _updated(self.raw_value, index, value)
        self.raw_value = value

    def get_raw_value(self) -> Any:
        """Returns what is stored: `value`, unless a subclass overrides `get_value`."""
        if everywhere:
            return frames.read(self)
        try:
            return self._cell.value
        except AttributeError:
            raise frames.ended(self) from None

    def set_raw_value(self, value: Any) -> None:
        """Replaces what is stored.

        Raises:
          ValueError: if the Variable is frozen.
        """
        if self._metadata.is_frozen:
            raise ValueError(
                f"{name_of(self)} is frozen and cannot be written; nnx.unfreeze(model) "
                "lets it be written again"
            )
        self._write(value)

    def _write(self, value: Any) -> None:
        if frames.write(self, value):
            return
        old = self.raw_value
        if type(value) is not type(old) or not is_array(value):
            if type(value) not in _forwarded_types:
                _forward_value(value)
            if not (is_dynamic(value) and is_dynamic(old)):
                self._leave_cell()
        self._cell.value = value

    raw_value: Any = property(get_raw_value, set_raw_value)
    if TYPE_CHECKING:
        value: A
    else:  # one Python call for a read: JAX makes it once a Variable and flattening
        value = property(get_raw_value, set_value)

    def __getitem__(self, index: Any) -> Any:
        value = self.get_value()
        return value if index is ... else value[_plain(index)]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.set_value(_updated(self.get_value(), _plain(index), value_of(value)))

    def _leave_cell(self) -> None:
        """Moves to a new cell, which tells every plan that holds the old one."""
        old = self._cell
        _set_cell(self, Cell())
        if hasattr(old, "value"):
            self._cell.value = old.value
            del old.value

    if TYPE_CHECKING:  # metadata and attributes of the value: see `_Forwarded`

        def __getattr__(self, name: str) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("value", "raw_value"):
            raise AttributeError(
                f"{type(self).__name__} has no settable attribute {name!r}: write its "
                "value with `v[...] = x` or `v.value = x`, and its metadata with "
                f"`v.set_metadata({name}=...)`"
            )
        object.__setattr__(self, name, value)

    # Metadata

    @overload
    def get_metadata(self) -> dict[str, Any]: ...
    @overload
    def get_metadata(self, name: str, default: Any = MISSING) -> Any: ...
    def get_metadata(self, name: str | None = None, default: Any = MISSING) -> Any:
        """Returns all metadata as a dict, or one entry, or `default` for a missing one.

        Raises:
          KeyError: for a missing entry without a default.
        """
        if name is None:
            return dict(self._metadata)
        if name not in self._metadata and default is MISSING:
            raise KeyError(
                f"{type(self).__name__} has no metadata {name!r}, only "
                f"{list(self._metadata)}"
            )
        return self._metadata.get(name, default)

    def has_metadata(self, name: str) -> bool:
        """True if there is an entry `name`."""
        return name in self._metadata

    def set_metadata(self, *args: Any, **metadata: Any) -> None:
        """Changes entries: `set_metadata(note=1)`, `('note', 1)` or `({'note': 1})`."""
        if len(args) == 2:
            metadata = {args[0]: args[1], **metadata}
        elif args:
            metadata = {**args[0], **metadata}
        self._change_metadata({**self._metadata, **metadata})

    def del_metadata(self, name: str) -> None:
        """Removes one entry; KeyError if there is none."""
        rest = self.get_metadata()
        if name not in rest:
            raise KeyError(f"{type(self).__name__} has no metadata {name!r}")
        del rest[name]
        self._change_metadata(rest)

    def _change_metadata(self, items: Mapping[str, Any]) -> None:
        metadata = Metadata.of(type(self), items)
        if metadata is not self._metadata:
            frames.before_change(self, self._home)
            self._nnx_restore(metadata)

    def _nnx_snapshot(self) -> Metadata:
        return self._metadata

    def _nnx_restore(self, structure: Metadata) -> None:
        _take_metadata(self, structure)
        self._leave_cell()

    # Copies

    @classmethod
    def from_metadata(cls, value: Any, metadata: Mapping[str, Any]) -> Self:
        """Makes a Variable from a raw value and a mapping of metadata.

        Unlike the constructor it does not run a subclass's `__init__`.
        """
        variable = object.__new__(cls)
        _begin(variable, value, Metadata.of(cls, metadata))
        return variable

    def copy(self, value: Any = MISSING, **metadata: Any) -> Self:
        """Returns a new Variable of this kind, with other value or metadata if given.

        The stored value is shared, not copied: arrays are immutable.
        """
        value = self.raw_value if value is MISSING else value_of(value)
        new = type(self).from_metadata(value, {**self._metadata, **metadata})
        if (initializer := getattr(self, "_initializer", None)) is not None:
            set_initializer(new, initializer)
        return new

    replace = copy

    def to_state(self) -> Self:
        """Returns a copy."""
        return self.copy()

    def copy_from(self, other: "Variable[Any]") -> None:
        """Takes over value and metadata of a Variable of the same kind.

        Raises:
          ValueError: if `other` is of another kind.
        """
        if type(other) is not type(self):
            raise ValueError(
                f"cannot copy a {type(other).__name__} into a {type(self).__name__}: "
                "the kinds must be the same; copy the value, `a.value = b.value`"
            )
        self.update_from_state(other)

    def update_from_state(self, other: "Variable[Any]") -> None:
        """Takes over the raw value and metadata of `other`, of whatever kind.

        Raises:
          ValueError: if this Variable is frozen and `other` is not.
        """
        write = self._write if other._metadata.is_frozen else self.set_raw_value
        write(other.raw_value)
        self._change_metadata(other._metadata)

    @property
    def type(self) -> type:
        """The kind: the Variable's class."""
        return type(self)

    def __copy__(self) -> Self:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = new = self.copy()
        new._write(copy.deepcopy(self.raw_value, memo))
        return new

    def __reduce__(self) -> Any:
        value = self.raw_value
        if is_array(value) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = _KeyData(jax.random.key_impl(value), jax.random.key_data(value))
        return (_revived, (type(self), value, dict(self._metadata)))

    def __repr__(self) -> str:
        parts = [f"value={value_repr(self.raw_value)}"]
        parts += [f"{name}={value!r}" for name, value in self._metadata.items()]
        return f"{type(self).__name__}({', '.join(parts)})"


Variable._no_metadata = Metadata.of(Variable, {})

# Writing a slot through its descriptor skips `Variable.__setattr__`.
_set_cell = Variable._cell.__set__
_set_metadata = Variable._metadata.__set__
_set_home = Variable._home.__set__
set_initializer = Variable._initializer.__set__


def _take_metadata(variable: Variable[Any], metadata: Metadata) -> None:
    if not metadata.is_forwarded:
        _forward(metadata)
        metadata.is_forwarded = True
    _set_metadata(variable, metadata)


class _Forwarded:
    """An attribute that is metadata, or else an attribute of the value.

    There is one of these on the class for every name ever used. A `__getattr__` could
    do the same, but with one Python looks up *every* attribute of a Variable the slow
    way: 26 ns instead of 10 for its cell, which each flattening of a State pays once
    for each Variable.
    """

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __get__(self, variable: Variable[Any] | None, owner: Any = None) -> Any:
        if variable is None:
            return self
        if self.name in variable._metadata:
            return variable._metadata[self.name]
        try:
            return getattr(variable.get_value(), self.name)
        except AttributeError:
            raise AttributeError(
                f"{type(variable).__name__} has no attribute or metadata "
                f"{self.name!r}, and neither has its value, a "
                f"{type(variable.get_value()).__name__}"
            ) from None


_forwarded_types: set[type] = set()


def _forward(names: Iterable[str]) -> None:
    for name in names:
        if name[:2] != "__" and not hasattr(Variable, name):
            setattr(Variable, name, _Forwarded(name))


def _forward_value(value: Any) -> None:
    _forward(name for name in dir(value) if name[:1] != "_")
    if is_array(value) or not hasattr(value, "__dict__"):
        _forwarded_types.add(type(value))  # all instances have the same attributes


def _begin(variable: Variable[Any], value: Any, metadata: Metadata) -> None:
    """Gives a new Variable its value: in the innermost frame if there is one."""
    if type(value) not in _forwarded_types:
        _forward_value(value)
    _take_metadata(variable, metadata)
    _set_home(variable, frames.home_of_new(variable))
    cell = Cell()
    _set_cell(variable, cell)
    frame = frames.current() if everywhere else None
    if frame is None:
        cell.value = value
    else:
        frame.values[variable] = value


class _KeyData(NamedTuple):
    """A random key on its way through pickle: JAX 0.9 cannot pickle keys itself."""

    implementation: Any
    data: Any


def _revived(kind: type[Variable[Any]], value: Any, metadata: Any) -> Variable[Any]:
    if isinstance(value, _KeyData):
        value = jax.random.wrap_key_data(value.data, impl=value.implementation)
    return kind.from_metadata(value, metadata)


def _is_ref(value: Any) -> bool:
    return type(value).__name__ in ("Ref", "MutableArray") and hasattr(value, "_refs")


def _plain(index: Any) -> Any:
    """An index with values in place of Variables."""
    if isinstance(index, tuple):
        return tuple(map(value_of, index))
    return value_of(index)


def _updated(old: Any, index: Any, new: Any) -> Any:
    """`old` with `new` at `index`; the whole keeps its shape and dtype."""
    if is_dynamic(old) and not is_array(old):
        old = jnp.asarray(old)  # a number is an array in every transform, so here too
    if index is not ... and not is_array(old):
        old = jax.tree.map(lambda leaf: leaf, old)
        old[index] = new
        return old
    if index is not ...:
        return jnp.asarray(old).at[index].set(new)
    if not is_array(old) or isinstance(new, jax.ShapeDtypeStruct):
        return new
    if isinstance(new, jax.Array) and new.shape == old.shape and new.dtype == old.dtype:
        return new
    dtype = jax.dtypes.canonicalize_dtype(old.dtype)
    try:
        return jnp.broadcast_to(jnp.asarray(new, dtype=dtype), old.shape)
    except ValueError:
        raise ValueError(
            f"`v[...] = x` keeps the shape {old.shape}, but x has the shape "
            f"{getattr(new, 'shape', new)}, which does not broadcast to it; to change "
            "the shape write `v.value = x`"
        ) from None


def register_as_pytree(kind: type[Variable[Any]]) -> None:
    """Registers a kind with JAX: one child, the raw value, under the key `.value`.

    A kind that changes construction or reading is flattened in Python. The others
    are read by JAX's C++ code, attribute by attribute, in a third of the time.
    """
    if (
        kind.__init__ is Variable.__init__
        and kind.get_value is Variable.get_value
        and kind.__new__ is object.__new__
    ):
        jax.tree_util.register_dataclass(kind, ["value"], ["_metadata"])
        return

    def unflatten(metadata: Any, children: Any) -> Variable[Any]:
        (value,) = children
        return kind.from_metadata(value, metadata)

    key = jax.tree_util.GetAttrKey("value")
    jax.tree_util.register_pytree_with_keys(
        kind,
        lambda v: (((key, v.raw_value),), v._metadata),
        unflatten,
        lambda v: ((v.raw_value,), v._metadata),
    )


register_as_pytree(Variable)
let_lax_take(Variable, value_of)
