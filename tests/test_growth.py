"""Nothing grows over many steps; see benchmarks/soak.py for the figures."""

import gc

import jax
import jax.numpy as jnp
import optax

import nnxlite as nnx


def test_google_flax_4336_nothing_grows_with_the_number_of_steps():
    model = nnx.Sequential(
        nnx.Linear(4, 4, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
        nnx.Dropout(0.1, rngs=nnx.Rngs(0)),
    )
    optimizer = nnx.Optimizer(model, optax.adam(1e-3))

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(nnx.grad(lambda model: (model(x) ** 2).mean())(model))

    def counts():
        gc.collect()
        return len(jax.live_arrays()), len(gc.get_objects()), len(step._plans)

    x = jnp.ones((2, 4))
    for _ in range(10):
        step(model, optimizer, x)
    arrays, objects, plans = counts()
    for _ in range(2000):
        step(model, optimizer, x)
    arrays_after, objects_after, plans_after = counts()
    assert arrays_after <= arrays
    assert objects_after <= objects + 50  # of other threads; a leak would be 2000
    assert plans_after == plans == 1
