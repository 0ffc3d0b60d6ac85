"""Eager transforms see everything as it is at each call, as the Python statement does.

They are compiled, so that equal calls trace once, but not where a change could be
missed: what a program cannot read again at each call is traced at each call.
"""

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

X = jnp.arange(1.0, 3.0)

TRANSFORMS: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "vmap": lambda f: nnx.vmap(lambda x: f(x))(X),
    "scan": lambda f: nnx.scan(lambda n, x: (n, f(x)))(0, X)[1],
    "fori_loop": lambda f: nnx.fori_loop(0, 1, lambda i, x: f(x), X),
    "while_loop": lambda f: nnx.while_loop(
        lambda carry: carry[0] < 1, lambda carry: (carry[0] + 1, f(carry[1])), (0, X)
    )[1],
    "cond": lambda f: nnx.cond(True, f, lambda x: x, X),
    "switch": lambda f: nnx.switch(0, [f, lambda x: x], X),
    "remat in grad": lambda f: nnx.value_and_grad(
        lambda x: (nnx.remat(f)(x).sum(), f(x)), has_aux=True
    )(X)[0][1],
}
each_transform = pytest.mark.parametrize("name", TRANSFORMS)


@dataclasses.dataclass
class Options:
    rate: float = 1.0


class Trainer:
    """A plain object with a model, a number and an array."""

    def __init__(self):
        self.model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.rate = 1.0
        self.weights = jnp.ones(())

    def step(self, x: Any) -> Any:
        return x * self.rate * self.weights


def a_class() -> Any:
    return type("Config", (), {"rate": 1.0})


@each_transform
@pytest.mark.parametrize(
    "make", [types.SimpleNamespace, Options, Trainer, a_class], ids=lambda x: x.__name__
)
def test_a_field_that_changed_between_two_calls(name: str, make: Any):
    seen = make()
    seen.rate = 1.0

    def scaled(x: Any) -> Any:
        return x * seen.rate

    for rate in (1.0, 2.0, 5.0):
        seen.rate = rate
        np.testing.assert_array_equal(TRANSFORMS[name](scaled), rate * X)


@each_transform
def test_a_bound_method_of_a_plain_object(name: str):
    trainer = Trainer()
    np.testing.assert_array_equal(TRANSFORMS[name](trainer.step), X)
    trainer.weights = jnp.full((), 3.0)
    trainer.rate = 2.0
    np.testing.assert_array_equal(TRANSFORMS[name](trainer.step), 6 * X)


def test_a_plain_object_among_the_arguments():
    options, trainer = Options(), Trainer()
    trainer.options = options  # type: ignore[attr-defined]
    scale = nnx.vmap(lambda x, o: x * o.rate, in_axes=(0, None))
    inner = nnx.vmap(lambda x, t: x * t.options.rate, in_axes=(0, None))
    for rate in (1.0, 2.0):
        options.rate = rate
        np.testing.assert_array_equal(scale(X, options), rate * X)
        np.testing.assert_array_equal(inner(X, trainer), rate * X)


@each_transform
def test_a_model_that_is_reached_through_a_plain_object(name: str):
    trainer = Trainer()

    def call(x: Any) -> Any:
        return x + trainer.model(jnp.ones(2)).sum()

    expected = X + trainer.model(jnp.ones(2)).sum()
    np.testing.assert_allclose(TRANSFORMS[name](call), expected, rtol=1e-6)


def test_what_is_frozen_or_seen_does_not_trace_again():
    traces: list[int] = []
    Frozen = dataclasses.make_dataclass("Frozen", [("rate", float)], frozen=True)
    options, model = Frozen(2.0), nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    def call(x: Any) -> Any:
        traces.append(1)
        return options.rate * model(x)

    for _ in range(3):
        nnx.vmap(call)(jnp.ones((3, 2)))
    assert len(traces) == 1


def test_an_outer_layer_that_a_constructor_reaches():
    shared = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    registry = {"shared": shared}

    class Layer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.scale = nnx.Param(registry["shared"].kernel * rngs.params.uniform())

    layers = nnx.vmap(Layer, in_axes=None, axis_size=3, split_rngs=True)(nnx.Rngs(0))
    assert layers.scale.shape == (3, 2, 2)
