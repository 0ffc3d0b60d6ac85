"""The 21 initializers, bit for bit those of `jax.nn.initializers`."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnxlite.functional import initializers

KEY = jax.random.key(0)
FACTORIES = {
    name: {}
    for base in ("glorot", "he", "kaiming", "lecun", "xavier")
    for name in (f"{base}_normal", f"{base}_uniform")
} | {
    "constant": {"value": 3.0},
    "delta_orthogonal": {},
    "normal": {},
    "orthogonal": {},
    "truncated_normal": {},
    "uniform": {},
    "variance_scaling": {"scale": 1.0, "mode": "fan_in", "distribution": "normal"},
}


@pytest.mark.parametrize(("name", "options"), FACTORIES.items())
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_draws_what_jax_draws(name, options, dtype):
    if "orthogonal" in name and dtype == jnp.bfloat16:
        pytest.skip("the QR decomposition of JAX knows no bfloat16")
    ours = getattr(initializers, name)(**options)(KEY, (3, 4, 4), dtype)
    theirs = getattr(jax.nn.initializers, name)(**options)(KEY, (3, 4, 4), dtype)
    assert (ours.shape, ours.dtype) == ((3, 4, 4), dtype)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("name", "value"), [("zeros", 0), ("ones", 1)])
def test_zeros_and_ones_are_initializers(name, value):
    initializer = getattr(initializers, name)
    assert getattr(initializers, f"{name}_init")() is initializer
    np.testing.assert_array_equal(
        initializer(KEY, (2,), jnp.float32), np.full(2, value, np.float32)
    )


def test_names_and_signatures_are_those_of_flax(oracle):
    theirs = oracle("flax.nnx").initializers
    names = {*FACTORIES, "zeros", "ones", "zeros_init", "ones_init"}
    assert len(names) == 21
    for name in names:
        ours = inspect.signature(getattr(initializers, name)).parameters
        wanted = inspect.signature(getattr(theirs, name)).parameters
        assert list(ours) == list(wanted), name
