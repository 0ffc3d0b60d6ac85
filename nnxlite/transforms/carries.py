"""What a loop carries from step to step.

A loop carries a value, whose arrays change from step to step, and what its body writes:
Variables, and bare arrays in the attributes of objects. Objects in the value stay the
same ones, but a Variable may be *renewed*: where a step returns a new one, as
`jax.tree.map` over a State does, each step gets one of its own. What is written and
renewed is not known beforehand: if the body did more than is carried yet, it is traced
again with that in the carry.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.arrays import is_dynamic
from ..core.errors import name_of
from ..core.module import key_of
from ..core.paths import format_path
from ..core.statics import Static
from ..core.variable import Variable
from .boundary import Holder, Packing, Visit
from .labels import Entry
from .leaves import (
    DYNAMIC,
    VARIABLE,
    flatten,
    flatten_with_path,
    kind_of,
    plain_objects,
)


class _UnforeseenError(Exception):
    """The body wrote or renewed Variables, or bare arrays, that are not carried yet."""

    def __init__(
        self,
        loop: "Loop",
        variables: list[Any],
        holders: list[Holder],
        renewed: set[int],
    ):
        self.loop = loop
        self.variables = variables
        self.holders = holders
        self.renewed = renewed


class Loop:
    """What a loop carries: the arrays of a value, and what the body writes.

    Args:
      transform: what error messages call the loop.
      value: any pytree of arrays, objects and static values.

    Attributes:
      variables: the Variables that are written.
      holders: the places of bare arrays that are replaced.
      renewed: the numbers of the leaves of the value that are renewed Variables.
      plain: plain objects in the value, whose fields are watched.
    """

    leaves: list[Any]
    treedef: Any
    packing: Packing

    def __init__(self, transform: str, value: Any):
        self.transform = transform
        self.value = value
        self.leaves, self.treedef = flatten(value)
        self.variables: list[Variable[Any]] = []
        self.holders: list[Holder] = []
        self.renewed: set[int] = set()
        self.plain: list[Any] = plain_objects(value)

    def run(self, attempt: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Runs the loop with as much in the carry as the body writes.

        Args:
          attempt: given the first carry, runs the loop and returns the last one, and
            anything else.

        Returns:
          a function that writes what the loop has left, and returns the value after
          the loop; and the other thing.
        """
        while True:
            arrays = self._arrays(self.leaves)
            self.packing = Packing([v.raw_value for v in self.variables])
            values = [jnp.asarray(x) for x in self.packing.arrays]
            held = [jnp.asarray(x) for h in self.holders for x in h.arrays()]
            try:
                carry, rest = attempt((arrays, values, held))
            except _UnforeseenError as unforeseen:
                if unforeseen.loop is not self:
                    raise
                self.variables += unforeseen.variables
                self.holders += unforeseen.holders
                self.renewed |= unforeseen.renewed
                continue
            return functools.partial(self._finished, *carry), rest

    def _finished(self, arrays: Any, values: Any, held: Any) -> Any:
        after = self.packing.unpacked(values)
        for variable, value in zip(self.variables, after, strict=True):
            variable._write(value)
        rest = iter(held)
        for holder in self.holders:
            holder.write(rest)
        return self._filled(arrays)

    def enter(self, visit: Visit, carry: Any) -> Any:
        """Shows what is carried inside; returns the carried value."""
        arrays, values, held = carry
        visit.show(self.variables, self.packing.unpacked(values))
        visit.show_arrays(self.holders, held)
        return self._filled(arrays)

    def leave(
        self, visit: Visit, carry: Any, value: Any, entry: Entry | None = None
    ) -> Any:
        """The next carry.

        Args:
          visit: the body's stay.
          carry: the carry that it began with.
          value: the value that it returned.
          entry: what besides the value has labels, and need not be carried.

        Raises:
          ValueError: if the value has another structure.
          TypeError: if an array has another shape or dtype than before.
        """
        frame = visit.frame
        variables, holders = self._unforeseen(visit, entry)
        leaves, renewed = self._checked(visit, value)
        if variables or holders or renewed:
            raise _UnforeseenError(self, variables, holders, renewed)
        arrays = self._arrays(leaves)
        for variable, shown in zip(
            self.variables, self.packing.unpacked(self.packing.arrays), strict=True
        ):
            before, after = Packing([shown]), Packing([frame.values[variable]])
            if (before.treedef, before.statics) != (after.treedef, after.statics):
                raise TypeError(
                    f"the value of {name_of(variable)} has another structure after a "
                    f"step of {self.transform}: {frame.values[variable]!r} instead of "
                    f"{shown!r}, but must keep its containers and static values"
                )
        packing = Packing([frame.values[v] for v in self.variables])
        values = [jnp.asarray(x) for x in packing.arrays]
        held = [jnp.asarray(x) for x in visit.arrays_of(self.holders)]
        before, after = [*sum(carry, [])], [*arrays, *values, *held]
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            self._check_type(number, jax.typeof(old), jax.typeof(new))
        return arrays, values, held

    def _unforeseen(
        self, visit: Visit, entry: Entry | None
    ) -> tuple[list[Any], list[Holder]]:
        frame = visit.frame
        carried = {id(variable) for variable in self.variables}
        sliced = entry.sliced if entry is not None else ()
        variables = [
            v
            for v in frame.written
            if id(v) not in carried and id(v) not in frame.made and v not in sliced
        ]
        places = {(id(holder.node), holder.key) for holder in self.holders}
        holders = [
            Holder(change.owner, key)
            for changes in visit.changes()
            for change in changes
            if change.is_of_arrays
            for key, array in change.new.items()
            if (id(change.owner), key) not in places
            and (entry is None or entry.is_carried(change.owner, key, array))
        ]
        return variables, holders

    def check_structure(self, changes: Iterable[tuple[Any, str]]) -> None:
        """Raises ValueError if there are changes of structure: what, and how."""
        for obj, change in changes:
            raise ValueError(
                f"the body of {self.transform} changes the structure of "
                f"{name_of(obj)}: it {change}. Structure must stay as it is in a loop: "
                "make the change before the loop"
            )

    def _arrays(self, leaves: Sequence[Any]) -> list[Any]:
        """The arrays among the leaves of a value, and those of renewed Variables."""
        return [
            jnp.asarray(x.raw_value if isinstance(x, Variable) else x)
            for number, x in enumerate(leaves)
            if kind_of(x) == DYNAMIC or number in self.renewed
        ]

    def _filled(self, arrays: Sequence[Any]) -> Any:
        rest = iter(arrays)

        def filled(number: int, leaf: Any) -> Any:
            if number in self.renewed:
                return type(leaf).from_metadata(next(rest), leaf._metadata)
            return next(rest) if kind_of(leaf) == DYNAMIC else leaf

        leaves = [filled(number, leaf) for number, leaf in enumerate(self.leaves)]
        return self.treedef.unflatten(leaves)

    def _checked(self, visit: Visit, value: Any) -> tuple[list[Any], set[int]]:
        """The leaves of a value that must have the structure of the first one.

        Also the numbers of those where a new Variable stands for one of the same kind.
        """
        frame = visit.frame
        renewed: set[int] = set()
        leaves, treedef = flatten(value)
        if treedef != self.treedef:
            got = "None: is a `return` missing?" if value is None else treedef
            raise ValueError(
                f"the body of {self.transform} must return a value of the structure "
                f"that it got, {self.treedef}, but it returned {got}"
            )
        for number, (old, new) in enumerate(zip(self.leaves, leaves, strict=True)):
            if kind_of(old) == DYNAMIC and kind_of(new) == DYNAMIC:
                continue
            if kind_of(old) == kind_of(new) == VARIABLE and id(new) in frame.made:
                alike = type(old) is type(new) and old._metadata == new._metadata
                if alike and old not in frame.written and is_dynamic(new.raw_value):
                    renewed.add(number)
                    continue
            if old is not new and Static(old) != Static(new):
                raise ValueError(
                    f"the body of {self.transform} must return the object that it got "
                    f"as {self._place(number)}, {name_of(old)}, but it returned "
                    f"{'another ' if type(old) is type(new) else ''}{name_of(new)}. "
                    "Change the object that it gets instead"
                )
        return leaves, renewed - self.renewed

    def _place(self, number: int) -> str:
        keys, _ = flatten_with_path(self.value)[number]
        return format_path(tuple(map(key_of, keys)), root="the carry")

    def _check_type(self, number: int, old: Any, new: Any) -> None:
        if old.shape == new.shape and (old.dtype == new.dtype or old.weak_type):
            return
        places = [
            self._place(n)
            for n, x in enumerate(self.leaves)
            if kind_of(x) == DYNAMIC or n in self.renewed
        ]
        for variable in self.variables:
            places += [variable] * len(Packing([variable.raw_value]).arrays)
        for holder in self.holders:
            place = f"{holder.key!r} of {name_of(holder.node)}"
            places += [place] * len(holder.arrays())
        found = places[number]
        what = name_of(found) if isinstance(found, Variable) else found
        raise TypeError(
            f"{what} is {old.dtype}{list(old.shape)} before a step of "
            f"{self.transform} and {new.dtype}{list(new.shape)} after it, but must "
            "stay as it is: cast with astype, or start with the type that it gets"
        )
