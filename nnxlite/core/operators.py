"""The operators that make a Variable usable wherever its value is.

Each plain operator gives what the value gives: an array, never a Variable. Each
augmented one (`+=`, ...) writes the Variable in place, so that the name or attribute
on the left still holds the same Variable. The methods are made from three tables.
"""

import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

_ARITHMETIC = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
    "matmul": operator.matmul,
    "lshift": operator.lshift,
    "rshift": operator.rshift,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "divmod": divmod,
}
_COMPARISONS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_CONVERSIONS = {
    "neg": operator.neg,
    "pos": operator.pos,
    "abs": operator.abs,
    "invert": operator.invert,
    "bool": bool,
    "int": int,
    "float": float,
    "complex": complex,
    "index": operator.index,
    "len": len,
    "iter": iter,
    "reversed": reversed,
}


class ArrayOperators:
    """Operators over `get_value()`; a subclass provides it and `set_value`."""

    __slots__ = ()

    get_value: Callable[..., Any]
    set_value: Callable[..., None]

    # `==` compares elementwise, as arrays do. Hashing stays by identity: two live
    # objects never share this hash, so a dict or set never has to ask `==`.
    if TYPE_CHECKING:

        def __hash__(self) -> int: ...
    else:
        __hash__ = object.__hash__

    # NumPy arrays on the left leave the operator to the reflected method here.
    __array_priority__ = 101

    def __contains__(self, item: Any) -> bool:
        return value_of(item) in self.get_value()

    def __round__(self, digits: int = 0) -> Any:
        return round(self.get_value(), digits)

    def __format__(self, spec: str) -> str:
        return format(self.get_value(), spec) if spec else str(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.asarray(self.get_value(), dtype=dtype)
        return array.copy() if copy else array

    def __jax_array__(self) -> Any:
        return self.get_value()

    if TYPE_CHECKING:  # what the tables below define, for type checkers

        def __add__(self, other: Any) -> Any: ...
        def __sub__(self, other: Any) -> Any: ...
        def __mul__(self, other: Any) -> Any: ...
        def __truediv__(self, other: Any) -> Any: ...
        def __floordiv__(self, other: Any) -> Any: ...
        def __mod__(self, other: Any) -> Any: ...
        def __pow__(self, other: Any) -> Any: ...
        def __matmul__(self, other: Any) -> Any: ...
        def __lshift__(self, other: Any) -> Any: ...
        def __rshift__(self, other: Any) -> Any: ...
        def __and__(self, other: Any) -> Any: ...
        def __or__(self, other: Any) -> Any: ...
        def __xor__(self, other: Any) -> Any: ...
        def __divmod__(self, other: Any) -> Any: ...
        def __radd__(self, other: Any) -> Any: ...
        def __rsub__(self, other: Any) -> Any: ...
        def __rmul__(self, other: Any) -> Any: ...
        def __rtruediv__(self, other: Any) -> Any: ...
        def __rfloordiv__(self, other: Any) -> Any: ...
        def __rmod__(self, other: Any) -> Any: ...
        def __rpow__(self, other: Any) -> Any: ...
        def __rmatmul__(self, other: Any) -> Any: ...
        def __rlshift__(self, other: Any) -> Any: ...
        def __rrshift__(self, other: Any) -> Any: ...
        def __rand__(self, other: Any) -> Any: ...
        def __ror__(self, other: Any) -> Any: ...
        def __rxor__(self, other: Any) -> Any: ...
        def __rdivmod__(self, other: Any) -> Any: ...
        def __eq__(self, other: object) -> Any: ...
        def __ne__(self, other: object) -> Any: ...
        def __lt__(self, other: Any) -> Any: ...
        def __le__(self, other: Any) -> Any: ...
        def __gt__(self, other: Any) -> Any: ...
        def __ge__(self, other: Any) -> Any: ...
        def __neg__(self) -> Any: ...
        def __pos__(self) -> Any: ...
        def __abs__(self) -> Any: ...
        def __invert__(self) -> Any: ...
        def __bool__(self) -> bool: ...
        def __int__(self) -> int: ...
        def __float__(self) -> float: ...
        def __complex__(self) -> complex: ...
        def __index__(self) -> int: ...
        def __len__(self) -> int: ...
        def __iter__(self) -> Iterator[Any]: ...


def value_of(x: Any) -> Any:
    """The value of a Variable; anything else as it is."""
    return x.get_value() if isinstance(x, ArrayOperators) else x


def _define(name: str, method: Callable[..., Any]) -> None:
    method.__name__ = f"__{name}__"
    method.__qualname__ = f"{ArrayOperators.__qualname__}.__{name}__"
    setattr(ArrayOperators, method.__name__, method)


def _plain(apply: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda self, other: apply(self.get_value(), value_of(other))


def _reflected(apply: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda self, other: apply(other, self.get_value())


def _augmented(apply: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def method(self: ArrayOperators, other: Any) -> ArrayOperators:
        self.set_value(apply(self.get_value(), value_of(other)))
        return self

    return method


def _unary(apply: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda self: apply(self.get_value())


for _name, _apply in _ARITHMETIC.items():
    _define(_name, _plain(_apply))
    _define(f"r{_name}", _reflected(_apply))
    if _name != "divmod":
        _define(f"i{_name}", _augmented(_apply))
for _name, _apply in _COMPARISONS.items():
    _define(_name, _plain(_apply))
for _name, _apply in _CONVERSIONS.items():
    _define(_name, _unary(_apply))

# The methods that write after reading, with the assignment to a part of the value.
WRITING = ("__setitem__", *(f"__i{name}__" for name in _ARITHMETIC if name != "divmod"))
