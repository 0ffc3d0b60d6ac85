"""Changing object graphs: writing States into them, removing, mapping, modes.

Each function checks all that it is asked for before it changes anything, so that a
call that raises has changed nothing.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from . import frames
from .arrays import is_array, is_dynamic, type_of
from .filters import Filter, to_predicate
from .graph import Putting, taken, variables_of
from .iteration import iter_graph
from .module import (
    Module,
    Pytree,
    adopted,
    children_of,
    has_data,
    is_data,
    is_leaf,
    iter_nodes,
)
from .paths import Key, Path, format_path, sorted_keys
from .splitting import clone
from .state import State, partitioned, states
from .statics import Static
from .variable import Variable

T = TypeVar("T")


def update(
    node: Any, state: Any, /, *states: Mapping[Key, Any], strict: bool = True
) -> None:
    """Writes States into an object graph, in place.

    A Variable takes value and metadata of a Variable, or the value of anything else,
    and keeps its identity and kind. Paths that the States lack are left alone.

    Args:
      node: a Module, a Variable, or a pytree of them.
      state: a State or nested dict (or a leaf, if `node` is one).
      *states: more of them.
      strict: whether unknown paths and other shapes are errors. If not, unknown
        paths become new attributes and the shape changes.

    Raises:
      ValueError: listing everything that does not fit; nothing is changed then.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx.update(model, {'bias': jnp.ones(3)})
      >>> model.bias.sum().item()
      3.0
    """
    plan = _Update(strict)
    for part in (state, *states):
        plan.add(node, part, ())
    if plan.problems:
        raise ValueError(
            f"the State does not fit {type(node).__name__}: "
            + "; ".join(plan.problems[:20])
        )
    for write in plan.writes:
        write()


class _Update:
    """What an update writes, if it has no problems.

    Args:
      strict: see `update`.
    """

    def __init__(self, strict: bool):
        self.strict = strict
        self.writes: list[Callable[[], None]] = []
        self.problems: list[str] = []
        self._children: dict[int, dict[Key, Any]] = {}  # by id, with those to be added

    def add(self, target: Any, given: Any, path: Path) -> None:
        """Plans what a State, or a leaf, writes to what is at a path."""
        if isinstance(target, Variable):
            self._add_value(target, given, path)
        elif isinstance(given, Mapping) and not is_leaf(target):
            children = self._children.setdefault(id(target), dict(children_of(target)))
            for key, value in given.items():
                self._add_child(target, children, key, value, (*path, key))
        elif isinstance(given, Pytree):
            self._refuse(path, "gets a model: pass its State, nnx.state(other)")
        else:
            part = "a leaf" if is_leaf(given) else "no leaf"
            kinds = f"is a {type_of(target)}, but the State has {part}"
            self._refuse(path, f"{kinds} there, a {type_of(given)}")

    def _add_value(self, target: Variable[Any], given: Any, path: Path) -> None:
        if target is given:
            return
        if problem := self._problem(target, given):
            self._refuse(path, problem)
        elif isinstance(given, Variable):
            self.writes.append(lambda: target.update_from_state(given))
        else:
            plain = to_plain(given)
            self.writes.append(lambda: setattr(target, "raw_value", plain))

    def _add_child(
        self, target: Any, children: dict[Key, Any], key: Key, value: Any, path: Path
    ) -> None:
        is_node = isinstance(target, Pytree)
        if key not in children:
            may_add = is_node and (not isinstance(target, list) or key == len(children))
            if may_add and not self.strict:
                children[key] = new = adopted(value)
                self.writes.append(lambda: set_child(target, key, new))
                return
            known = [repr(k) for k, x in children.items() if is_data(x)]
            notes = [
                f"there are {', '.join(known[:8])}" if known else "there is no data"
            ]
            if str(key).isdecimal() and int(key) in children:
                notes.append("nnx.restore_int_paths makes ints of such keys")
            elif may_add:
                notes.append("strict=False adds it")
            self._refuse(path, f"is unknown ({'; '.join(notes)})")
            return
        child = children[key]
        has_parts = isinstance(child, (Variable, Pytree, tuple)) and has_data(child)
        if has_parts or not is_node or isinstance(value, Mapping):
            self.add(child, value, path)
        else:
            value = value.raw_value if isinstance(value, Variable) else value
            problem = misfit(child, value) if self.strict else None
            if problem:
                self._refuse(path, problem)
            else:
                new = adopted(value)
                self.writes.append(lambda: set_child(target, key, new))

    def _problem(self, target: Variable[Any], given: Any) -> str | None:
        """Why a Variable cannot take what is given."""
        is_variable = isinstance(given, Variable)
        if is_variable and _shows(given) != _shows(target):
            return (
                "shows a function of what it stores (see nnx.parametrize), and not the "
                "same in both: nnx.unparametrize makes it plain"
            )
        if target._metadata.is_frozen:
            if not is_variable or not given._metadata.is_frozen:
                return "is frozen (nnx.unfreeze lets it be written)"
        value = given.raw_value if is_variable else given
        return misfit(target.raw_value, value) if self.strict else None

    def _refuse(self, path: Path, problem: str) -> None:
        self.problems.append(f"{format_path(path)} {problem}")


def _shows(variable: Variable[Any]) -> Any:
    return variable.get_metadata("parametrization", None)


def to_plain(value: Any) -> Any:
    """Nested plain dicts for a State, anything else as it is."""
    if isinstance(value, State):
        return {key: to_plain(value[key]) for key in value}
    return value


def misfit(old: Any, new: Any) -> str | None:
    """What is wrong with a value that shall replace another of the same shape."""
    if not is_array(old):
        return None
    if not is_dynamic(new):
        return f"wants {old.dtype}{list(old.shape)}, got a {type(new).__name__}"
    shape = np.shape(new) if not hasattr(new, "shape") else new.shape
    if shape == old.shape:
        return None
    dtype = getattr(new, "dtype", type(new).__name__)
    return f"wants {old.dtype}{list(old.shape)}, got {dtype}{list(shape)}"


def set_child(node: Pytree, key: Key, value: Any) -> None:
    """Sets one child of a node by key."""
    if isinstance(node, (list, dict)):
        if isinstance(node, list) and key == len(node):
            node.append(value)
        else:
            node[key] = value
    else:
        setattr(node, key, value)


def change(node: Pytree, items: Mapping[Key, Any], form: Any = None) -> None:
    """Replaces all children of a node, and its form, as one structural change.

    If only arrays take the place of arrays, it is none, and plans stay valid.
    """
    old, old_form = node._nnx_items(), node._nnx_form()
    items = {key: _unless_equal(old.get(key), x) for key, x in items.items()}
    frames.before_change(node, node._nnx_stamp.home)
    node._nnx_replace({key: adopted(value) for key, value in items.items()})
    if form is not None:
        node._nnx_set_form(form)
    same = old.keys() == items.keys() and all(
        old[k] is items[k] or is_array(old[k]) and is_array(items[k]) for k in old
    )
    if not same or node._nnx_form() != old_form:
        node._nnx_changed()


def _unless_equal(old: Any, new: Any) -> Any:
    """The new value, but the old one if it is a tuple that was put together again."""
    return old if isinstance(old, tuple) and _is_same(old, new) else new


def _is_same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if type(old) is not type(new) or isinstance(old, (Variable, Pytree)):
        return False
    if isinstance(old, (tuple, list)):
        pairs = zip(old, new, strict=False)
        return len(old) == len(new) and all(_is_same(x, y) for x, y in pairs)
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(_is_same(old[k], new[k]) for k in old)
    return not is_array(old) and Static(old) == Static(new)


def pop(node: Any, *filters: Filter) -> Any:
    """Removes Variables from an object graph and returns them.

    A shared Variable is removed from every place that refers to it.

    Args:
      node: a Module or a pytree of them.
      *filters: at least one; several give a tuple of States.

    Raises:
      ValueError: without filters, or if a Variable is in a tuple, which cannot change.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
      >>> gone = nnx.pop(model, nnx.BatchStat)
      >>> list(gone), hasattr(model, 'mean')
      (['mean', 'var'], False)
    """
    if not filters:
        raise ValueError("nnx.pop needs a filter: nnx.pop(model, nnx.Intermediate)")
    parts = partitioned(variables_of(node), filters, exhaustive=False)
    gone = {id(leaf) for part in parts for _, leaf in part}
    changes: list[tuple[Pytree, dict[Key, Any]]] = []
    for path, parent, items in _parents(node):
        kept = {key: v for key, v in items.items() if id(v) not in gone}
        if len(kept) == len(items):
            continue
        if not isinstance(parent, Pytree):
            raise ValueError(
                f"cannot remove from {format_path(path)}: it is a plain "
                f"{type(parent).__name__}; hold the Variable in an attribute, an "
                "nnx.List or an nnx.Dict"
            )
        changes.append((parent, kept))
    for parent, kept in changes:
        change(parent, kept)
    return states(parts)


def _parents(root: Any) -> Iterator[tuple[Path, Any, dict[Key, Any]]]:
    """Yields every node and container once, with its path and children."""
    for path, value in iter_graph(root):
        if items := children_of(value):
            yield path, value, items


def map(f: Callable[[Path, Any], Any], node: T, /, **_: Any) -> T:
    """A copy of an object graph with `f(path, leaf)` in place of each leaf.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> zero = nnx.map(lambda path, v: v.replace(jnp.zeros_like(v)), model)
      >>> zero.kernel.sum().item()
      0.0
    """
    walk = taken(node)
    leaves = iter([f(path, leaf) for path, leaf in walk.pairs])
    return Putting(walk.records, lambda record: next(leaves)).put()


def recursive_map(f: Callable[[Path, Any], Any], node: Any, /) -> Any:
    """Rebuilds an object graph from the leaves up: each node becomes `f(path, node)`.

    Works on a copy that shares the Variables. `f` is called once for each node and
    leaf, children first, and may return the node it got.

    Raises:
      ValueError: for a cycle, or if a child inside a tuple is replaced.

    Example:
      >>> import nnxlite as nnx
      >>> def swap(path, node):
      ...     return nnx.Dropout(0.5) if isinstance(node, nnx.Linear) else node
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> type(nnx.recursive_map(swap, model).layers[0]).__name__
      'Dropout'
    """
    done: dict[int, Any] = {}
    inside: set[int] = set()
    root = clone(node, variables=False)

    def visit(value: Any, path: Path) -> Any:
        if id(value) in done:
            return done[id(value)]
        if id(value) in inside:
            raise ValueError(
                f"recursive_map cannot rebuild a cycle: {format_path(path)} leads back "
                "to a node that contains it; change the node in place instead"
            )
        if not is_data(value) and is_leaf(value):
            return value
        inside.add(id(value))
        items = children_of(value)
        new = {key: visit(items[key], (*path, key)) for key in sorted_keys(items)}
        if any(new[key] is not items[key] for key in items):
            if not isinstance(value, Pytree):
                raise ValueError(
                    f"recursive_map cannot replace a child of the plain "
                    f"{type(value).__name__} at {format_path(path)}: use an nnx.List"
                )
            change(value, {key: new[key] for key in items})
        inside.discard(id(value))
        done[id(value)] = result = f(path, value) if is_data(value) else value
        return result

    return visit(root, ())


def set_metadata(node: Any, /, *, only: Filter = Variable, **metadata: Any) -> None:
    """Sets metadata on all Variables that match `only`, in place.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx.set_metadata(model, only=nnx.Param, group='decay')
      >>> model.kernel.group
      'decay'
    """
    for _, variable in variables_of(node, only):
        variable.set_metadata(**metadata)


# Modes as copies


def view(
    node: T, /, *, only: Filter = ..., raise_if_not_found: bool = True, **modes: Any
) -> T:
    """A copy with other modes that shares the Variables.

    Calls `set_view` with those of the modes that it takes, on every Module that has
    one and matches `only`.

    Raises:
      ValueError: naming the modes that no Module takes.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
      >>> nnx.view(model, deterministic=True).deterministic, model.deterministic
      (True, False)
    """
    copy = clone(node, variables=False)
    _set_views(copy, (), only, modes)
    unused = modes.keys() - {n for *_, names in _views(copy, only) for n in names}
    if unused and raise_if_not_found:
        raise ValueError(
            f"no Module takes the mode {', '.join(sorted(unused))}: see "
            "nnx.view_info(model) for those that there are"
        )
    return copy


def _views(
    node: Any, only: Filter, root: Path = ()
) -> Iterator[tuple[Path, Any, list[str]]]:
    matches = to_predicate(only)
    for path, module in iter_nodes(node):
        set_view = getattr(type(module), "set_view", None)
        if set_view is not None and matches(root + path, module):
            yield path, module, list(inspect.signature(set_view).parameters)[1:]


def _set_views(node: Any, root: Path, only: Filter, modes: Mapping[str, Any]) -> None:
    """Calls `set_view` below a node; in a stack of layers, once for all layers.

    A Module with `_nnx_for_each(change)`, which calls `change` with the stacked layers
    as if they were one, keeps these in its attribute `layers`.
    """
    stacks = [(p, x) for p, x in iter_nodes(node) if hasattr(x, "_nnx_for_each")]
    inner = [(*path, "layers") for path, _ in stacks]
    for path, module, names in _views(node, only, root):
        own = {name: modes[name] for name in names if name in modes}
        if own and not any(path[: len(above)] == above for above in inner):
            module.set_view(**own)
    for (_, stack), path in zip(stacks, inner, strict=True):
        if not any(path[: len(above)] == above and path != above for above in inner):
            stack._nnx_for_each(
                lambda layer, at=root + path: _set_views(layer, at, only, modes)
            )


def view_info(node: Any, /, *, only: Filter = ...) -> str:
    """Tells which modes `view` can set on each class of Module.

    Example:
      >>> import nnxlite as nnx
      >>> print(nnx.view_info(nnx.Dropout(0.5)).splitlines()[0])
      Dropout: deterministic, rngs
    """
    texts = {}
    for _, module, names in _views(node, only):
        doc = (type(module).set_view.__doc__ or "").strip()
        texts[type(module)] = f"{type(module).__name__}: {', '.join(names)}\n  {doc}"
    return "\n".join(texts.values())


def with_attributes(
    node: T,
    /,
    *,
    only: Filter = ...,
    raise_if_not_found: bool = True,
    **attributes: Any,
) -> T:
    """A copy with other attributes that shares the Variables; see `set_attributes`.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.with_attributes(nnx.Dropout(0.5), rate=0.1).rate
      0.1
    """
    copy = clone(node, variables=False)
    Module.set_attributes(
        copy,  # pyright: ignore[reportArgumentType]
        only,
        raise_if_not_found=raise_if_not_found,
        **attributes,
    )
    return copy
