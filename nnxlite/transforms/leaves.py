"""Flattening arguments and results: containers are opened, objects are not.

JAX's own registry would open Variables and Modules too. This one has the same
containers and stops at objects, in C++; a user's pytree class is adopted from JAX's
registry when it is first met.
"""

import enum
import types
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from ..core.arrays import NUMBER_TYPES, is_array
from ..core.module import Pytree
from ..core.statics import static_key
from ..core.variable import Variable

_jax_registry = jax.tree_util.default_registry
_registry = type(_jax_registry)(
    enable_none=True,
    enable_tuple=True,
    enable_namedtuple=True,
    enable_list=True,
    enable_dict=True,
)

DYNAMIC, NODE, VARIABLE, PLAIN, STATIC, CONTAINER = range(1, 7)
# Of the types whose instances are all alike.
kinds: dict[type, int] = dict.fromkeys((tuple, list, dict, type(None)), CONTAINER)
_LIBRARIES = frozenset("builtins jax jaxlib numpy optax nnxlite ml_dtypes".split())


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """Leaves, and a treedef that can be hashed, compared and unflattened."""
    leaves, treedef = _registry.flatten(tree, None)
    for leaf in leaves:
        if type(leaf) not in kinds and kind_of(leaf) == CONTAINER:
            adopt(type(leaf))
            return flatten(tree)
    return leaves, treedef


def flatten_with_path(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """The leaves of `flatten`, each with its JAX key path."""
    flatten(tree)  # adopts what is not known yet
    return _registry.flatten_with_path(tree, None)[0]


def kind_of(leaf: Any) -> int:
    """How a leaf crosses: as an array, an object, a looked-into object, or not."""
    cls = type(leaf)
    kind = kinds.get(cls)
    if kind is not None:
        return kind
    if cls is np.ndarray:  # an array, or strings: not all instances are alike
        return DYNAMIC if is_array(leaf) else STATIC
    if isinstance(leaf, Variable):
        kind = VARIABLE
    elif isinstance(leaf, Pytree):
        kind = NODE
    elif is_array(leaf) or cls in NUMBER_TYPES or isinstance(leaf, np.generic):
        kind = DYNAMIC
    elif _jax_registry.flatten_one_level(leaf) is not None:
        return CONTAINER
    elif not has_fields(leaf):
        kind = STATIC
    else:
        return PLAIN if any(map(_is_object, vars(leaf).values())) else STATIC
    kinds[cls] = kind
    return kind


def plain_objects(tree: Any) -> list[Any]:
    """The objects in arguments that are looked into, as a Trainer is."""
    return [leaf for leaf in flatten(tree)[0] if kind_of(leaf) == PLAIN]


def adopt(cls: type) -> None:
    """Lets this registry open a class as JAX's registry does, one level at a time."""

    def open_one(value: Any) -> tuple[list[Any], Any]:
        return _jax_registry.flatten(value, lambda x: x is not value)

    def open_one_with_keys(value: Any) -> tuple[list[Any], Any]:
        pairs, treedef = jax.tree.flatten_with_path(value, lambda x: x is not value)
        return [(key, child) for (key,), child in pairs], treedef

    def close(treedef: Any, children: Any) -> Any:
        return treedef.unflatten(children)

    _registry.register_node(cls, open_one, close, open_one_with_keys)
    kinds[cls] = CONTAINER


def has_fields(leaf: Any) -> bool:
    """True for instances of user classes with attributes, as a Trainer is one."""
    not_looked_into = (type, types.FunctionType, types.ModuleType, enum.Enum)
    return (
        hasattr(leaf, "__dict__")
        and not of_library(type(leaf))
        and not isinstance(leaf, not_looked_into)
    )


def of_library(cls: type) -> bool:
    """True for classes of Python and of packages whose objects hold none of ours."""
    return cls.__module__.partition(".")[0] in _LIBRARIES


def _is_object(value: Any) -> bool:
    """True for a field's value that a looked-into object is opened for."""
    if isinstance(value, (Variable, Pytree)) or is_array(value):
        return True
    if isinstance(value, (list, tuple, dict)):
        return any(map(_is_object, flatten(value)[0]))
    return False


class Constant:
    """An argument declared static: equal constants stand for one program."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value: Any = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and (
            static_key(other.value) == static_key(self.value)
        )

    def __hash__(self) -> int:
        return hash(static_key(self.value))


def given(values: Iterable[Any]) -> tuple[Any, ...]:
    """The values without the marks of constants."""
    return tuple(x.value if type(x) is Constant else x for x in values)


def with_constants(tree: Any, is_constant: Callable[[Any], bool]) -> Any:
    """The tree with those leaves marked as constants."""
    leaves, treedef = flatten(tree)
    return treedef.unflatten([Constant(x) if is_constant(x) else x for x in leaves])


def without_constants(tree: Any) -> Any:
    """The reverse of `with_constants`."""
    leaves, treedef = flatten(tree)
    return treedef.unflatten(given(leaves))
