"""All transforms x all effects: a transform is the Python statement that it stands for.

An *effect* is what a function may do to objects (see `effects`). A *row* is a
transform, and the way in which objects get into it, beside the plain statement: a
call, an `if`, a loop. Each cell does both to equal graphs; values, structure, sharing
and identity must agree. A cell in `REFUSED` must raise instead, and leave everything as
it was. Every cell runs twice, on new graphs: the first time it is traced, the second
time the compiled program is found.

Objects `a` and `b` are arguments (or captured, in rows that say so); `c` is always
captured. In some rows there is a call for each of `XS`, its *lanes*: in a loop one
after the other, under `vmap` and its like at once. Lanes share `a` and `b`, have copies
of them of which nothing may become of one what does not of the others, or slices.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

import nnxlite as nnx

from ..properties.comparison import Correspondence, Snapshot
from ..properties.programs import Trainer, reachable
from .effects import EFFECTS, Halt, Net, those, world

Function = Callable[..., Any]
ONE = jnp.array([1.0, 2.0])
XS = jnp.arange(1.0, 4.0)[:, None] * ONE
MESH = jax.make_mesh((1,), ("data",))
P = PartitionSpec
here: list[Any] = []  # a, b, c of the running cell, for functions that capture them


def captured(f: Function) -> Function:
    """A function of x alone."""
    return lambda x: f(here[0], here[1], x)


# Statements: given a function of (a, b, x), functions of (a, b, XS).


def call(f: Function) -> Function:
    return lambda a, b, xs: f(a, b, xs[0])


def captured_call(f: Function) -> Function:
    return lambda a, b, xs: f(xs[0])


def call_and_gradient(f: Function) -> Function:
    """The gradient is that of `sum(a.w * x)`."""
    return lambda a, b, xs: (f(a, b, xs[0]), xs[0])


def no_call(f: Function) -> Function:
    return lambda a, b, xs: None


def idle(a: Net, b: Net, x: Any) -> Any:
    return x


def abstract_call(f: Function) -> Function:
    """What the call on another graph would return, without numbers."""

    def abstract(value: Any) -> Any:
        return jax.ShapeDtypeStruct(value.shape, value.dtype)

    def run(a: Net, b: Net, xs: Any) -> Any:
        mine, here[:] = (
            here[:],
            world(0, "plain_object" if isinstance(here[1], Trainer) else ""),
        )
        result = f(*here[:2], xs[0])
        here[:] = mine
        for variable in variables([result]):
            variable.raw_value = abstract(variable)
        for obj in reachable([result]):
            if isinstance(obj, nnx.Module) and hasattr(obj, "array"):
                obj.array = abstract(obj.array)
        return result if isinstance(result, nnx.Module) else abstract(result)

    return run


def step(f: Function, carry: Any, x: Any) -> Any:
    """A step of a loop; a Module that is returned takes the place of `a`."""
    a, b, total = carry
    result = f(a, b, x)
    if isinstance(result, nnx.Module):
        return result, b, total
    return a, b, total + result


def captured_step(f: Function, total: Any, x: Any) -> Any:
    result = f(*here[:2], x)
    return result if isinstance(result, nnx.Module) else total + result


def loop(f: Function) -> Function:
    return lambda a, b, xs: functools.reduce(
        functools.partial(step, f), xs, (a, b, jnp.zeros(2))
    )


def captured_loop(f: Function) -> Function:
    return lambda a, b, xs: loop(f)(a, b, xs)[2]


# Transforms: likewise.


def grad(f: Function, transform: Function = lambda f: f) -> Function:
    """`grad`, of a loss that does everything under another transform."""
    inner = transform(lambda a, b, x: (a.w * x, f(a, b, x)))

    def loss(a: Net, b: Net, x: Any) -> Any:
        y, aux = inner(a, b, x)
        return jnp.sum(y), aux

    def run(a: Net, b: Net, xs: Any) -> Any:
        gradient, aux = nnx.grad(loss, has_aux=True)(a, b, xs[0])
        return aux, gradient.w.value

    return run


def value_and_grad(f: Function) -> Function:
    """With respect to a number; objects are captured."""
    loss = nnx.value_and_grad(lambda s, x: (s * s, captured(f)(x)), has_aux=True)

    def run(a: Net, b: Net, xs: Any) -> Any:
        (_, aux), gradient = loss(0.5, xs[0])
        return aux, gradient * xs[0]

    return run


def vjp(f: Function) -> Function:
    def run(a: Net, b: Net, xs: Any) -> Any:
        both = lambda a, b, x: (a.w * x, f(a, b, x))  # noqa: E731
        _, pull_back, aux = nnx.vjp(both, a, b, xs[0], has_aux=True)
        return aux, pull_back(jnp.ones(2))[0].w.value

    return run


def jvp(f: Function) -> Function:
    def run(a: Net, b: Net, xs: Any) -> Any:
        both = lambda a, b, x: (a.w * x, f(a, b, x))  # noqa: E731
        tangents = ({"w": jnp.ones(2)}, {}, jnp.zeros(2))
        _, tangent, aux = nnx.jvp(both, (a, b, xs[0]), tangents, has_aux=True)
        return aux, tangent

    return run


def custom_vjp(f: Function) -> Any:
    """With the rule of `a.w * x`, the first part of a result that has two."""
    function = nnx.custom_vjp(f)

    def forward(a: Net, b: Net, x: Any) -> Any:
        return f(a, b, x), x

    def backward(x: Any, cotangent: Any) -> Any:
        return {"w": cotangent[0] * x}, {}, jnp.zeros(2)

    function.defvjp(forward, backward)
    return function


def fori_loop(f: Function) -> Function:
    def body(i: Any, carry: Any) -> Any:
        return step(f, carry, XS[i])

    return lambda a, b, xs: nnx.fori_loop(0, len(XS), body, (a, b, jnp.zeros(2)))


def fori_loop_captured(f: Function) -> Function:
    def body(i: Any, total: Any) -> Any:
        return captured_step(f, total, (i + 1) * jnp.array([1, 2]))

    return lambda a, b, xs: nnx.fori_loop(0, len(XS), body, jnp.zeros(2))


def while_loop(step: Function, start: Function) -> Function:
    def body(carry: Any) -> Any:
        return carry[0] + 1, step(carry[1], (carry[0] + 1.0) * jnp.array([1, 2]))

    def is_unfinished(carry: Any) -> Any:
        return carry[0] < len(XS)

    return lambda a, b, xs: nnx.while_loop(is_unfinished, body, (0, start(a, b)))[1]


def scan_carry(f: Function) -> Function:
    scan = nnx.scan(lambda carry, x: (carry, f(*carry, x)))
    return lambda a, b, xs: scan((a, b), xs)[1]


def shard_map(f: Function, *specs: Any) -> Function:
    return nnx.shard_map(f, mesh=MESH, in_specs=(P(), P(), *specs), out_specs=specs[0])


class Row(NamedTuple):
    """A transform and its plain statement.

    Attributes:
      transformed: makes the transformed function.
      plain: makes the plain one, or says how the lanes share objects: "steps" of a loop
        have the same; under vmap each has "copies", or "slices" of a and b; "sliced
        steps" have slices and the same c. "one": there is one lane.
    """

    transformed: Callable[[Function], Function]
    plain: Callable[[Function], Function] | str = call


def vmap(f: Function, in_axes: Any = (None, None, 0)) -> Function:
    return nnx.vmap(f, in_axes=in_axes)


ROWS = {
    "jit": Row(lambda f: call(nnx.jit(f))),
    "jit_captured": Row(lambda f: captured_call(nnx.jit(captured(f)))),
    "jit_donate": Row(lambda f: call(nnx.jit(f, donate="state"))),
    "grad": Row(grad, call_and_gradient),
    "value_and_grad_captured": Row(value_and_grad, call_and_gradient),
    "vjp": Row(vjp, call_and_gradient),
    "jvp": Row(jvp, call_and_gradient),
    "remat": Row(lambda f: call(nnx.remat(f))),
    "remat_in_grad": Row(lambda f: grad(f, nnx.remat), call_and_gradient),
    "custom_vjp": Row(lambda f: call(custom_vjp(f))),
    "custom_vjp_in_grad": Row(lambda f: grad(f, custom_vjp), call_and_gradient),
    "checkify": Row(lambda f: lambda *args: call(nnx.checkify(f))(*args)[1]),
    "eval_shape": Row(
        lambda f: call(functools.partial(nnx.eval_shape, f)), abstract_call
    ),
    "make_jaxpr": Row(
        lambda f: lambda *args: [call(nnx.make_jaxpr(f))(*args)].clear(), no_call
    ),
    "cond": Row(lambda f: lambda a, b, xs: nnx.cond(xs[0, 0] > 0, f, f, a, b, xs[0])),
    "cond_captured": Row(
        lambda f: captured_call(
            functools.partial(nnx.cond, False, captured(f), captured(f))
        )
    ),
    "cond_one_branch": Row(lambda f: call(functools.partial(nnx.cond, True, f, idle))),
    "cond_other_branch": Row(
        lambda f: call(functools.partial(nnx.cond, True, idle, f)),
        lambda f: call(idle),
    ),
    "switch": Row(lambda f: call(functools.partial(nnx.switch, 1, [f, f, f]))),
    "switch_one_branch": Row(
        lambda f: call(functools.partial(nnx.switch, jnp.int32(2), [idle, idle, f]))
    ),
    "fori_loop": Row(fori_loop, loop),
    "fori_loop_captured": Row(fori_loop_captured, captured_loop),
    "while_loop": Row(
        lambda f: while_loop(
            functools.partial(step, f), lambda a, b: (a, b, jnp.zeros(2))
        ),
        loop,
    ),
    "while_loop_captured": Row(
        lambda f: while_loop(
            functools.partial(captured_step, f), lambda a, b: jnp.zeros(2)
        ),
        captured_loop,
    ),
    "scan_captured": Row(
        lambda f: lambda a, b, xs: nnx.scan(captured(f), in_axes=0, out_axes=0)(xs),
        "steps",
    ),
    "scan_carry": Row(scan_carry, "steps"),
    "scan_broadcast": Row(
        lambda f: nnx.scan(f, in_axes=(None, None, 0), out_axes=0), "steps"
    ),
    "scan_sliced": Row(lambda f: nnx.scan(f, in_axes=0, out_axes=0), "sliced steps"),
    "vmap_sliced": Row(lambda f: vmap(f, 0), "slices"),
    "vmap_broadcast": Row(vmap, "copies"),
    "vmap_captured": Row(lambda f: lambda a, b, xs: vmap(captured(f), 0)(xs), "copies"),
    "vmap_constant": Row(lambda f: vmap(lambda a, b, x: f(a, b, ONE)), "constant"),
    "pmap": Row(
        lambda f: lambda a, b, xs: nnx.pmap(f, in_axes=(None, None, 0))(a, b, xs[:1]),
        "one copy",
    ),
    "pmap_sliced": Row(
        lambda f: lambda a, b, xs: nnx.pmap(f)(a, b, xs[:1]), "one slice"
    ),
    "shard_map": Row(lambda f: call(shard_map(f, P()))),
    "shard_map_sharded": Row(lambda f: call(shard_map(f, P("data")))),
}


# Cells that must raise: for each row effects, the error, and what it says.

Refusal = tuple[frozenset[str], type[Exception], str]
LOOP = (ValueError, "changes the structure of .* make the change before the loop")
CARRY = (ValueError, "must return the object that it got .* Change the object that it")
BRANCH = (
    TypeError,
    "branches of nnx.* must do the same but for values, and .* differs",
)
SLICE = (ValueError, "differs from slice to slice .* Give it an axis")
NO_MODULE = (ValueError, "a Trainer, which is no Module, .* make Trainer an nnx.Module")
PLAIN = frozenset(["plain_object"])
BROADCAST = (ValueError, "in_axes says None .* with nnx.StateAxes")
BRANCHES = [(those("structure") | those("object"), *BRANCH)]
IN_CARRY = [
    (those("structure"), *LOOP),
    (those("object") - {"return_argument"}, *CARRY),
]
IN_LOOP = [(those("structure"), *LOOP), (those("object"), *CARRY)]
REFUSED: dict[str, list[Refusal]] = {
    "cond_one_branch": BRANCHES,
    "cond_other_branch": BRANCHES,
    "switch_one_branch": BRANCHES,
    "fori_loop": IN_CARRY,
    "fori_loop_captured": IN_LOOP,
    "while_loop": IN_CARRY,
    "while_loop_captured": IN_LOOP,
    "scan_captured": IN_LOOP[:1],
    "scan_carry": IN_LOOP[:1],
    "scan_broadcast": [(those("writes"), *BROADCAST), *IN_LOOP[:1]],
    "scan_sliced": [(those("structure", "captured"), *LOOP), (PLAIN, *NO_MODULE)],
    "vmap_sliced": [(those("varying", "captured"), *SLICE), (PLAIN, *NO_MODULE)],
    "pmap_sliced": [(those("varying", "captured"), *SLICE), (PLAIN, *NO_MODULE)],
    "pmap": [(those("varying"), *SLICE)],
    "vmap_broadcast": [(those("varying"), *SLICE)],
    "vmap_captured": [(those("varying"), *SLICE)],
    "shard_map_sharded": [(those("varying"), *SLICE)],
}


def refusal(row: str, name: str) -> tuple[type[Exception], str] | None:
    """What the cell must raise, or None."""
    if name == "exception":
        return Halt, ""
    for names, error, pattern in REFUSED.get(row, []):
        if name in names:
            return error, pattern
    return None


def variables(roots: Sequence[Any]) -> list[Any]:
    return [x for x in reachable(roots) if isinstance(x, nnx.Variable)]


class Cell:
    """A row and an effect."""

    def __init__(self, row: str, name: str):
        self.name = name
        self.plain = ROWS[row].plain
        self.refusal = refusal(row, name)
        self.f = lambda a, b, x: EFFECTS[name](a, b, here[2], x)
        self.transformed = ROWS[row].transformed(self.f)

    def check(self) -> None:
        """Runs the transformed function, and the plain one if it is allowed."""
        self.right = world(0, self.name)
        self.stacked: list[Any] = []
        if self.refusal is None and isinstance(self.plain, str):
            self.check_lanes(self.plain)
            return
        here[:] = left = world(0, self.name)
        if self.refusal is None:
            pair = Correspondence(reachable(left), reachable(self.right))
            expected = self.plain(self.f)(*left[:2], XS)
            pair.check(expected, self.call())
            return
        if "slice" in str(self.plain):
            count = 1 if "one" in str(self.plain) else len(XS)
            self.stack([world(number, self.name)[:2] for number in range(count)])
        before = Snapshot(reachable(self.right))
        error, pattern = self.refusal
        with pytest.raises(error, match=re.compile(pattern, re.DOTALL)):
            self.call()
        before.check()

    def call(self) -> Any:
        here[:] = self.right
        return self.transformed(*self.right[:2], XS)

    def check_lanes(self, sharing: str) -> None:
        """Compares with one plain call for each of `XS`."""
        xs = XS[:1] if "one" in sharing else XS
        lefts = [world(0, self.name) for _ in xs]
        if "slice" in sharing:
            for number, left in enumerate(lefts):
                left[:2] = world(number, self.name)[:2]
            self.stack([left[:2] for left in lefts])
        for left in lefts:
            if sharing == "steps":
                left[:] = lefts[0]
            if "steps" in sharing:
                left[2] = lefts[0][2]
        pairs = [
            Correspondence(reachable(left), reachable(self.right), n, self.stacked)
            for n, left in enumerate(lefts)
        ]
        expected = []
        for x, left in zip(xs, lefts, strict=True):
            here[:] = left
            expected.append(self.f(*left[:2], ONE if sharing == "constant" else x))
        result = self.call()
        for pair, value in zip(pairs, expected, strict=True):
            pair.check(value, result)

    def stack(self, lanes: Sequence[Any]) -> None:
        """Gives a and b of the right graph the values of all lanes."""
        self.stacked = reachable(self.right[:2])
        whole = variables(self.right[:2])
        for own, *parts in zip(whole, *map(variables, lanes), strict=True):
            own.raw_value = jnp.stack([part.raw_value for part in parts])
        for number, net in enumerate(self.right[:2]):
            if isinstance(net, Net):
                net.array = jnp.stack([lane[number].array for lane in lanes])


# Nothing sees what is set on a plain object that is captured.
CELLS = [
    (row, name)
    for row in ROWS
    for name in EFFECTS
    if not (name == "plain_object" and "captured" in row)
]


@pytest.mark.parametrize(("row", "name"), CELLS)
def test_effect(row: str, name: str) -> None:
    cell = Cell(row, name)
    cell.check()
    cell.check()


def test_all_transforms_have_rows() -> None:
    aliases = {"jit_partial", "cached_partial", "transform_metadata"}
    public = {
        name
        for name, value in vars(nnx).items()
        if getattr(value, "__module__", "").startswith("nnxlite.transforms")
        and not isinstance(value, type)
    }
    in_table = {max((n for n in public if row.startswith(n)), key=len) for row in ROWS}
    assert in_table == public - aliases
