"""The 25 activations against independent formulas, and as compiled functions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nnxlite.functional import activations

X = np.array([-9.0, -3.5, -1.0, -0.3, 0.0, 0.2, 1.0, 2.5, 5.0, 9.0], np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def erf(x):
    return np.vectorize(math.erf)(x)


def logsumexp(x):
    return np.log(np.exp(x).sum())


FORMULAS = {
    "celu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "elu": elu,
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "glu": lambda x: x[:5] * sigmoid(x[5:]),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_silu": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "identity": lambda x: x,
    "leaky_relu": lambda x: np.where(x >= 0, x, 0.01 * x),
    "log_sigmoid": lambda x: -np.log1p(np.exp(-x)),
    "log_softmax": lambda x: x - logsumexp(x),
    "logsumexp": logsumexp,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "selu": lambda x: 1.0507009873554805 * elu(x, 1.6732632423543772),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "soft_sign": lambda x: x / (abs(x) + 1),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "standardize": lambda x: (x - x.mean()) / np.sqrt(x.var() + 1e-5),
    "swish": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
}
COMPILED = ["relu", "relu6", "gelu", "softmax", "logsumexp"]


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name):
    y = getattr(activations, name)(X)
    expected = FORMULAS[name](X.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_keeps_floating_types(name, dtype):
    assert getattr(activations, name)(jnp.asarray(X, dtype)).dtype == dtype


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_here_but_the_same_as_in_jax(name):
    ours, theirs = getattr(activations, name), getattr(jax.nn, name)
    assert ours.__doc__ == theirs.__doc__
    np.testing.assert_allclose(ours(X), theirs(X), rtol=1e-6)
    (call,) = jax.make_jaxpr(ours)(X).eqns
    assert str(call.params["jaxpr"]) == str(jax.make_jaxpr(theirs)(X))
    gradient, expected = (
        jax.jit(jax.grad(lambda x, function=function: function(x).sum()))(X)
        for function in (ours, theirs)
    )
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("name", COMPILED)
def test_gradients(name):
    x = jnp.array([-2.0, -0.7, 0.4, 1.5])
    check_grads(getattr(activations, name), (x,), order=2, modes=["fwd", "rev"])


def test_options():
    rows = X.reshape(2, 5)
    mask = rows > -5
    gelu = activations.gelu(X, approximate=False)
    np.testing.assert_allclose(
        gelu, X * (1 + erf(X / np.sqrt(2))) / 2, rtol=1e-5, atol=1e-6
    )
    softmax = activations.softmax(rows, axis=0, where=mask)
    assert softmax[0, 0] == 0
    np.testing.assert_allclose(softmax.sum(0), np.ones(5), rtol=1e-6)
    value, sign = activations.logsumexp(
        rows, axis=(0, 1), b=-np.ones_like(rows), keepdims=True, return_sign=True
    )
    assert (value.shape, sign[0, 0]) == ((1, 1), -1)


def test_relu_has_gradient_zero_at_zero():
    assert jax.grad(activations.relu)(0.0) == 0


def test_one_hot():
    y = activations.one_hot(np.array([1, -1, 3]), 3)
    np.testing.assert_array_equal(y, [[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert activations.one_hot(np.array([0]), 2, dtype=jnp.int8, axis=0).shape == (2, 1)


def test_names_are_those_of_flax(oracle):
    theirs = oracle("flax.nnx")
    names = [*FORMULAS, "one_hot"]
    assert len(names) == 25
    for name in set(names) - {"one_hot", "glu"}:
        np.testing.assert_allclose(
            getattr(activations, name)(X), getattr(theirs, name)(X), rtol=1e-6
        )
