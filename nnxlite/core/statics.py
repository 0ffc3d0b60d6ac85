"""Static values: what is part of a graph's structure and how two of them compare.

Compiled programs are found by the static values that they were made with, so these
must compare by content where that is possible, and it must never take a different
value for an equal one:

- numbers, strings, types, dtypes and the like: by type and value (1 is not True);
- tuples, lists, dicts, slices, partials: by their parts;
- functions: by code, closure, defaults and the module they belong to, so that a fresh
  `optax.adam(1e-3)` equals the last one;
- other hashable objects that define `==`: by `==`;
- everything else: by identity. A change inside such an object is not seen.

The key of a value holds objects that compare by identity weakly: a cached program
must not keep a model alive because one of its attributes is a bound method.
"""

import functools
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

_BY_VALUE = frozenset({int, bool, str, bytes, complex, type(None), type(...), range})
SMALL_BYTES = 1 << 16  # a larger NumPy array in a static place is compared by id


class Identity:
    """Equal only to an Identity of the same, still living object."""

    __slots__ = ("_hash", "_kept", "_reference")

    def __init__(self, value: Any):
        self._hash = id(value)
        try:
            self._reference: Callable[[], Any] = weakref.ref(value)
            self._kept = None
        except TypeError:  # no weak reference possible: the id must stay taken
            self._kept = value
            self._reference = lambda: self._kept

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity):
            return NotImplemented
        value = self._reference()
        return self is other or (value is not None and value is other._reference())

    def __repr__(self) -> str:
        return f"Identity({self._reference()!r})"


class Static:
    """A static value with its key: compares and hashes by the key."""

    __slots__ = ("key", "value")

    def __init__(self, value: Any):
        self.value: Any = value
        self.key: Hashable = static_key(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return repr(self.value)

    def __reduce__(self) -> Any:
        return (Static, (self.value,))


def static_key(value: Any, _inside: tuple[int, ...] = ()) -> Hashable:
    """Returns a hashable stand-in for a static value; see the module's docstring.

    Raises:
      ValueError: if the value's own `==` raises or gives no bool.
    """
    kind = type(value)
    if kind in _BY_VALUE:
        return (kind, value)
    if kind is float:
        return (float, value.hex())  # tells 0.0 from -0.0, and nan equals nan
    if id(value) in _inside:
        return ("inside", len(_inside) - _inside.index(id(value)))
    inside = (*_inside, id(value))
    part = functools.partial(static_key, _inside=inside)
    parts = _PARTS.get(kind)
    if parts is not None:
        return (kind, *map(part, parts(value)))
    if kind is types.FunctionType:
        return _function_key(value, part)
    if isinstance(value, np.generic):
        return (kind, value.dtype, value.tobytes())
    if isinstance(value, np.ndarray) and value.dtype != object:
        if value.nbytes <= SMALL_BYTES:
            return (kind, value.dtype, value.shape, value.tobytes())
        return Identity(value)
    if isinstance(value, tuple):
        return (kind, *map(part, value))
    if isinstance(value, type):
        return (type, value)
    return _object_key(value)


_PARTS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    tuple: tuple,
    list: tuple,
    dict: lambda d: tuple(x for item in d.items() for x in item),
    slice: lambda s: (s.start, s.stop, s.step),
    functools.partial: lambda p: (p.func, p.args, p.keywords),
    jax.tree_util.Partial: lambda p: (p.func, p.args, p.keywords),
    types.MethodType: lambda m: (m.__func__, m.__self__),
}


def _function_key(
    function: types.FunctionType, part: Callable[[Any], Hashable]
) -> Hashable:
    cells = function.__closure__ or ()
    return (
        types.FunctionType,
        function.__code__,
        id(function.__globals__),
        tuple(part(_content(cell)) for cell in cells),
        part(function.__defaults__),
        part(function.__kwdefaults__),
    )


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return cell


def _object_key(value: Any) -> Hashable:
    kind = type(value)
    if kind.__eq__ is object.__eq__ or kind.__hash__ is None:
        return Identity(value)
    if isinstance(value, jax.Array) or kind.__hash__ is object.__hash__:
        return Identity(value)
    try:
        hash(value)
    except TypeError:
        return Identity(value)
    try:
        is_itself = bool(value == value)
    except Exception as error:
        raise ValueError(
            f"a static value of type {kind.__name__} cannot be compared: its == raises "
            f"{type(error).__name__}: {error}. Give the class an == that returns a "
            "bool, or none at all"
        ) from error
    return (kind, value) if is_itself else Identity(value)
