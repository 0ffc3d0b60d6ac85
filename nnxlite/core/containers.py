"""List and Dict: a list and a dict that are nodes of the object graph.

They are real `list`s and `dict`s. Plain lists and dicts assigned to an attribute, at
any depth, become these; what they held is taken over, the plain original is not
watched. Each method that changes the contents does it as a structural change; setting
an element to one array instead of another is none.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, TypeVar

from . import frames
from .arrays import is_array, is_dynamic
from .module import Module, _empty, _takers, adopted
from .paths import Key
from .variable import Variable

T = TypeVar("T")


def _changing(base: type, name: str) -> Callable[..., Any]:
    """The method `name` of list or dict, made a structural change of the node."""
    plain = getattr(base, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        frames.before_change(self, self._nnx_stamp.home)
        try:
            return plain(self, *args, **kwargs)
        finally:
            self._nnx_changed()

    method.__name__ = name
    method.__qualname__ = f"{base.__name__}.{name}"
    method.__doc__ = plain.__doc__
    return method


class List(list[T], Module):
    """A list of Modules, Variables, arrays or static values.

    Example:
      >>> import nnxlite as nnx
      >>> layers = nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(i)) for i in range(3)])
      >>> layers.append(nnx.relu)
      >>> len(layers), sorted(nnx.state(layers))
      (4, [0, 1, 2])
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return _empty(cls)

    def __init__(self, it: Iterable[T] | None = None, /):
        self.clear()
        if it is not None:
            self.extend(it)

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]
    _insert = _changing(list, "insert")
    _extend = _changing(list, "extend")
    _set = _changing(list, "__setitem__")

    def append(self, value: T, /) -> None:
        """Appends an element."""
        self._insert(len(self), adopted(value))

    def insert(self, index: Any, value: T, /) -> None:
        """Inserts an element before `index`."""
        self._insert(index, adopted(value))

    def extend(self, values: Iterable[T], /) -> None:
        """Appends all elements of `values`."""
        self._extend([adopted(value) for value in values])

    def __iadd__(self, values: Iterable[T], /) -> Self:
        self.extend(values)
        return self

    def __setitem__(self, index: Any, value: Any, /) -> None:
        if isinstance(index, slice):
            self._set(index, [adopted(item) for item in value])
            return
        old = self[index]
        if old is value:
            return
        _check_overwrite(old, value, f"[{index}]")
        if is_array(old) and is_array(value):
            frames.before_change(self, self._nnx_stamp.home)
            list.__setitem__(self, index, value)
        else:
            self._set(index, adopted(value))

    def _nnx_items(self) -> dict[Key, Any]:
        return {**dict(enumerate(self)), **super()._nnx_items()}

    def _nnx_replace(self, items: Mapping[Key, Any]) -> None:
        elements = {k: v for k, v in items.items() if isinstance(k, int)}
        list.__setitem__(self, slice(None), [elements[k] for k in sorted(elements)])
        super()._nnx_replace({k: v for k, v in items.items() if k not in elements})


class Dict(dict[str, T], Module):
    """A dict of Modules, Variables, arrays or static values, also by attribute.

    Example:
      >>> import nnxlite as nnx
      >>> d = nnx.Dict(a=nnx.Param(1.0), items=2)
      >>> d.a is d['a'], d['items'], len(d.items())
      (True, 2, 2)
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return _empty(cls)

    def __init__(self, *args: Any, **kwargs: T):
        self.clear()
        self.update(*args, **kwargs)

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]
    _set = _changing(dict, "__setitem__")

    def __setitem__(self, key: Any, value: Any, /) -> None:
        old = self.get(key)
        if old is value and key in self:
            return
        _check_overwrite(old, value, f"[{key!r}]")
        if is_array(old) and is_array(value):
            frames.before_change(self, self._nnx_stamp.home)
            dict.__setitem__(self, key, value)
        else:
            self._set(key, adopted(value))

    def update(self, *args: Any, **kwargs: T) -> None:
        """Sets the entries of a mapping or of pairs."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any, /) -> Self:
        self.update(other)
        return self

    def setdefault(self, key: Any, default: Any = None, /) -> Any:
        """Returns the entry; sets it to `default` if it is missing."""
        if key not in self:
            self[key] = default
        return self[key]

    def __getattr__(self, name: str) -> Any:
        if name[:2] != "__" and name in self:
            return self[name]
        raise AttributeError(
            f"{type(self).__name__} has no entry {name!r}, only {list(self)}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f"{type(self).__name__} has no entry {name!r}")
        del self[name]

    def _nnx_items(self) -> dict[Key, Any]:
        return dict(self)

    def _nnx_replace(self, items: Mapping[Key, Any]) -> None:
        dict.clear(self)
        dict.update(self, items)

    def _nnx_form(self) -> Any:
        return tuple(self)  # iteration is in insertion order, as in any dict

    def _nnx_set_form(self, form: Any) -> None:
        items = dict(self)
        dict.clear(self)
        dict.update(self, {key: items[key] for key in form})


def _check_overwrite(old: Any, value: Any, where: str) -> None:
    if isinstance(old, Variable) and is_dynamic(value):
        raise ValueError(
            f"{where} holds a {type(old).__name__}; assigning an array would drop it. "
            f"To write its value: `{where}.value = x`. To replace it, assign a new "
            f"{type(old).__name__}(x)"
        )


_takers[list] = List
_takers[dict] = Dict


# For type checkers these are the methods of `list` and `dict`.
for _kind, _base, _names in (
    (List, list, "clear pop remove reverse sort __delitem__ __imul__"),
    (Dict, dict, "clear pop popitem __delitem__"),
):
    setattr(_kind, "__repr__", Module.__repr__)  # noqa: B010
    for _name in _names.split():
        setattr(_kind, _name, _changing(_base, _name))
