"""Transforms beside the Python statements that they stand for.

Both halves of a `Statement` wrap a function that is called as `f(*args, x=x, **named)`.
Where a transform has to refuse what the function does, since it cannot be known before
a choice is made or the number of steps is known, the plain half raises `Forbidden`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import nnxlite as nnx

from .machine import Machine
from .programs import (
    OBJECTS,
    Trainer,
    is_array,
    is_dynamic,
    is_numeric,
    items_of,
    reachable,
)

Function = Callable[..., Any]
STEPS = 2


class Forbidden(Exception):
    """A plain statement did what its transform refuses."""


class Watch:
    """What some objects are like, to see whether a function leaves it so.

    A bare array may take the place of another one of the same type: that is a value.

    Attributes:
      is_unsure: whether something is equal but not the same, or a number has become an
        array of another type, or is marked as data: a transform may refuse that.
    """

    def __init__(self, roots: Sequence[Any]):
        self._before = [(obj, _parts(obj)) for obj in reachable(roots)]
        self.is_unsure = False

    def check(self) -> None:
        """Raises Forbidden if a structure, or the type of a value, has changed."""
        self.is_unsure |= any(
            _is_marked_number(obj, name)
            for obj, _ in self._before
            for name in getattr(obj, "_nnx_marks", ())
        )
        for obj, before in self._before:
            now = _parts(obj)
            if before.keys() != now.keys():
                raise Forbidden(obj, list(before), list(now))
            for key in before:
                self._compare(before[key], now[key])

    def _compare(self, old: Any, new: Any) -> None:
        if old is new:
            return
        if is_array(old) and is_array(new):
            old, new = _type(old), _type(new)
        if isinstance(old, _Type) and isinstance(new, _Type):
            if old.structure != new.structure or len(old.types) != len(new.types):
                raise Forbidden(old, new)
            for one, other in zip(old.types, new.types, strict=True):
                if one[:2] != other[:2] and not (one[0] == other[0] == () and one[2]):
                    raise Forbidden(old, new)
                self.is_unsure |= one != other
            return
        if {is_array(old), is_array(new)} == {True, False}:
            if not all(is_dynamic(x) and jnp.shape(x) == () for x in (old, new)):
                raise Forbidden(old, new)
            self.is_unsure = True  # a number that is marked as data, perhaps
            return
        if isinstance(old, (*OBJECTS, list)):
            raise Forbidden(old, new)
        if isinstance(old, tuple) and type(old) is type(new) and len(old) == len(new):
            self.is_unsure = True
            for one, other in zip(old, new, strict=True):
                self._compare(one, other)
            return
        if type(old) is not type(new) or old != new:
            raise Forbidden(old, new)
        self.is_unsure = True


def _is_marked_number(obj: Any, name: str) -> bool:
    """Inside transforms it is an array, so that to set it again is a change."""
    value = vars(obj).get(name)
    return is_dynamic(value) and not is_array(value)


class _Type(NamedTuple):
    """The type of a value: per array shape, dtype, whether it is a number."""

    structure: Any
    types: list[tuple[Any, Any, bool]]


def _parts(obj: Any) -> dict[Any, Any]:
    if not isinstance(obj, nnx.Variable):
        marks = dict(getattr(obj, "_nnx_marks", {}))
        return {**dict(items_of(obj)), **{("mark", k): v for k, v in marks.items()}}
    return {"value": _type(obj.raw_value), **obj.get_metadata()}


def _type(value: Any) -> _Type:
    leaves, structure = jax.tree.flatten(value)
    statics = [None if is_dynamic(x) else x for x in leaves]
    types = [
        (jnp.shape(x), jnp.result_type(x), not is_array(x))
        for x in leaves
        if is_dynamic(x)
    ]
    return _Type((structure, statics), types)


class Statement(NamedTuple):
    """A transform and what it stands for.

    Attributes:
      transformed: given a function, the transformed one.
      plain: given a function and a watch, the plain statement.
      lanes: "" or how the calls of a statement share objects, whose results are
        stacked: "steps" of a loop have the same ones, "copies" are the same each time.
      refusing: the plain half decides only what is refused; nothing happens.
      captures: the objects are captured, among which no plain objects can be.
      chooses: by a value, so that what it does under vmap seems to depend on the slice.
    """

    transformed: Callable[[Function], Function]
    plain: Callable[[Function, Watch], Function] = lambda f, watch: f
    lanes: str = ""
    refusing: bool = False
    captures: bool = False
    chooses: bool = False


def number(result: Any) -> Any:
    """The sum of all numbers in a result and its objects."""
    machine = Machine([result], 0.0)
    for variable in machine.objects(nnx.Variable):
        machine.add(variable.value)
    leaves = jax.tree.leaves(result, is_leaf=lambda x: isinstance(x, OBJECTS))
    for leaf in leaves:
        if not isinstance(leaf, OBJECTS) and is_numeric(leaf):
            machine.add(leaf)
    return machine.total


# Plain halves.


def one_branch(f: Function, watch: Watch) -> Function:
    def run(*args: Any, x: Any, **named: Any) -> Any:
        total = number(f(*args, x=x, **named))
        watch.check()
        return total

    return run


def loop(f: Function, watch: Watch) -> Function:
    def run(*args: Any, x: Any, **named: Any) -> Any:
        total = jnp.float32(0)
        for i in range(STEPS):
            total += number(f(*args, x=jnp.asarray(x) + i, **named))
            watch.check()
        return total

    return run


def step(f: Function, watch: Watch) -> Function:
    def run(*args: Any, x: Any, **named: Any) -> Any:
        result = f(*args, x=x, **named)
        watch.check()
        return result

    return run


REFUSING = (one_branch, loop, step)


# Transformed halves.


def remat(f: Function) -> Function:
    return nnx.jit(nnx.remat(f))


def grad(f: Function) -> Function:
    """With respect to x."""

    def run(*args: Any, x: Any, **named: Any) -> Any:
        def loss(x: Any, *args: Any) -> Any:
            return jnp.sum(x), f(*args, x=x, **named)

        return nnx.grad(loss, has_aux=True)(jnp.asarray(x, jnp.float32), *args)[1]

    return run


def grad_of_objects(f: Function) -> Function:
    """With respect to Variables; States are captured, since they hold bare ints too."""

    def is_float(path: Any, leaf: Any) -> bool:
        value = leaf.raw_value if isinstance(leaf, nnx.Variable) else None
        return is_array(value) and jnp.issubdtype(value.dtype, jnp.floating)

    def run(*args: Any, x: Any, **named: Any) -> Any:
        states = {n: arg for n, arg in enumerate(args) if isinstance(arg, nnx.State)}
        others = [None if n in states else arg for n, arg in enumerate(args)]

        def loss(objects: Any, x: Any) -> Any:
            others, named = objects
            args = [states.get(n, other) for n, other in enumerate(others)]
            return jnp.sum(x), f(*args, x=x, **named)

        argnums = nnx.DiffState(0, is_float)
        x = jnp.asarray(x, jnp.float32)
        return nnx.grad(loss, argnums=argnums, has_aux=True)((others, named), x)[1]

    return run


def vjp(f: Function) -> Function:
    """Objects are captured, since no array in a tuple can be differentiated."""

    def run(*args: Any, x: Any, **named: Any) -> Any:
        def both(x: Any, plain_objects: Any) -> Any:
            return jnp.sum(x), f(*args, x=x, **named)

        x = jnp.asarray(x, jnp.float32)
        watched = [obj for obj in reachable([args, named]) if isinstance(obj, Trainer)]
        return nnx.vjp(both, x, watched, has_aux=True)[2]

    return run


def cond(f: Function) -> Function:
    def run(*args: Any, x: Any, **named: Any) -> Any:
        def branch(x: Any, *args: Any) -> Any:
            return f(*args, x=x, **named)

        return nnx.cond(jnp.sum(x) > 0, branch, branch, x, *args)

    return run


def switch(f: Function) -> Function:
    def run(*args: Any, x: Any, **named: Any) -> Any:
        def branch(x: Any, args: Any, named: Any) -> Any:
            return f(*args, x=x, **named)

        index = jnp.asarray(x, jnp.int32).sum()
        return nnx.switch(index, [branch] * 3, x, args, named)

    return run


def branch(is_taken: bool, f: Function) -> Function:
    """Only one of two branches does something."""

    def run(*args: Any, x: Any, **named: Any) -> Any:
        def does(x: Any, *args: Any) -> Any:
            return number(f(*args, x=x, **named))

        def idle(x: Any, *args: Any) -> Any:
            return jnp.float32(0)

        return nnx.cond((jnp.sum(x) > 0) == is_taken, does, idle, x, *args)

    return run


def one_case(f: Function) -> Function:
    def run(*args: Any, x: Any, **named: Any) -> Any:
        def does(x: Any) -> Any:
            return number(f(*args, x=x, **named))

        def idle(x: Any) -> Any:
            return jnp.float32(0)

        return nnx.switch(jnp.sum(jnp.asarray(x) > 0), [idle, does, does], x)

    return run


def fori_loop(f: Function) -> Function:
    """Objects are carried."""

    def run(*args: Any, x: Any, **named: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            total, x, args, named = carry
            return total + number(f(*args, x=x + i, **named)), x, args, named

        return nnx.fori_loop(0, STEPS, body, (jnp.float32(0), x, args, named))[0]

    return run


def while_loop(f: Function) -> Function:
    """Objects are captured."""

    def run(*args: Any, x: Any, **named: Any) -> Any:
        def is_unfinished(carry: Any) -> Any:
            return carry[0] < STEPS

        def body(carry: Any) -> Any:
            i, x, total = carry
            return i + 1, x, total + number(f(*args, x=x + i, **named))

        return nnx.while_loop(is_unfinished, body, (0, x, jnp.float32(0)))[2]

    return run


def slices(x: Any) -> Any:
    return jnp.stack([jnp.asarray(x) + i for i in range(STEPS)])


def scan(f: Function, give: Function = lambda result: result) -> Function:
    def run(*args: Any, x: Any, **named: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            args, named = carry
            return carry, give(f(*args, x=x, **named))

        return nnx.scan(body)((args, named), slices(x))[1]

    return run


def scan_captured(f: Function) -> Function:
    def run(*args: Any, x: Any, **named: Any) -> Any:
        def body(x: Any) -> Any:
            return f(*args, x=x, **named)

        return nnx.scan(body, in_axes=0, out_axes=0)(slices(x))

    return run


def scan_total(f: Function) -> Function:
    run = scan(f, number)
    return lambda *args, x, **named: jnp.sum(run(*args, x=x, **named))


def vmap(f: Function) -> Function:
    """Objects are broadcast."""

    def run(*args: Any, x: Any, **named: Any) -> Any:
        def body(args: Any, named: Any, x: Any) -> Any:
            return f(*args, x=x, **named)

        return nnx.vmap(body, in_axes=(None, None, 0))(args, named, slices(x))

    return run


def vmap_captured(f: Function) -> Function:
    def run(*args: Any, x: Any, **named: Any) -> Any:
        return nnx.vmap(lambda x: f(*args, x=x, **named))(slices(x))

    return run


def vmap_constant(f: Function) -> Function:
    """No slice gets in."""

    def run(*args: Any, x: Any, **named: Any) -> Any:
        def body(args: Any, named: Any) -> Any:
            return f(*args, x=x, **named)

        mapped = nnx.vmap(body, in_axes=None, out_axes=None, axis_size=STEPS)
        return mapped(args, named)

    return run


NESTED = {
    "jit": Statement(nnx.jit),
    "remat": Statement(remat),
    "grad": Statement(grad),
    "grad_of_objects": Statement(grad_of_objects),
    "vjp": Statement(vjp),
    "cond": Statement(cond, chooses=True),
    "switch": Statement(switch, chooses=True),
    "vmap_constant": Statement(vmap_constant),
    "one_branch": Statement(functools.partial(branch, True), one_branch, chooses=True),
    "one_case": Statement(one_case, one_branch, captures=True, chooses=True),
    "fori_loop": Statement(fori_loop, loop),
    "while_loop": Statement(while_loop, loop, captures=True),
    "scan_total": Statement(scan_total, loop),
}
STATEMENTS = {
    **NESTED,
    "other_branch": Statement(
        functools.partial(branch, False), one_branch, refusing=True
    ),
    "scan": Statement(scan, step, "steps"),
    "scan_captured": Statement(scan_captured, step, "steps", captures=True),
    "vmap": Statement(vmap, lanes="copies"),
    "vmap_captured": Statement(vmap_captured, lanes="copies", captures=True),
}
