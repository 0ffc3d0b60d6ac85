"""The one crossing between object graphs and JAX.

On the way in, a user's arguments are opened into leaves: arrays, objects (Modules and
Variables), and static values. While the user's function runs, a frame gives the
caller's own Variables their values at the new level. On the way out, what the function
wrote, changed and returned is taken apart by the graph walk into arrays, which are
what the JAX transform returns, and a *record*, which travels with them as pytree
metadata. Outside, the record and the arrays are applied: values written, structural
changes replayed, new objects made.

`Visit` is the stay inside, `apply` what happens after it. An open visit (`grad`, ...)
refers to objects by themselves; the record of a sealed one (`jit`) may be applied to
other objects of the same structure, and refers to them by number.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import frames
from ..core.arrays import is_array, is_dynamic
from ..core.changes import change
from ..core.errors import name_of
from ..core.frames import Frame
from ..core.graph import Putting, Taking, first_difference
from ..core.metadata import Metadata
from ..core.module import Pytree, is_data
from ..core.paths import Key, Path, format_path
from ..core.statics import Static
from ..core.variable import MISSING, Variable
from .leaves import DYNAMIC, flatten, kind_of


@jax.tree_util.register_static
@dataclasses.dataclass(eq=False)
class Record:
    """What a function did, apart from the arrays; compared by identity.

    Attributes:
      written: the Variables with a new value, as numbers or the objects themselves.
      metadata: Variables whose metadata changed, and to what.
      changed: nodes with new contents; these follow the result in `walk`.
      plain: objects that are no nodes (as numbers or themselves), and their fields
        that were set or deleted.
      walk: records of the result and new contents, or None if the result is an array
        or a plain pytree of arrays, which then travels as it is.
      packing: how the leaves of a walk and the written values became arrays.
    """

    written: Sequence[Any]
    metadata: Sequence[tuple[Any, Metadata]] = ()
    changed: Sequence[Any] = ()
    plain: Sequence[tuple[Any, tuple[Key, ...], tuple[Key, ...]]] = ()
    walk: tuple[Any, ...] | None = None
    packing: "Packing | None" = None


# What leaves a frame: the record, which is static, the written values, the result.
Departure = tuple[Record, list[Any], Any]


class Packing:
    """How a list of arbitrary values became a list of arrays: what is static in it.

    Args:
      values: any values.
      crosses: which of their leaves are arrays here.
    """

    treedef: Any

    def __init__(self, values: list[Any], crosses: Callable[[Any], bool] = is_dynamic):
        leaves, self.treedef = flatten(values)
        self.statics: list[Static | None] = [
            None if crosses(x) else Static(x) for x in leaves
        ]
        self.arrays: list[Any] = [x for x in leaves if crosses(x)]

    def unpacked(self, arrays: Iterable[Any]) -> list[Any]:
        """The values again, with other arrays."""
        rest = iter(arrays)
        return self.treedef.unflatten(
            [next(rest) if s is None else s.value for s in self.statics]
        )


class Change(NamedTuple):
    """What became of a node, or of a plain object: its items before and after."""

    owner: Any
    before: Mapping[Key, Any]
    after: Mapping[Key, Any]

    @property
    def new(self) -> dict[Key, Any]:
        """The items that were set."""
        before = self.before
        return {
            key: x for key, x in self.after.items() if before.get(key, MISSING) is not x
        }

    @property
    def gone(self) -> tuple[Key, ...]:
        """The keys that were deleted."""
        return tuple(key for key in self.before if key not in self.after)

    @property
    def is_of_arrays(self) -> bool:
        """Whether all that happened is that arrays took the place of arrays."""
        before = self.before
        return not self.gone and all(
            is_array(x) and is_array(before.get(key)) for key, x in self.new.items()
        )

    def __str__(self) -> str:
        parts = [f"sets {', '.join(map(repr, self.new))}"] if self.new else []
        parts += [f"deletes {', '.join(map(repr, self.gone))}"] if self.gone else []
        return " and ".join(parts) or "marks an attribute"


@dataclasses.dataclass
class Parting:
    """What a function did, taken apart but not packed yet.

    Attributes:
      record: without its packing.
      variables: the Variables written.
      values: their new values.
      changes: the nodes, then the plain objects, with new contents.
      leaves: of the result and of the new contents, the values.
      paths: where each leaf is, below `RESULT` or the number of the change.
      found: the leaves themselves, Variables and arrays.
    """

    record: Record
    variables: Sequence[Any]
    values: list[Any]
    changes: Sequence[Change]
    leaves: list[Any]
    paths: Sequence[Path]
    found: Sequence[Any] = ()

    def where(self, root: Key, path: Path) -> str:
        """Names the place of a leaf, or of all below a root."""
        owner = "the result" if root == RESULT else name_of(self.changes[root].owner)
        return format_path(path, root=owner)

    def packed(self, crosses: Callable[[Any], bool]) -> Departure:
        """The departure, with all that crosses as one list of arrays."""
        self.record.packing = Packing([self.values, self.leaves], crosses)
        return self.record, [], self.record.packing.arrays


RESULT = "result"


class Holder:
    """A place in a node that holds bare arrays, which are shown as tracers inside.

    Args:
      node: the node, or a plain object.
      key: the attribute or position.
      position: which of the leaves there is meant; None for all that are arrays.
    """

    def __init__(self, node: Any, key: Key, position: int | None = None):
        self.node = node
        self.key = key
        self.position = position

    def arrays(self) -> list[Any]:
        """The arrays there, in order."""
        value = self._items()[self.key]
        if is_dynamic(value):
            return [value]
        leaves = enumerate(jax.tree.leaves(value, is_leaf=is_data))
        return [x for number, x in leaves if self._is_meant(number, x)]

    def _is_meant(self, number: int, leaf: Any) -> bool:
        return is_array(leaf) if self.position is None else number == self.position

    def show(self, arrays: Iterator[Any]) -> None:
        """Puts other arrays in their place, without any structural change."""
        items = self._items()
        value = items[self.key]
        if is_dynamic(value):
            new = next(arrays)
        else:
            leaves, treedef = jax.tree.flatten(value, is_leaf=is_data)
            new = treedef.unflatten(
                [
                    next(arrays) if self._is_meant(number, x) else x
                    for number, x in enumerate(leaves)
                ]
            )
        if isinstance(self.node, Pytree):
            self.node._nnx_replace({**items, self.key: new})
        else:
            vars(self.node)[self.key] = new

    def write(self, arrays: Iterator[Any]) -> None:
        """Puts other arrays in their place, for good."""
        items = dict(self._items())
        self.show(arrays)
        new = self._items()[self.key]
        if isinstance(self.node, Pytree):
            self.node._nnx_replace(items)
            change(self.node, {**items, self.key: new})

    def _items(self) -> dict[Key, Any]:
        return items_of(self.node)


def items_of(obj: Any) -> dict[Key, Any]:
    """The children of a node, or the fields of a plain object."""
    return obj._nnx_items() if isinstance(obj, Pytree) else vars(obj)


def holders_of(node: Pytree) -> list[Holder]:
    """The places of one node that hold bare arrays."""
    found = []
    for key, value in node._nnx_items().items():
        marked = node._nnx_marks.get(key) == "data" and is_dynamic(value)
        if marked or _holds_array(value):
            found.append(Holder(node, key))
    return found


def _holds_array(value: Any) -> bool:
    if isinstance(value, (Variable, Pytree, str)):
        return False
    if is_array(value):
        return True
    if not isinstance(value, tuple) and kind_of(value) == DYNAMIC:
        return False
    return any(is_array(x) for x in jax.tree.leaves(value, is_leaf=is_data))


class Visit:
    """A function's stay at a new level: its frame, and what it did there.

    A context manager; while it is entered, `show` and `show_arrays` give outer objects
    their values, and `depart` takes the result apart. On leaving, every outer object
    is as it was before.

    Args:
      transform: what error messages call the transform.
      known: for a sealed frame the objects that crossed, in order; None for an open
        frame, where everything around may be reached.
      plain: plain objects among the arguments, whose fields are watched.
    """

    def __init__(
        self,
        transform: str,
        known: Sequence[Any] | None = None,
        plain: Sequence[Any] = (),
    ):
        self.known = known
        numbers = None if known is None else {id(x): n for n, x in enumerate(known)}
        self.frame: Frame = Frame(transform, numbers)
        self._entered = frames.entered(self.frame)
        self._fields = [(obj, dict(vars(obj))) for obj in plain]
        self._shown: dict[int, dict[Key, Any]] = {}

    def __enter__(self) -> "Visit":
        self._entered.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)
        for obj, fields in self._fields:
            vars(obj).clear()
            vars(obj).update(fields)

    def show(self, variables: Iterable[Any], values: Iterable[Any]) -> None:
        """Gives Variables their values at this level."""
        self.frame.values.update(zip(variables, values, strict=True))

    def show_arrays(self, holders: Sequence[Holder], arrays: Iterable[Any]) -> None:
        """Shows other bare arrays in their places."""
        rest = iter(arrays)
        if holders:
            self.frame.is_cached = self.frame.shows_arrays = True
        for holder in holders:
            node = holder.node
            if isinstance(node, Pytree) and id(node) not in self.frame.journal:
                self.frame.journal[id(node)] = (node, node._nnx_snapshot())
            holder.show(rest)
        for holder in holders:
            self._shown[id(holder.node)] = dict(items_of(holder.node))

    def arrays_of(self, holders: Iterable[Holder]) -> list[Any]:
        """The bare arrays in some places now, which from here on count as shown."""
        arrays: list[Any] = []
        for holder in holders:
            arrays += holder.arrays()
            self._shown[id(holder.node)] = dict(items_of(holder.node))
        return arrays

    def changes(self) -> tuple[list[Change], list[Change]]:
        """What became so far of outer nodes, and of plain objects."""
        nodes = [
            Change(node, self._before(node, before[0]), dict(node._nnx_items()))
            for node, before in self.frame.journal.values()
            if not isinstance(node, Variable) and self._differs(node, before)
        ]
        plain = [
            Change(obj, self._before(obj, before), dict(vars(obj)))
            for obj, before in self._fields
        ]
        return nodes, [x for x in plain if x.new or x.gone]

    def with_new_metadata(self) -> list[Any]:
        """The Variables whose metadata has changed so far."""
        return [
            obj
            for obj, before in self.frame.journal.values()
            if isinstance(obj, Variable) and obj._metadata is not before
        ]

    def depart(self, result: Any) -> Departure:
        """Takes apart the result and all that was written and changed."""
        parting = self.part(result, only_if_needed=True)
        if parting.record.walk is None:
            return parting.record, parting.values, result
        return parting.packed(_comes_out)

    def part(
        self,
        result: Any,
        *,
        only_if_needed: bool = False,
        also: Sequence[Any] | None = None,
    ) -> Parting:
        """Takes apart the result and all that was written and changed.

        Args:
          result: what the function returned.
          only_if_needed: leaves the result as it is if it is a pytree of arrays and
            nothing changed but values.
          also: nodes that are taken for changed, with what they hold; if it is given,
            the order of the changes depends on the nodes alone.
        """
        frame = self.frame
        written = [v for v in frame.written if id(v) not in frame.made]
        values = [frame.values[v] for v in written]
        metadata = [(self._name(v), v._metadata) for v in self.with_new_metadata()]
        nodes, plain = self.changes()
        if also is not None:
            changed = {id(x.owner) for x in nodes}
            for node in also:
                if id(node) not in changed:
                    items = dict(node._nnx_items())
                    nodes.append(Change(node, items, items))
            nodes.sort(key=lambda x: id(x.owner))
        record = Record([self._name(v) for v in written], metadata)
        parting = Parting(record, written, values, [*nodes, *plain], [], ())
        if only_if_needed and not parting.changes:
            if all(map(_comes_out, flatten(result)[0] + values)):
                return parting
        walk = Taking(self.known or (), self._is_outside)
        walk.take(result, (RESULT,))
        for number, node in enumerate(nodes):
            walk.take_contents(node.owner, (number,))
        for number, obj in enumerate(plain, len(nodes)):
            walk.take(obj.new, (number,))
        record.changed = [self._name(node.owner) for node in nodes]
        record.plain = [
            (self._name_plain(x.owner), tuple(x.new), x.gone) for x in plain
        ]
        record.walk = tuple(walk.records)
        parting.leaves = walk.values
        parting.paths = walk.paths
        parting.found = walk.leaves
        return parting

    def _before(self, obj: Any, items: dict[Key, Any]) -> dict[Key, Any]:
        """What an object held when the function got it: its items, or what is shown."""
        return self._shown.get(id(obj), items)

    def _name(self, obj: Any) -> Any:
        return obj if self.known is None else self.frame.known[id(obj)]

    def _name_plain(self, obj: Any) -> Any:
        if self.known is None:
            return obj
        return next(n for n, (other, _) in enumerate(self._fields) if other is obj)

    def _is_outside(self, obj: Any) -> bool:
        if self.known is not None and self.frame.hides(obj):
            raise frames.hidden(obj, self.frame, "returned or stored")
        return id(obj) not in self.frame.made

    def _differs(self, node: Pytree, before: Any) -> bool:
        old = self._before(node, before[0])
        new = node._nnx_items()
        return (
            old.keys() != new.keys()
            or any(new[key] is not old[key] for key in new)
            or node._nnx_form() != before[1]
        )


def _comes_out(value: Any) -> bool:
    """On the way out a plain number is static: it was known while tracing."""
    return is_array(value) and not isinstance(value, jax.ShapeDtypeStruct)


def numbers_as_arrays(result: Any) -> Any:
    """A result with arrays for numbers: a value that is chosen or carried."""
    leaves, treedef = flatten(result)
    return treedef.unflatten(
        [jnp.asarray(x) if kind_of(x) == DYNAMIC else x for x in leaves]
    )


def difference(one: Parting, other: Parting) -> tuple[str, ...] | None:
    """Where the structures of two partings first differ, or None."""
    here = {id(v): (v, metadata) for v, metadata in one.record.metadata}
    there = {id(v): (v, metadata) for v, metadata in other.record.metadata}
    for key, (variable, _) in {**here, **there}.items():
        if here.get(key) != there.get(key):
            texts = [
                str(dict(x[key][1])) if key in x else "left alone"
                for x in (here, there)
            ]
            return f"the metadata of {name_of(variable)}", *texts
    ours, theirs = ({id(x.owner): x for x in p.changes} for p in (one, other))
    for key, either in {**ours, **theirs}.items():
        both = ours.get(key), theirs.get(key)
        shapes = [x and (set(x.after), x.gone) for x in both]
        if shapes[0] != shapes[1]:
            texts = [str(x) if x else "left alone" for x in both]
            return name_of(either.owner), *texts
    assert one.record.walk is not None and other.record.walk is not None
    found = first_difference(one.record.walk, other.record.walk)
    if found is None:
        return None
    number, path, *texts = found
    return one.where(number - 1 if number else RESULT, path), *texts


def apply(
    departure: Departure,
    objects: Sequence[Any] | None = None,
    plain: Sequence[Any] = (),
) -> Any:
    """Does outside what the function did inside, and returns its result.

    Args:
      departure: with real values, as the JAX transform returned it.
      objects: what the record's numbers mean; None if it holds the objects.
      plain: what the numbers of plain objects mean.
    """
    record, values, result = departure
    new_contents: list[Any] = []
    new_fields: list[Any] = []
    if record.walk is not None and record.packing is not None:
        values, leaves = record.packing.unpacked(result)
        rest = iter(leaves)
        putting = Putting(record.walk, lambda _: next(rest), objects or ())
        result = putting.put()
        new_contents = [putting.contents() for _ in record.changed]
        new_fields = [putting.put() for _ in record.plain]

    def named(name: Any) -> Any:
        return name if objects is None else objects[name]

    for name, value in zip(record.written, values, strict=True):
        named(name)._write(value)  # frozen or not: it could be written inside
    for name, metadata in record.metadata:
        named(name)._change_metadata(metadata)
    for name, (items, form) in zip(record.changed, new_contents, strict=True):
        change(named(name), items, form)
    for (name, _, gone), new in zip(record.plain, new_fields, strict=True):
        fields = vars(name if objects is None else plain[name])
        fields.update(new)
        for key in gone:
            del fields[key]
    return result
