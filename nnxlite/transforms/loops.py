"""`while_loop`, `fori_loop` and `scan`: Python loops that JAX compiles.

Structure stays as it is in a loop, since it is settled before the number of steps is
known; only what a scan has sliced may gain and lose parts, which are stacked. What a
loop carries, besides the value that it is given, is found while it is traced: see
`carries`.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

import jax

from ..core.arrays import is_array
from ..core.errors import name_of, title_of
from ..core.operators import value_of
from ..core.statics import Static
from ..core.variable import MISSING
from .axes import NO_NAMES, Names
from .boundary import Visit
from .carries import Loop
from .compilation import compiled_at_top
from .labels import METADATA, Entry, Exit, constants
from .leaves import given
from .mapping import over_slices
from .prefixes import Carry, StateLabels, label_of_keyword, labels_in, prefixes_of
from .slice_streams import SliceStreams

P = ParamSpec("P")
R = TypeVar("R")


def _changes(visit: Visit) -> list[tuple[Any, str]]:
    """Nodes and Variables around whose structure or metadata was changed, and how."""
    nodes, plain = visit.changes()
    return [
        *((change.owner, str(change)) for change in (*nodes, *plain)),
        *((v, METADATA) for v in visit.with_new_metadata()),
    ]


def _step(loop: Loop, body: Callable[[Any], Any], carry: Any) -> Any:
    """The carry after a step, given that before it."""
    with Visit(f"the body of {loop.transform}", plain=loop.plain) as visit:
        value = body(loop.enter(visit, carry))
        after = loop.leave(visit, carry, value)
        loop.check_structure(_changes(visit))
    return after


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
        with Visit("the condition of nnx.while_loop", plain=loop.plain) as visit:
            result = value_of(cond_fun(loop.enter(visit, carry)))
            written = [v for v in visit.frame.written if id(v) not in visit.frame.made]
            for obj in [*written, *(obj for obj, _ in _changes(visit))]:
                raise ValueError(
                    f"the condition of nnx.while_loop changes {name_of(obj)}: change "
                    "it in the body instead"
                )
        return result

    body = functools.partial(_step, loop, body_fun)
    finish, _ = loop.run(lambda carry: (jax.lax.while_loop(cond, body, carry), None))
    return finish()


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
    if not callable(body_fun):
        raise TypeError(
            "nnx.fori_loop(lower, upper, body_fun, init_val) needs a function of index "
            f"and value for body_fun, not a {type(body_fun).__name__}"
        )
    steps = value_of(lower), value_of(upper), unroll
    if unroll is not None:  # to unroll, the number of steps must be known
        steps = constants(steps, None)
    return _fori_loop(steps, body_fun, init_val)


@compiled_at_top("nnx.fori_loop")
def _fori_loop(
    steps: tuple[Any, ...], body_fun: Callable[..., Any], init_val: Any
) -> Any:
    lower, upper, unroll = given(steps)
    loop = Loop("nnx.fori_loop", init_val)

    def body(index: Any, carry: Any) -> Any:
        return _step(loop, functools.partial(body_fun, index), carry)

    def attempt(carry: Any) -> tuple[Any, None]:
        return jax.lax.fori_loop(lower, upper, body, carry, unroll=unroll), None

    finish, _ = loop.run(attempt)
    return finish()


@overload
def scan(f: Callable[P, R], /, **options: Any) -> Callable[P, R]: ...
@overload
def scan(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def scan(  # pyright: ignore[reportInconsistentOverload]
    f: Any = MISSING,
    *,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    _split_transpose: bool = False,
    in_axes: Any = (Carry, 0),
    out_axes: Any = (Carry, 0),
    transform_metadata: Names = NO_NAMES,
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
    options = {k: v for k, v in locals().items() if k != "f"}
    if f is MISSING:
        return lambda f: scan(f, **options)
    _places_of_carry(in_axes, out_axes)  # a mistake is shown where it is made
    return over_slices(scan, _scanned, f, options)


@compiled_at_top("nnx.scan")
def _scanned(static: Static, f: Any, args: Any, kwargs: Any) -> Any:
    options = dict(static.value)
    in_axes, out_axes = options.pop("in_axes"), options.pop("out_axes")
    names, split_rngs = options.pop("transform_metadata"), options.pop("split_rngs")
    place_in, place_out = _places_of_carry(in_axes, out_axes)
    title = title_of("nnx.scan", f)
    prefixes = prefixes_of("nnx.scan", "in_axes", in_axes, args)
    prefixes.update(dict.fromkeys(kwargs, label_of_keyword(in_axes)))
    entry = Entry("nnx.scan", args, kwargs, prefixes, "in_axes")
    length = options["length"] = entry.size(options["length"])
    if length is None:
        raise ValueError("nnx.scan needs a length, since no argument is sliced")
    loop = Loop("nnx.scan", args[place_in] if place_in is not None else None)
    streams = SliceStreams(split_rngs, entry, f)
    exits: list[Exit] = []

    def body(carry: Any, slices: Any) -> Any:
        xs, keys = slices
        with Visit(title, plain=entry.plain) as visit:
            inner_args, inner_kwargs = entry.show(visit, entry.with_slices(xs))
            inner_args = list(inner_args)
            value = loop.enter(visit, carry)
            if place_in is not None:
                inner_args[place_in] = value
            streams.show(visit, keys)
            entry.shrink(visit, names)
            result = f(*inner_args, **inner_kwargs)
            streams.hide(visit)
            value, outputs, prefix = _parted(result, out_axes, place_out)
            entry.check_broadcast(visit.frame.written)
            after = loop.leave(visit, carry, value, entry)
            for variable in loop.variables:
                visit.frame.written.pop(variable, None)
            exits.append(Exit(entry, visit, outputs, prefix, "out_axes", names))
            loop.check_structure(entry.not_sliced(exits[-1]))
        return after, exits[-1].arrays

    with streams.split(length) as keys:
        slices = entry.slices(), keys
        finish, stacked = loop.run(
            lambda carry: jax.lax.scan(body, carry, slices, **options)
        )
        stacked = exits[-1].moved(stacked)
        value = finish()
        outputs = exits[-1].applied_to(stacked)
    if place_out is None:
        return outputs
    if out_axes is Carry:
        return value
    return (*outputs[:place_out], value, *outputs[place_out:])


def _places_of_carry(in_axes: Any, out_axes: Any) -> tuple[int | None, int | None]:
    """Which argument, and which result, is carried.

    Raises:
      ValueError: if it is one of them only, or if a result is broadcast.
    """
    places = _place_of_carry("in_axes", in_axes), _place_of_carry("out_axes", out_axes)
    if (places[0] is None) != (places[1] is None):
        there, missing = ("in_axes", "out_axes")[:: 1 if places[1] is None else -1]
        raise ValueError(
            f"nnx.scan has a Carry in {there} but none in {missing}: what is carried "
            "goes in and comes out"
        )
    if None in labels_in(out_axes):
        raise ValueError(
            "out_axes of nnx.scan cannot be None: a result is stacked (an axis) or "
            "carried (nnx.Carry)"
        )
    return places


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
        shown = "an array" if is_array(result) else f"a {type(result).__name__}"
        shown = f"one of {len(result)}" if isinstance(result, tuple) else shown
        raise ValueError(
            f"out_axes of nnx.scan has {len(out_axes)} entries, so the function must "
            f"return a tuple of as many, not {shown}"
        )
    rest = (*result[:place], *result[place + 1 :])
    return result[place], rest, (*out_axes[:place], *out_axes[place + 1 :])
