"""Effects: what a function may do to objects, as functions of three objects and x.

Objects `a` and `b` share one object with each other; `c` stands alone. All effects but
those that return an object return an array like x. Numbers are such that all sums and
means are exact.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import nnxlite as nnx

from ..properties.programs import Trainer

Effect = Callable[..., Any]


class Leaf(nnx.Module):
    def __init__(self, value: Any):
        self.v = nnx.Variable(value)


class Net(nnx.Module):
    """Something of everything."""

    def __init__(self, number: int, common: Leaf):
        self.w = nnx.Param(jnp.full(2, number, jnp.float32))
        self.count = nnx.BatchStat(jnp.int32(number))
        self.total = nnx.Intermediate(jnp.zeros(2))
        self.norm = nnx.BatchNorm(2, momentum=0.5, rngs=nnx.Rngs(number))
        self.rngs = nnx.Rngs(number)
        self.left = self.right = Leaf(jnp.full(2, number + 1, jnp.float32))
        self.layers = [Leaf(jnp.ones(2)), Leaf(jnp.zeros(2))]
        self.common = common
        self.array = jnp.full(2, number, jnp.float32)
        self.mode = "train"


def world(number: int, effect: str) -> list[Any]:
    """The objects a, b and c; a plain object holds b if the effect says so."""
    a, b, c = copy.deepcopy(_pristine(number))  # a tenth of the time of making them
    return [a, Trainer(b) if effect == "plain_object" else b, c]


@functools.cache
def _pristine(number: int) -> list[Any]:
    common = Leaf(jnp.full(2, number, jnp.float32))
    a, b = Net(number, common), Net(number + 1, common)
    return [a, b, Net(number + 2, Leaf(jnp.ones(2)))]


class Halt(Exception):
    """What an effect raises half-way."""


EFFECTS: dict[str, Effect] = {}
_marks: dict[str, frozenset[str]] = {}


def effect(*marks: str) -> Callable[[Effect], Effect]:
    """Adds an effect.

    Args:
      *marks: "structure" if it changes one, "object" if it returns one, "varying" if
        x gets into an object, "writes" if a Variable of a or b is written, and
        "captured" if it touches c only.
    """

    def add(function: Effect) -> Effect:
        EFFECTS[function.__name__] = function
        _marks[function.__name__] = frozenset(marks)
        return function

    return add


def those(*marks: str) -> frozenset[str]:
    """The names of the effects that have all these marks."""
    return frozenset(name for name in EFFECTS if _marks[name] >= set(marks))


@effect()
def read(a: Net, b: Net, c: Net, x: Any) -> Any:
    return x + a.w + b.count + a.layers[0].v + c.w + len(a.mode)


@effect("varying", "writes")
def write(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.w.value = x + b.w
    b.layers[1].v[0] = x[1]
    return a.w + b.layers[1].v


@effect("varying", "writes")
def add_in_place(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.w += x
    a.count += 1
    return a.w + a.count


@effect("structure", "varying")
def new_attribute(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.new = nnx.Cache(x + a.w)
    a.more = {"list": [Leaf(jnp.zeros(2))], "number": 1}
    return a.new + x


@effect("structure", "varying")
def new_array(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.new = x * 2
    return a.new + a.array


@effect("varying", "writes")
def replaced_array(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.array = a.array + x
    b.array += x
    return a.array + b.array


@effect("structure")
def new_static(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.mode = a.mode + "ing"
    return x + len(a.mode)


@effect("structure")
def deleted_attribute(a: Net, b: Net, c: Net, x: Any) -> Any:
    del a.left, a.w
    return x + a.right.v


@effect("structure", "varying")
def rebound_attribute(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.w = nnx.Param(x, note="new")
    a.left, b.right = b.right, a.left
    return a.w + a.left.v


@effect("structure", "varying")
def appended(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.layers.append(Leaf(x))
    a.layers.reverse()
    return a.layers[0].v + x


@effect("structure")
def metadata(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.w.set_metadata("note", "changed")
    return x + len(a.w.get_metadata())


@effect("writes")
def rng_draw(a: Net, b: Net, c: Net, x: Any) -> Any:
    draws = [jax.random.randint(rngs(), (2,), 0, 99) for rngs in (a.rngs, b.rngs)]
    return x + draws[0] + draws[1] + jax.random.randint(a.rngs(), (2,), 0, 9)


@effect("varying", "writes")
def batch_statistics(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.norm(jnp.stack([x, x + 2]))
    return x + a.norm.mean


@effect("structure", "varying")
def sow(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.sow(nnx.Intermediate, "seen", x)
    a.sow("intermediates", "seen", {"sum": x + a.w})
    return a.layers[0].perturb("change", x)


@effect("varying", "writes")
def sow_into_a_total(a: Net, b: Net, c: Net, x: Any) -> Any:
    b.sow(nnx.Intermediate, "total", x, lambda total, x: total + x, lambda: 0)
    return x + b.total


@effect("varying", "writes")
def sharing_within(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.left.v += x
    return x + a.right.v * (1 if a.left is a.right else jnp.nan)


@effect("varying", "writes")
def sharing_across(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.common.v += x
    b.common.v *= 2
    return x + a.common.v * (1 if a.common is b.common else jnp.nan)


@effect("structure", "writes")
def sharing_new(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.alias = a.layers[0].alias = b.left
    b.norm.alias = a
    b.left.v += 1
    return x + a.alias.v


@effect("captured", "varying")
def captured_write(a: Net, b: Net, c: Net, x: Any) -> Any:
    c.w += x
    return c.w + x


@effect("captured", "structure", "varying")
def captured_structure(a: Net, b: Net, c: Net, x: Any) -> Any:
    c.new = nnx.Param(x)
    del c.left
    return c.new + x


@effect("captured")
def captured_count(a: Net, b: Net, c: Net, x: Any) -> Any:
    c.count += 1
    return x + c.count + jax.random.randint(c.rngs(), (2,), 0, 9)


@effect("structure", "varying")
def plain_object(a: Net, b: Trainer, c: Net, x: Any) -> Any:
    b.old, b.model = b.model, Leaf(x)
    b.old.w.value = x
    return b.model.v + x


@effect("object")
def return_argument(a: Net, b: Net, c: Net, x: Any) -> Any:
    return a


@effect("object")
def return_part(a: Net, b: Net, c: Net, x: Any) -> Any:
    return a.common


@effect("object")
def return_new(a: Net, b: Net, c: Net, x: Any) -> Any:
    new = Leaf(x)
    new.array, new.other = x + 1, new.v
    return new


@effect()
def exception(a: Net, b: Net, c: Net, x: Any) -> Any:
    a.w.value = b.w.value = c.w.value = x
    a.new = nnx.Param(x)
    del a.left, c.left
    b.layers.append(a.new)
    a.norm.mean.set_metadata("note", 1)
    raise Halt
