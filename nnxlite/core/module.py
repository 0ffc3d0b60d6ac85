"""Nodes of the object graph: plain Python objects whose attributes are the edges.

`Pytree` is a node; `Module` is one with modes (`train`, `eval`). An attribute is
*data* if it holds a node, a Variable, an array, or a container of these, and *static*
otherwise. Assigned lists and dicts are taken over as tracked `List`s and `Dict`s (see
`containers`), so that nothing changes unseen.

Every structural change of a node (an attribute set, deleted or rebound, not the value
of a Variable and not one array for another) replaces its stamp; see `frames`.

A node is also a JAX pytree. A pytree cannot say that two places hold one object:
flattening a node whose graph has sharing or cycles raises an error.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import jax

from . import frames
from .arrays import is_array, is_dynamic
from .construction import class_watchers, made_to_construct, making
from .filters import Filter, to_predicate
from .frames import Stamp
from .paths import Key, Path, format_path, sorted_keys
from .reprs import tree_repr
from .sowing import perturb, sow
from .statics import Static
from .variable import MISSING, Variable

# What nnxlite itself keeps in a node's __dict__; no attributes of the graph.
INTERNAL = frozenset({"_nnx_stamp", "_nnx_marks"})
_DATA, _STATIC = "data", "static"
_data_types: set[type] = set()


@dataclasses.dataclass(frozen=True)
class Marked:
    """A value on its way to an attribute that is said to be data or static."""

    mark: str
    value: Any


class Pytree:
    """A node of the object graph: a plain object whose attributes may hold data.

    A method `__post_init_check__` is called when an instance, also of a subclass, has
    been made, to raise an error if it is not as it should be.

    Args of the class statement:
      pytree: whether instances are JAX pytrees.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> class Point(nnx.Pytree):
      ...     def __init__(self, x):
      ...         self.x = jnp.asarray(x)
      >>> nnx.state(Point(1.0)).x.shape
      ()
    """

    _nnx_stamp: Stamp
    _nnx_marks: Mapping[str, str] = {}
    _nnx_names_parts = True  # whether errors name what it holds by paths from here

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made_to_construct(cls)
        if (args or kwargs) and cls.__init__ is object.__init__:
            raise TypeError(
                f"{cls.__name__}() takes no arguments, as it has no __init__: define "
                "it, or make the class an nnx.dataclass"
            )
        if making.scope is not None:
            return making.scope.instance(cls, args, kwargs)
        return _empty(cls)

    def __init_subclass__(cls, *, pytree: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__slots__" in cls.__dict__ and cls.__dict__["__slots__"]:
            raise TypeError(
                f"{cls.__name__} defines __slots__, but attributes of a Module live in "
                "its __dict__: remove __slots__"
            )
        for name, value in vars(cls).items():
            if isinstance(value, (Variable, Pytree)) or is_array(value):
                raise TypeError(
                    f"class attribute {cls.__name__}.{name} holds a "
                    f"{type(value).__name__}, which all instances would share and no "
                    f"state would contain: set `self.{name} = ...` in __init__"
                )
        if pytree:
            jax.tree_util.register_pytree_with_keys(
                cls,
                lambda node: _flatten_with_keys(node),
                lambda structure, children: _unflatten(cls, structure, children),
                lambda node: _flatten(node),
            )
        for watcher in class_watchers:
            watcher(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(getattr(type(self), name, None)), "__set__"):
            object.__setattr__(self, name, value)  # a property's setter
            return
        old = vars(self).get(name, MISSING)
        if value is old:  # `m.w += 1` writes the Variable, then assigns it to itself
            return
        marks = self._nnx_marks
        field_mark = getattr(type(self), "_nnx_fields", {}).get(name)
        if isinstance(value, Marked):
            marks = {**marks, name: value.mark}
            value = value.value
        elif field_mark is not None:
            if field_mark == _STATIC:
                _check_static(value, f"the field {type(self).__name__}.{name}")
            marks = {**marks, name: field_mark}
        elif marks.get(name) == _STATIC and _data_in(value):
            marks = {k: v for k, v in marks.items() if k != name}
        value = adopted(value)
        if isinstance(old, Variable) and is_dynamic(value):
            raise ValueError(
                f"{type(self).__name__}.{name} holds a {type(old).__name__}; assigning "
                f"an array would drop it. To write its value: `m.{name}[...] = x`. To "
                f"replace it: `m.{name} = nnx.{type(old).__name__}(x)`"
            )
        frames.before_change(self, self._nnx_stamp.home, f".{name}")
        vars(self)[name] = value
        if marks is not self._nnx_marks:
            vars(self)["_nnx_marks"] = marks
        if not (is_array(old) and is_array(value)):
            self._nnx_changed()

    def __delattr__(self, name: str) -> None:
        if name not in vars(self) or name in INTERNAL:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        frames.before_change(self, self._nnx_stamp.home, f".{name}")
        del vars(self)[name]
        self._nnx_changed()

    def _nnx_changed(self) -> None:
        vars(self)["_nnx_stamp"] = self._nnx_stamp.replaced()

    # The protocol that the graph walk and the transforms use. None of these methods
    # checks or journals anything: that is the caller's business.

    def _nnx_items(self) -> dict[Key, Any]:
        """All children by key: the attributes, and the elements of a container."""
        return {k: v for k, v in vars(self).items() if k not in INTERNAL}

    def _nnx_replace(self, items: Mapping[Key, Any]) -> None:
        """Makes `items` the children; what stays the same keeps its place."""
        attributes = vars(self)
        for name in list(attributes):
            if name not in items and name not in INTERNAL:
                del attributes[name]
        attributes.update(items)

    def _nnx_form(self) -> Any:
        """What else is part of the structure; hashable."""
        return tuple(sorted(self._nnx_marks.items()))

    def _nnx_set_form(self, form: Any) -> None:
        if form:
            vars(self)["_nnx_marks"] = dict(form)
        else:
            vars(self).pop("_nnx_marks", None)

    def _nnx_snapshot(self) -> Any:
        """All that `_nnx_restore` needs to bring back the present structure."""
        return (self._nnx_items(), self._nnx_form(), self._nnx_stamp)

    def _nnx_restore(self, structure: Any) -> None:
        items, form, stamp = structure
        self._nnx_replace(items)
        self._nnx_set_form(form)
        if self._nnx_stamp is not stamp:
            self._nnx_changed()

    def __repr__(self) -> str:
        return tree_repr(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self).__reduce__ is not object.__reduce__:
            return self.__reduce__()
        return (_empty, (type(self),), self.__getstate__())

    def __getstate__(self) -> Any:
        return (dict(self._nnx_items()), self._nnx_form())

    def __setstate__(self, state: Any) -> None:
        self._nnx_restore((*state, None))

    def __copy__(self) -> Self:
        new = _empty(type(self))
        new._nnx_restore(self._nnx_snapshot())
        return new


class Module(Pytree):
    """Base class of layers and models.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs: nnx.Rngs):
      ...         self.layers = [nnx.Linear(2, 3, rngs=rngs), nnx.Dropout(0.5)]
      ...     def __call__(self, x):
      ...         for layer in self.layers:
      ...             x = layer(x)
      ...         return x
      >>> net = Net(nnx.Rngs(0))
      >>> net = net.eval()
      >>> net(jnp.ones((4, 2))).shape
      (4, 3)
    """

    sow = sow
    perturb = perturb

    def train(self, **attributes: Any) -> Self:
        """Sets `deterministic=False, use_running_average=False` here and below.

        Returns:
          the Module itself.
        """
        modes = {"deterministic": False, "use_running_average": False, **attributes}
        self.set_attributes(raise_if_not_found=False, **modes)
        return self

    def eval(self, **attributes: Any) -> Self:
        """Sets `deterministic=True, use_running_average=True` here and below.

        Returns:
          the Module itself.
        """
        modes = {"deterministic": True, "use_running_average": True, **attributes}
        self.set_attributes(raise_if_not_found=False, **modes)
        return self

    def set_attributes(
        self, *filters: Filter, raise_if_not_found: bool = True, **attributes: Any
    ) -> None:
        """Sets attributes on every Module at or below this one that has them.

        Args:
          *filters: only Modules that match one of these; all if there are none.
          raise_if_not_found: whether an attribute that none has is an error.
          **attributes: names and values.

        Raises:
          ValueError: naming the attributes that no Module has; nothing is set then.
        """
        matches = to_predicate(filters if filters else ...)
        nodes = [
            m for p, m in iter_nodes(self) if isinstance(m, Module) and matches(p, m)
        ]
        unknown = [a for a in attributes if not any(hasattr(m, a) for m in nodes)]
        if unknown and raise_if_not_found:
            raise ValueError(
                f"no Module in {type(self).__name__} has the attribute "
                f"{', '.join(map(repr, unknown))}: check the spelling, or pass "
                "raise_if_not_found=False"
            )
        for node in nodes:
            for name, value in attributes.items():
                if hasattr(node, name):
                    setattr(node, name, value)


def _empty(cls: type[Any]) -> Any:
    """A node of class `cls` without attributes; `__init__` is not run."""
    base: Any = next((b for b in (list, dict) if issubclass(cls, b)), object)
    node = base.__new__(cls)
    vars(node)["_nnx_stamp"] = Stamp(frames.home_of_new(node))
    return node


# What is data


def is_data(value: Any) -> bool:
    """True for arrays, Variables, nodes, and instances of registered data types.

    Python numbers, strings, and lists or dicts (even of data) are not.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> nnx.is_data(jnp.ones(2)), nnx.is_data(1.0)
      (True, False)
    """
    return (
        isinstance(value, (Variable, Pytree))
        or is_array(value)
        or type(value) in _data_types
    )


def has_data(value: Any) -> list[Any]:
    """Returns the data leaves inside a value.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> len(nnx.has_data({'a': jnp.ones(2), 'b': 'text'}))
      1
    """
    return [x for x in jax.tree.leaves(value, is_leaf=is_data) if is_data(x)]


def register_data_type(type_: type, /) -> type:
    """Makes instances of exactly this class count as data leaves; returns the class.

    Example:
      >>> import nnxlite as nnx
      >>> @nnx.register_data_type
      ... class Box:
      ...     pass
      >>> nnx.is_data(Box())
      True
    """
    _data_types.add(type_)
    return type_


def _data_in(value: Any) -> list[Any]:
    """Like `has_data`, but looks into Lists and Dicts, which may contain themselves."""
    found: list[Any] = []
    containers: dict[int, Any] = {}
    waiting = has_data(value)
    while waiting:
        leaf = waiting.pop(0)
        if not isinstance(leaf, Pytree) or not isinstance(leaf, (list, dict)):
            found.append(leaf)
        elif id(leaf) not in containers:
            containers[id(leaf)] = leaf
            for item in leaf._nnx_items().values():
                waiting += has_data(item)
    return found


def _check_static(value: Any, what: str) -> None:
    if found := _data_in(value):
        raise ValueError(
            f"{what} was given data, a {type(found[0]).__name__}: it would become "
            "a constant of compiled programs; assign it without nnx.static"
        )


# Taking over plain lists and dicts

_takers: dict[type, Callable[[Any], Any]] = {}
_OPAQUE = (set, frozenset, collections.deque)  # containers that JAX does not look into


def adopted(value: Any) -> Any:
    """Turns plain lists and dicts, also inside tuples, into tracked ones."""
    kind = type(value)
    if kind in _takers:
        return _takers[kind](value)
    if isinstance(value, tuple):
        items = [adopted(item) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            return kind(*items) if hasattr(value, "_fields") else kind(items)
    elif isinstance(value, Marked):
        raise ValueError(
            f"nnx.{value.mark}(...) marks an attribute and cannot stand inside a "
            "container: assign the container with it, "
            f"`self.x = nnx.{value.mark}([...])`"
        )
    elif isinstance(value, _OPAQUE):
        if held := [x for x in has_data(list(value)) if not is_array(x)]:
            raise TypeError(
                f"a {kind.__name__} would hide its {type(held[0]).__name__} from the "
                "model: assign a list or a dict of them"
            )
    return value


# Iteration


def children_of(value: Any) -> dict[Key, Any]:
    """The children of a node, or of a plain container, by key."""
    if isinstance(value, Pytree):
        return value._nnx_items()
    if type(value) is dict:
        return value
    if is_leaf(value):
        return {}
    return dict(zip(*pytree_children(value), strict=True))


def is_leaf(value: Any) -> bool:
    """True for what has no children: Variables, arrays and static values."""
    if isinstance(value, (Variable, str)) or is_array(value) or value is None:
        return True
    return jax.tree_util.default_registry.flatten_one_level(value) is None


def pytree_children(value: Any) -> tuple[list[Key], list[Any]]:
    """Keys and children of a registered pytree, in its own order."""
    fields = getattr(value, "_fields", None)
    if fields is not None and isinstance(value, tuple):
        return list(fields), list(value)
    children, _ = jax.tree_util.default_registry.flatten_one_level_with_keys(value)
    return [key_of(k) for k, _ in children], [child for _, child in children]


def key_of(entry: Any) -> Key:
    """The plain key of one JAX key entry, such as `DictKey('a')`."""
    for name in ("key", "name", "idx"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return entry


def iter_nodes(root: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields path and node, children first, siblings by key, each node once."""
    seen: set[int] = set()

    def visit(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
        if id(value) in seen or is_data(value) and not isinstance(value, Pytree):
            return
        if isinstance(value, Pytree):
            seen.add(id(value))
        children = children_of(value)
        for key in sorted_keys(children):
            yield from visit(children[key], (*path, key))
        if isinstance(value, Pytree):
            yield path, value

    yield from visit(root, path)


# Nodes as JAX pytrees


def _split_items(node: Pytree) -> tuple[list[Key], list[Any], Any]:
    check_is_tree(node)
    items = node._nnx_items()
    names, children, statics = [], [], []
    for key in sorted_keys(items):
        value = items[key]
        mark = node._nnx_marks.get(key)
        if mark == _DATA or mark is None and (is_data(value) or has_data(value)):
            names.append(key)
            children.append(value)
        else:
            statics.append((key, Static(value)))
    return names, children, (tuple(names), tuple(statics), node._nnx_form())


def _flatten(node: Pytree) -> tuple[list[Any], Any]:
    _, children, structure = _split_items(node)
    return children, structure


def _flatten_with_keys(node: Pytree) -> tuple[list[Any], Any]:
    names, children, structure = _split_items(node)
    keys = [
        jax.tree_util.SequenceKey(name)
        if isinstance(name, int)
        else jax.tree_util.GetAttrKey(name)
        for name in names
    ]
    return list(zip(keys, children, strict=True)), structure


def _unflatten(cls: type, structure: Any, children: Any) -> Any:
    names, statics, form = structure
    items = dict(zip(names, children, strict=True))
    items.update((key, static.value) for key, static in statics)
    node = _empty(cls)
    node._nnx_replace({key: items[key] for key in sorted_keys(items)})
    node._nnx_set_form(form)
    return node


def check_is_tree(root: Any) -> None:
    """Raises ValueError, with both paths, if an object is reached twice."""
    seen: dict[int, Path] = {}

    def visit(value: Any, path: Path) -> None:
        if isinstance(value, (Pytree, Variable)):
            if id(value) in seen:
                raise ValueError(
                    f"{type(root).__name__} cannot be used as a JAX pytree: its "
                    f"{type(value).__name__} at {format_path(path)!r} is also at "
                    f"{format_path(seen[id(value)])!r}, and a pytree would make two of "
                    "it. Use the nnxlite transform, or `graphdef, state = "
                    "nnx.split(model)` before and `nnx.merge(graphdef, state)` inside"
                )
            seen[id(value)] = path
        for key, child in children_of(value).items():
            visit(child, (*path, key))

    visit(root, ())
