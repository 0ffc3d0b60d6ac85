"""`while_loop`, `fori_loop` and `scan`: Python loops that JAX compiles.

A loop carries a value, whose arrays change from step to step, and the Variables that
its body writes. Which these are is not known beforehand: if the body wrote a Variable
that is not carried yet, it is traced again with that Variable in the carry. Structure
stays as it is in a loop, since it is settled before the number of steps is known; only
what a scan has sliced may gain and lose parts, which are stacked.
"""

import functools
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.errors import name_of
from ..core.module import key_of
from ..core.operators import value_of
from ..core.paths import format_path
from ..core.statics import Static
from ..core.variable import MISSING, Variable
from .axes import Names
from .boundary import Packing, Visit
from .compilation import compiled_at_top
from .leaves import DYNAMIC, flatten, flatten_with_path, kind_of
from .mapping import Entry, Exit, Streams, bound, constants, labels_in, prefixes_of
from .prefixes import Carry, StateLabels


class _UnforeseenError(Exception):
    """The body wrote Variables that are not carried yet."""

    def __init__(self, loop: "Loop", variables: Sequence[Variable[Any]]):
        self.loop = loop
        self.variables = variables


class Loop:
    """What a loop carries: the arrays of a value, and the Variables that are written.

    Args:
      transform: what error messages call the loop.
      value: any pytree of arrays, objects and static values.
    """

    def __init__(self, transform: str, value: Any):
        self.transform = transform
        self.value = value
        self.leaves, self.treedef = flatten(value)
        self.variables: list[Variable[Any]] = []

    def run(self, attempt: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Runs the loop with as many Variables in the carry as are written.

        Args:
          attempt: given the first carry, runs the loop and returns the last one, and
            anything else.

        Returns:
          the value after the loop, and the other thing.
        """
        while True:
            arrays = [jnp.asarray(x) for x in self.leaves if kind_of(x) == DYNAMIC]
            self.packing = Packing([v.raw_value for v in self.variables])
            values = [jnp.asarray(x) for x in self.packing.arrays]
            try:
                (arrays, values), rest = attempt((arrays, values))
            except _UnforeseenError as unforeseen:
                if unforeseen.loop is not self:
                    raise
                self.variables += unforeseen.variables
                continue
            after = self.packing.unpacked(values)
            for variable, value in zip(self.variables, after, strict=True):
                variable.raw_value = value
            return self._filled(arrays), rest

    def enter(self, visit: Visit, carry: Any) -> Any:
        """Shows the carried Variables inside; returns the carried value."""
        arrays, values = carry
        visit.show(self.variables, self.packing.unpacked(values))
        return self._filled(arrays)

    def leave(self, visit: Visit, carry: Any, value: Any, mapped: Any = ()) -> Any:
        """The next carry.

        Args:
          visit: the body's stay.
          carry: the carry that it began with.
          value: the value that it returned.
          mapped: Variables that are not carried, since each step has its own.

        Raises:
          ValueError: if the value has another structure.
          TypeError: if an array has another shape or dtype than before.
        """
        frame = visit.frame
        carried = {id(variable) for variable in self.variables}
        unforeseen = [
            v
            for v in frame.written
            if id(v) not in carried and id(v) not in frame.made and v not in mapped
        ]
        if unforeseen:
            raise _UnforeseenError(self, unforeseen)
        leaves = self._checked(value)
        arrays = [jnp.asarray(x) for x in leaves if kind_of(x) == DYNAMIC]
        packing = Packing([frame.values[v] for v in self.variables])
        values = [jnp.asarray(x) for x in packing.arrays]
        if (packing.treedef, packing.statics) != (
            self.packing.treedef,
            self.packing.statics,
        ):
            names = " or ".join(map(name_of, self.variables))
            raise TypeError(
                f"{self.transform}: the value of {names} has another structure after a "
                f"step: {packing.treedef} instead of {self.packing.treedef}"
            )
        for number, (old, new) in enumerate(
            zip([*carry[0], *carry[1]], [*arrays, *values], strict=True)
        ):
            self._check_type(number, jax.typeof(old), jax.typeof(new))
        return arrays, values

    def check_structure(self, changes: Iterable[Any]) -> None:
        """Raises ValueError if there are nodes or Variables with another structure."""
        for obj in changes:
            raise ValueError(
                f"the body of {self.transform} changes the structure of "
                f"{name_of(obj)} (attributes, elements, or metadata), which must stay "
                "as it is in a loop: make the change before the loop"
            )

    def _filled(self, arrays: Sequence[Any]) -> Any:
        rest = iter(arrays)
        return self.treedef.unflatten(
            [next(rest) if kind_of(x) == DYNAMIC else x for x in self.leaves]
        )

    def _checked(self, value: Any) -> list[Any]:
        """The leaves of a value that must have the structure of the first one."""
        leaves, treedef = flatten(value)
        if treedef != self.treedef:
            raise ValueError(
                f"the body of {self.transform} must return a value of the structure "
                f"that it got, {self.treedef}, but it returned {treedef}"
            )
        for number, (old, new) in enumerate(zip(self.leaves, leaves, strict=True)):
            if kind_of(old) == DYNAMIC and kind_of(new) == DYNAMIC:
                continue
            if old is not new and Static(old) != Static(new):
                raise ValueError(
                    f"the body of {self.transform} must return the object that it got "
                    f"at {self._place(number)}, {name_of(old)}, but it returned "
                    f"{'another ' if type(old) is type(new) else ''}{name_of(new)}. "
                    "Change the object that it gets instead"
                )
        return leaves

    def _place(self, number: int) -> str:
        keys, _ = flatten_with_path(self.value)[number]
        return format_path(tuple(map(key_of, keys)), root="the carry")

    def _check_type(self, number: int, old: Any, new: Any) -> None:
        if old.shape == new.shape and (old.dtype == new.dtype or old.weak_type):
            return
        arrays = [n for n, x in enumerate(self.leaves) if kind_of(x) == DYNAMIC]
        if number < len(arrays):
            what = self._place(arrays[number])
        else:
            owners = [
                variable
                for variable in self.variables
                for _ in Packing([variable.raw_value]).arrays
            ]
            what = name_of(owners[number - len(arrays)])
        raise TypeError(
            f"{what} is {old.dtype}{list(old.shape)} before a step of "
            f"{self.transform} and {new.dtype}{list(new.shape)} after it, but must "
            "stay as it is: cast with astype, or start with the type that it gets"
        )


def _changes(visit: Visit) -> list[Any]:
    """Nodes and Variables around whose structure or metadata was changed."""
    parting = visit.part(None)
    return [*parting.changed, *(v for v, _ in parting.record.metadata)]


@compiled_at_top("nnx.while_loop")
def while_loop(
    cond_fun: Callable[[Any], Any], body_fun: Callable[[Any], Any], init_val: Any
) -> Any:
    """`while cond_fun(val): val = body_fun(val)`, compiled; returns the last `val`.

    The body may write whatever Variables it sees, passed or not, and `cond_fun` sees
    what was written.

    Args:
      cond_fun: given the value, whether to go on. It must write nothing.
      body_fun: given the value, the next one, of the same structure.
      init_val: any pytree of arrays and objects. Objects stay the same ones.

    Raises:
      ValueError: if a step changes a structure, or returns another object.
      TypeError: if a step changes a shape or dtype.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> total = nnx.Variable(jnp.array(1))
      >>> def double(total):
      ...     total *= 2
      ...     return total
      >>> nnx.while_loop(lambda total: total < 100, double, total) is total
      True
      >>> total.value.item()
      128
    """
    loop = Loop("nnx.while_loop", init_val)

    def cond(carry: Any) -> Any:
        with Visit("the condition of nnx.while_loop") as visit:
            result = value_of(cond_fun(loop.enter(visit, carry)))
            written = [v for v in visit.frame.written if id(v) not in visit.frame.made]
            for obj in [*written, *_changes(visit)]:
                raise ValueError(
                    f"the condition of nnx.while_loop changes {name_of(obj)}: change "
                    "it in the body instead"
                )
        return result

    def body(carry: Any) -> Any:
        with Visit("the body of nnx.while_loop") as visit:
            value = body_fun(loop.enter(visit, carry))
            after = loop.leave(visit, carry, value)
            loop.check_structure(_changes(visit))
        return after

    value, _ = loop.run(lambda carry: (jax.lax.while_loop(cond, body, carry), None))
    return value


def fori_loop(
    lower: Any,
    upper: Any,
    body_fun: Callable[[Any, Any], Any],
    init_val: Any,
    *,
    unroll: int | bool | None = None,
) -> Any:
    """`for i in range(lower, upper): val = body_fun(i, val)`; returns the last `val`.

    Args:
      lower: the first index.
      upper: the end, which is not reached.
      body_fun: given index and value, the next value; see `while_loop`.
      init_val: any pytree of arrays and objects. Objects stay the same ones.
      unroll: see `jax.lax.fori_loop`.

    Raises:
      ValueError: if a step changes a structure, or returns another object.
      TypeError: if a step changes a shape or dtype.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> def count(i, carry):
      ...     total, calls = carry
      ...     calls += 1
      ...     return total + i, calls
      >>> total, calls = nnx.fori_loop(0, 5, count, (0, nnx.Variable(jnp.array(0))))
      >>> total.item(), calls.value.item()
      (10, 5)
    """
    run = _fori_loop if unroll is not None else _compiled_fori_loop
    return run(lower, upper, body_fun, init_val, unroll)  # to unroll, bounds are known


def _fori_loop(
    lower: Any, upper: Any, body_fun: Callable[..., Any], init_val: Any, unroll: Any
) -> Any:
    loop = Loop("nnx.fori_loop", init_val)

    def body(index: Any, carry: Any) -> Any:
        with Visit("the body of nnx.fori_loop") as visit:
            value = body_fun(index, loop.enter(visit, carry))
            after = loop.leave(visit, carry, value)
            loop.check_structure(_changes(visit))
        return after

    bounds = value_of(lower), value_of(upper)
    value, _ = loop.run(
        lambda carry: (jax.lax.fori_loop(*bounds, body, carry, unroll=unroll), None)
    )
    return value


_compiled_fori_loop = compiled_at_top("nnx.fori_loop")(_fori_loop)


def scan(
    f: Any = MISSING,
    *,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    _split_transpose: bool = False,
    in_axes: Any = (Carry, 0),
    out_axes: Any = (Carry, 0),
    transform_metadata: Names = types.MappingProxyType({}),
    split_rngs: Any = False,
) -> Any:
    """A function that loops over slices of its arguments, compiled: `jax.lax.scan`.

    Of each argument and result, arrays and Variables are sliced and stacked (an axis),
    handed from step to step (`Carry`), or the same in all steps (None, arguments only).
    What the function merely sees is carried if it is written. A Variable of a broadcast
    argument cannot be written.

    Args:
      f: a function of carry and slices that returns carry and slices; a method or
        Module. Without it, returns a decorator.
      length: the number of steps, needed if nothing is sliced.
      reverse: whether to go from the last slice to the first.
      unroll: see `jax.lax.scan`, as is `_split_transpose`.
      in_axes: for each argument an axis, None, `Carry` (for one at most), a
        `StateAxes` of these, or a container. `Carry` alone: there is one argument,
        and the result is the next carry.
      out_axes: likewise for the result, without None.
      transform_metadata: see `vmap`, as is `split_rngs`.
      split_rngs: which streams give each step keys of its own.

    Raises:
      ValueError: if `Carry` is on one side only, if axes do not fit, if a broadcast
        Variable is written, or if a step changes what must stay.
      TypeError: if a step changes a shape or dtype.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> make = nnx.vmap(lambda rngs: nnx.Linear(3, 3, rngs=rngs), split_rngs=True,
      ...                 in_axes=None, axis_size=5)
      >>> layers = make(nnx.Rngs(0))
      >>> @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
      ... def forward(x, layer):
      ...     return nnx.relu(layer(x))
      >>> forward(jnp.ones(3), layers).shape
      (3,)
    """
    given = {k: v for k, v in locals().items() if k != "f"}
    if f is MISSING:
        return lambda f: scan(f, **given)
    place_in = _place_of_carry("in_axes", in_axes)
    place_out = _place_of_carry("out_axes", out_axes)
    if (place_in is None) != (place_out is None):
        there, missing = ("in_axes", "out_axes")[:: 1 if place_out is None else -1]
        raise ValueError(
            f"nnx.scan has a Carry in {there} but none in {missing}: what is carried "
            "goes in and comes out"
        )
    if None in labels_in(out_axes):
        raise ValueError(
            "out_axes of nnx.scan cannot be None: a result is stacked (an axis) or "
            "carried (nnx.Carry)"
        )
    name = getattr(f, "__name__", type(f).__name__)

    def scanned(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = bound(f, args, kwargs)
        prefixes = prefixes_of("nnx.scan", "in_axes", in_axes, args)
        prefixes.update(dict.fromkeys(kwargs, 0))
        entry = Entry("nnx.scan", args, kwargs, prefixes, "in_axes")
        steps = entry.size(length)
        if steps is None:
            raise ValueError("nnx.scan needs a length, since no argument is sliced")
        streams = Streams(split_rngs, entry, f, steps)
        loop = Loop("nnx.scan", args[place_in] if place_in is not None else None)
        exits: list[Exit] = []

        def body(carry: Any, slices: Any) -> Any:
            xs, keys = slices
            with Visit(f"nnx.scan of '{name}'") as visit:
                inner_args, inner_kwargs = entry.show(visit, entry.with_slices(xs))
                inner_args = list(inner_args)
                value = loop.enter(visit, carry)
                if place_in is not None:
                    inner_args[place_in] = value
                streams.show(visit, keys)
                entry.shrink(visit, transform_metadata)
                result = f(*inner_args, **inner_kwargs)
                streams.hide(visit)
                value, outputs, prefix = _parted(result, out_axes, place_out)
                entry.check_broadcast(visit.frame.written)
                after = loop.leave(visit, carry, value, entry.sliced)
                for variable in loop.variables:
                    visit.frame.written.pop(variable, None)
                exits.append(
                    Exit(entry, visit, outputs, prefix, "out_axes", transform_metadata)
                )
                loop.check_structure(entry.not_sliced(exits[-1]))
            return after, exits[-1].arrays

        def attempt(carry: Any) -> Any:
            return jax.lax.scan(
                body,
                carry,
                (entry.slices(), streams.keys),
                length=steps,
                reverse=reverse,
                unroll=unroll,
                _split_transpose=_split_transpose,
            )

        value, stacked = loop.run(attempt)
        outputs = exits[-1].moved(stacked)
        if place_out is None:
            return outputs
        if out_axes is Carry:
            return value
        return (*outputs[:place_out], value, *outputs[place_out:])

    functools.update_wrapper(scanned, f, updated=())
    compiled = compiled_at_top("nnx.scan", of=f)(scanned)

    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled(*constants(args, in_axes), **kwargs)

    return functools.update_wrapper(call, f, updated=())


def _place_of_carry(kind: str, prefix: Any) -> int | None:
    """Which argument or result is carried; 0 if it is the only one."""
    if prefix is Carry:
        return 0
    parts = prefix if isinstance(prefix, (tuple, list)) else [prefix]
    places = [place for place, part in enumerate(parts) if part is Carry]
    inside = [p for p in parts if p is not Carry and not isinstance(p, StateLabels)]
    if len(places) > 1 or any(Carry in labels_in(part) for part in inside):
        raise ValueError(
            f"{kind} of nnx.scan may have one Carry, as the label of a whole argument "
            f"or result, or in a StateAxes; got {prefix!r}. To carry several things, "
            "put them in one tuple"
        )
    for label in labels_in(prefix):
        if label is not None and label is not Carry and type(label) is not int:
            raise TypeError(
                f"{kind} of nnx.scan must be an int, None, nnx.Carry, a StateAxes, or "
                f"a container of these, not {label!r}"
            )
    return places[0] if places else None


def _parted(result: Any, out_axes: Any, place: int | None) -> tuple[Any, Any, Any]:
    """The carry, the other results, and their labels."""
    if place is None:
        return None, result, out_axes
    if out_axes is Carry:
        return result, None, 0
    if not isinstance(result, tuple) or len(result) != len(out_axes):
        shown = f"{len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise ValueError(
            f"out_axes of nnx.scan has {len(out_axes)} entries, so the function must "
            f"return a tuple of as many, not {shown}"
        )
    rest = (*result[:place], *result[place + 1 :])
    return result[place], rest, (*out_axes[:place], *out_axes[place + 1 :])
