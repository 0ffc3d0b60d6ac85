"""Plans: what repeated calls of a compiled function know about one set of objects.

`opened` sorts the arguments of a call and yields a *key*: the same objects in the same
places with equal static values have the same key. A *plan* belongs to a key. It holds
the cells of all Variables below the objects, so that a call gathers their values in
one list comprehension, and watches the stamps of all nodes, which tell it when it is
out of date. Plans with the same structure share a *program*, the compiled function.

A plan holds Variables and nodes weakly, and is dropped when one of its roots dies.
Variables that are arguments themselves ("loose") are no part of the key: a plan takes
any Variables of the same kinds and metadata, so that new gradients make no new plan.
"""

import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from ..core import frames, interception
from ..core.arrays import is_dynamic
from ..core.frames import everywhere
from ..core.graph import Taking
from ..core.module import Pytree, key_of
from ..core.paths import Key, Path
from ..core.statics import Static, static_key
from ..core.variable import Cell, Variable
from .boundary import Holder, Packing, Record, holders_of
from .captures import Place, View, is_followed, own_part
from .leaves import (
    CONTAINER,
    DYNAMIC,
    NODE,
    PLAIN,
    VARIABLE,
    flatten,
    flatten_with_path,
    kind_of,
    kinds,
)

_ARRAY, _NODE = "array", "node"
MOST_KEPT = 512  # plans, and programs, of one compiled function
_NONE: Any = ()


class Input(NamedTuple):
    """Where one gathered array comes from.

    Attributes:
      argument: the position or name of the argument, or None if captured.
      path: from the argument to the leaf.
      leaf: the Variable or array.
    """

    argument: int | str | None
    path: Path
    leaf: Any


class Opened:
    """The arguments of one call, sorted.

    Args:
      args, kwargs: the arguments.
      captured: the objects that the function sees besides.
      constants: the key of what else the function sees.
      ignored: see `View`; for the functions among the arguments.

    Attributes:
      key: settles the plan; nodes stand in it by id.
      nodes, loose, dynamic, plain: the leaves of each kind, in order; also what is
        captured, and what the fields of plain objects hold.
      held: the places in plain objects that hold bare arrays.
      views: of the functions among the arguments, with the key of what they see.
    """

    __slots__ = (
        "args",
        "constants",
        "dynamic",
        "held",
        "ignored",
        "key",
        "kwargs",
        "loose",
        "nodes",
        "plain",
        "views",
    )
    # Where there are none, the empty tuple stands for a list.
    loose: list[Any]
    plain: list[Any]
    held: list[Holder]
    views: list[tuple[View, Hashable]]

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        captured: Sequence[Any] = (),
        constants: Hashable = None,
        ignored: frozenset[Place] = frozenset(),
    ):
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.constants: Hashable = constants
        self.ignored: frozenset[Place] = ignored
        self.nodes: list[Any] = []
        self.dynamic: list[Any] = []
        self.loose = self.plain = self.held = self.views = _NONE  # mostly empty
        key: list[Any] = [constants, len(args)]
        if kwargs:
            names = sorted(kwargs)
            key.append(tuple(names))
            args += tuple(kwargs[name] for name in names)
        self._sort((*args, *captured) if captured else args, key)
        if interception.active:
            self._sort(interception.seen(), key)
            key.append(interception.paths_of(self.nodes))
        self.key: tuple[Any, ...] = tuple(key)

    def with_view(self, view: View) -> "Opened":
        """The same arguments with another view of the surroundings."""
        return Opened(self.args, self.kwargs, *view.look(), view.ignored)

    def _sort(self, values: Iterable[Any], key: list[Any]) -> None:
        for value in values:
            kind = kinds.get(type(value)) or kind_of(value)
            if kind == NODE:
                self.nodes.append(value)
                key.append(id(value))
            elif kind == DYNAMIC:
                self.dynamic.append(value)
                key.append(_ARRAY)
            elif kind == CONTAINER:
                leaves, treedef = flatten(value)
                key.append(treedef)
                self._sort(leaves, key)
            elif kind == VARIABLE:
                self.loose = self.loose or []
                self.loose.append(value)
                key.append(type(value))
                key.append(value._metadata)
            elif kind == PLAIN:
                self._look_into(value, key)
            elif is_followed(value):
                view = View(value, None, self.ignored)
                objects, seen = view.look()
                self.views = [*self.views, (view, seen)]
                key += (own_part(value), seen)
                self._sort(objects, key)
            else:
                key.append(static_key(value))

    def _look_into(self, obj: Any, key: list[Any]) -> None:
        """Sorts the fields of a plain object; its numbers are static."""
        self.plain = self.plain or []
        self.plain.append(obj)
        fields = vars(obj)
        key.append((type(obj), tuple(fields)))
        for name, value in fields.items():
            leaves, treedef = flatten(value)
            key.append(treedef)
            holds_array = False
            for leaf in leaves:
                kind = kind_of(leaf)
                if kind in (NODE, VARIABLE):
                    self._sort((leaf,), key)
                elif kind == DYNAMIC and hasattr(leaf, "shape"):
                    holds_array = True
                    key.append(_ARRAY)
                else:
                    key.append(static_key(leaf))
            if holds_array:
                self.held = self.held or []
                self.held.append(Holder(obj, name))

    def places(self) -> dict[int, tuple[int | str | None, Path]]:
        """By id of each object and position of each array: its argument and path."""
        found: dict[int, tuple[int | str | None, Path]] = {}
        arrays = 0
        for (_, *keys), leaf in flatten_with_path((self.args, self.kwargs)):
            argument, *path = map(key_of, keys)
            if kind_of(leaf) == DYNAMIC:
                found[arrays] = (argument, tuple(path))
                arrays += 1
            else:
                found.setdefault(id(leaf), (argument, tuple(path)))
        return found

    def structure(self) -> Hashable:
        """The key with nodes in place of their ids."""
        seen, count, *parts = self.key
        return (seen, count, *(_NODE if type(x) is int else x for x in parts))

    def arguments(self, dynamic: Sequence[Any]) -> Any:
        """The arguments again, with other arrays in the place of theirs."""
        leaves, treedef = flatten((self.args, self.kwargs))
        rest = iter(dynamic)
        return treedef.unflatten(
            [next(rest) if kind_of(x) == DYNAMIC else x for x in leaves]
        )


class Plan:
    """What is known about the objects of one key; see the module's docstring.

    Attributes:
      cells: of the Variables below the nodes that hold arrays, in order.
      odd: the other Variables, whose values are pytrees or no arrays at all.
      packing: how the odd values became arrays.
      held: nodes and keys of places with bare arrays.
      objects: all nodes and Variables, in the order of their numbers, but the loose.
      paths: the path of each leaf, for messages and labels.
      own: which loose Variables are not found again below the nodes.
      is_current: False once a node below the roots has changed its structure.
    """

    def __init__(self, opened: Opened):
        walk = Taking()
        for number, node in enumerate(opened.nodes):
            walk.take(node, (number,))
        self.objects: list[Any] = [weakref.ref(obj) for obj in walk.objects]
        self.paths: list[Path] = list(walk.paths)
        variables = [x for x in walk.leaves if isinstance(x, Variable)]
        plain: list[Any] = [v for v in variables if is_dynamic(v.raw_value)]
        odd = [v for v in variables if not is_dynamic(v.raw_value)]
        self.odd: list[Any] = [weakref.ref(v) for v in odd]
        self.variables: list[Any] = [weakref.ref(v) for v in plain]
        self.cells: list[Cell] = [v._cell for v in plain]
        self.odd_cells: list[Cell] = [v._cell for v in odd]
        self.variable_ids: frozenset[int] = frozenset(map(id, variables))
        nodes = [x for x in walk.objects if isinstance(x, Pytree)]
        self.held: list[tuple[Any, Key]] = [
            (weakref.ref(node), holder.key)
            for node in nodes
            for holder in holders_of(node)
        ]
        before = len(walk.objects)
        self.own: list[int] = []
        for index, variable in enumerate(opened.loose):
            walk.take(variable, (len(opened.nodes) + index,))
            if len(walk.objects) > before + len(self.own):
                self.own.append(index)
        packing = self._pack(opened) if self._is_odd(opened) else None
        self.packing: Packing | None = packing
        self.is_simple: bool = not self.held and self.packing is None
        self.structure: tuple[Any, ...] = (
            opened.structure(),
            tuple(r.key if isinstance(r, Static) else r for r in walk.records),
            self.packing and (self.packing.treedef, tuple(self.packing.statics)),
            tuple(n for n, v in enumerate(variables) if not is_dynamic(v.raw_value)),
            interception.hits(walk.objects),
        )
        self.is_current = True
        watcher = weakref.ref(self)
        for node in nodes:
            node._nnx_stamp.watch(watcher)
        self.is_aliased: bool = _is_aliased(opened.loose, self)
        self.program: Any = None
        self.targets: dict[Record, list[Cell] | None] = {}

    def _is_odd(self, opened: Opened) -> bool:
        return bool(self.odd) or not all(
            is_dynamic(opened.loose[index].raw_value) for index in self.own
        )

    def _pack(self, opened: Opened) -> Packing:
        return Packing([v.raw_value for v in self._odd_variables(opened)])

    def _odd_variables(self, opened: Opened) -> list[Any]:
        """With odd values around, the loose Variables are packed too."""
        return [ref() for ref in self.odd] + [opened.loose[i] for i in self.own]

    def gather(self, opened: Opened) -> list[Any] | None:
        """All arrays that go in, in order; None if the plan no longer fits."""
        if everywhere and frames.current() is not None:
            values = self._values_here()
            if values is None:
                return None
        else:
            try:
                values = [cell.value for cell in self.cells]
            except AttributeError:  # a Variable has left its cell
                return None
        if self.is_simple and not opened.loose and not opened.held:
            values += opened.dynamic
            return values
        for ref, key in self.held:
            values += Holder(ref(), key).arrays()
        for holder in opened.held:
            values += holder.arrays()
        if self.packing is not None:
            if _have_moved(self.odd, self.odd_cells):
                return None
            packing = self._pack(opened)
            if (packing.treedef, packing.statics) != (
                self.packing.treedef,
                self.packing.statics,
            ):
                return None
            values += packing.arrays
        elif opened.loose:
            loose = [opened.loose[i].raw_value for i in self.own]
            if not all(map(is_dynamic, loose)):
                return None
            values += loose
        values += opened.dynamic
        return values

    def _values_here(self) -> list[Any] | None:
        """The values at this level; None if there are other Variables than before."""
        if _have_moved(self.variables, self.cells):
            return None
        values = [ref().raw_value for ref in self.variables]
        return values if all(map(is_dynamic, values)) else None

    def known(self, opened: Opened) -> list[Any]:
        """The objects that cross, in the order of their numbers."""
        return [ref() for ref in self.objects] + [opened.loose[i] for i in self.own]

    def show(self, visit: Any, opened: Opened, values: Sequence[Any]) -> Sequence[Any]:
        """Shows the gathered arrays, or tracers for them, to a visit's function.

        Returns:
          the arrays of the arguments themselves.
        """
        rest = iter(values)

        def take(count: int) -> list[Any]:
            return [next(rest) for _ in range(count)]

        visit.show([ref() for ref in self.variables], take(len(self.variables)))
        holders = [*(Holder(ref(), key) for ref, key in self.held), *opened.held]
        visit.show_arrays(holders, take(sum(len(h.arrays()) for h in holders)))
        loose = [opened.loose[i] for i in self.own]
        if self.packing is not None:
            arrays = take(len(self.packing.arrays))
            visit.show(self._odd_variables(opened), self.packing.unpacked(arrays))
        else:
            visit.show(loose, take(len(loose)))
        return list(rest)

    def inputs(self, opened: Opened) -> list[Input]:
        """Where each gathered array comes from."""
        places = opened.places()
        nowhere: tuple[None, Path] = (None, ())
        by_id: dict[int, Path] = {}
        walk = Taking()
        for number, node in enumerate(opened.nodes):
            walk.take(node, (number,))
        for path, leaf in walk.pairs:
            by_id.setdefault(id(leaf), path)

        def below_node(leaf: Any, path: Path) -> Input:
            argument, start = places.get(id(opened.nodes[path[0]]), nowhere)
            return Input(argument, (*start, *path[1:]), leaf)

        inputs = [below_node(ref(), by_id[id(ref())]) for ref in self.variables]
        for ref, key in self.held:
            for array in Holder(ref(), key).arrays():
                inputs.append(below_node(array, by_id[id(array)]))
        for holder in opened.held:
            inputs += [Input(None, (holder.key,), x) for x in holder.arrays()]
        odd: list[Any] = [ref() for ref in self.odd]
        for variable in odd:
            below = below_node(variable, by_id[id(variable)])
            inputs += [below] * len(Packing([variable.raw_value]).arrays)
        for variable in self._odd_variables(opened)[len(odd) :]:
            place = Input(*places.get(id(variable), nowhere), variable)
            inputs += [place] * len(Packing([variable.raw_value]).arrays)
        return inputs + [Input(*places[n], x) for n, x in enumerate(opened.dynamic)]

    def cells_of(self, record: Record) -> list[Cell] | None:
        """The cells that a record writes, if that is all that it does; kept."""
        if record in self.targets:
            return self.targets[record]
        cells: list[Cell] | None = None
        if record.walk is None and not record.metadata:
            if all(number < len(self.objects) for number in record.written):
                written = [self.objects[number]() for number in record.written]
                if all(is_dynamic(v.raw_value) for v in written):
                    cells = [v._cell for v in written]
        self.targets[record] = cells
        return cells


class Plans:
    """The plans and programs of one compiled function.

    Args:
      make_program: makes the program of a structure not met before.
    """

    def __init__(self, make_program: Callable[[], Any]):
        self._make_program = make_program
        self._plans: dict[Hashable, Plan] = {}
        self._watchers: dict[Hashable, list[Any]] = {}
        self._programs: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._plans)

    def find(self, opened: Opened) -> tuple[Plan, list[Any]]:
        """The plan for opened arguments, and the arrays that go in."""
        key = opened.key
        plan = self._plans.get(key)
        if opened.loose and plan is not None:
            if _is_aliased(opened.loose, plan):
                plan = self._plans.get((*key, *map(id, opened.loose)))
            elif plan.is_aliased:
                plan = None
        if plan is not None and plan.is_current:
            values = plan.gather(opened)
            if values is not None:
                return plan, values
        return self._made(opened)

    def _made(self, opened: Opened) -> tuple[Plan, list[Any]]:
        plan = Plan(opened)
        plan.program = self._programs.get(plan.structure)
        if plan.program is None:
            _drop_oldest(self._programs)
            plan.program = self._programs[plan.structure] = self._make_program()
        self._keep(opened.key, plan, opened)
        if plan.is_aliased:
            self._keep((*opened.key, *map(id, opened.loose)), plan, opened)
        values = plan.gather(opened)
        assert values is not None
        return plan, values

    def adopt(self, opened: Opened, plan: Plan) -> None:
        """Lets a plan's program stand for the same objects under another key too."""
        for structure in (
            (opened.structure(), *plan.structure[1:]),
            Plan(opened).structure,  # tracing may have changed what statics hold, too
        ):
            self._programs.setdefault(structure, plan.program)

    def _keep(self, key: Hashable, plan: Plan, opened: Opened) -> None:
        """Keeps a plan until one of its roots dies."""
        plans, watchers = self._plans, self._watchers

        def forget(_: Any) -> None:
            plans.pop(key, None)
            watchers.pop(key, None)

        _drop_oldest(plans)
        roots = [*opened.nodes, *opened.loose] if plan.is_aliased else opened.nodes
        watchers[key] = [weakref.ref(root, forget) for root in roots]
        plans[key] = plan

    def clear(self) -> None:
        """Forgets all plans and programs."""
        self._plans.clear()
        self._watchers.clear()
        self._programs.clear()


def _drop_oldest(kept: dict[Hashable, Any]) -> None:
    """Makes room: what depends on values that never come back would stay for ever."""
    while len(kept) >= MOST_KEPT:
        kept.pop(next(iter(kept)), None)


def _have_moved(variables: list[Any], cells: list[Cell]) -> bool:
    """Whether a Variable has other metadata, or another kind of value, than before."""
    return any(ref()._cell is not c for ref, c in zip(variables, cells, strict=True))


def _is_aliased(loose: list[Any], plan: Plan) -> bool:
    ids = set(map(id, loose))
    return len(ids) < len(loose) or not plan.variable_ids.isdisjoint(ids)
