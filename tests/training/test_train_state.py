"""TrainState in a functional loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnxlite as nnx

X = jnp.arange(6.0).reshape(3, 2)


def fresh():
    return nnx.split(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))


def loss(params, graphdef):
    y, _ = graphdef.apply(params)(X)
    return (y**2).mean()


@jax.jit
def step(state):
    grads = jax.grad(loss)(state.params, state.graphdef)
    return state.apply_gradients(grads)


def test_equals_the_optimizer():
    graphdef, params = fresh()
    state = nnx.TrainState.create(graphdef, params=params, tx=optax.adam(0.1))
    model = nnx.merge(graphdef, params, copy=True)
    optimizer = nnx.Optimizer(model, optax.adam(0.1))
    for _ in range(3):
        state = step(state)
        optimizer.update(nnx.grad(lambda m: (m(X) ** 2).mean())(model))
    np.testing.assert_allclose(state.params.kernel, model.kernel, rtol=1e-6)
    assert state.step == 3
    y, _ = state.apply("params")(X)
    np.testing.assert_allclose(y, model(X), rtol=1e-5, atol=1e-6)


def test_subclass_with_a_field():
    @dataclasses.dataclass(frozen=True)
    class Mine(nnx.TrainState):
        rest: nnx.State
        name: str = dataclasses.field(metadata={"static": True})

    model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    state = Mine.create(
        graphdef, params=params, tx=optax.sgd(0.1), rest=rest, name="mine"
    )

    @jax.jit
    def run(state):
        _, (_, new) = state.apply("params", "rest")(X)
        _, rest = nnx.split_state(new, nnx.Param, ...)
        return dataclasses.replace(state, rest=rest)

    state = run(state)
    np.testing.assert_allclose(state.rest["mean"], 0.01 * X.mean(0), rtol=1e-6)
    assert state.name == "mine"
