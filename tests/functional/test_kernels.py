"""Kernels are compiled once for each configuration, and the same under a jit."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnxlite.functional import (
    attend,
    avg_pool,
    batch_norm,
    batch_norm_inference,
    conv,
    dropout,
    embed,
    layer_norm,
    linear,
    max_pool,
    min_pool,
    promote_dtype,
)
from nnxlite.functional.kernels import compiled, frozen, padding_pairs, per_axis

X = np.linspace(-1, 1, 48, dtype=np.float32).reshape(2, 4, 6)
ONE, TWO = np.ones(6, np.float32), np.full(6, 2, np.float32)
WEIGHT = np.linspace(0, 1, 24, dtype=np.float32).reshape(6, 4)
WINDOW = np.linspace(0, 1, 36, dtype=np.float32).reshape(3, 6, 2)
KEY = jax.random.key(0)

# Each takes an input of the shape of X and, if it promotes, its configuration.
PROMOTING = {
    "linear": lambda x, **how: linear(x, WEIGHT, None, **how),
    "attend": lambda x, **how: attend(x, WEIGHT.T, **how),
    "conv": lambda x, **how: conv(x, WINDOW, None, None, **how),
    "layer_norm": lambda x, **how: layer_norm(x, ONE, TWO, None, **how),
    "batch_norm": lambda x, **how: batch_norm(x, ONE, TWO, ONE, TWO, None, **how)[0],
    "batch_norm_inference": lambda x, **how: batch_norm_inference(
        x, ONE, TWO, ONE, TWO, **how
    ),
}
KERNELS = PROMOTING | {
    "dropout": lambda x: dropout(x, KEY, 0.5),
    "dropout_all": lambda x: dropout(x, KEY, 1),
    "max_pool": lambda x: max_pool(x, (2,)),
    "min_pool": lambda x: min_pool(x, (2,), 2, "SAME"),
    "avg_pool": lambda x: avg_pool(x, (2,), padding=1, count_include_pad=False),
}


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]


@pytest.mark.parametrize("name", PROMOTING)
def test_equal_calls_compile_once(name):
    traces = []

    def counting(args, **how):
        traces.append(args)
        return promote_dtype(args, **how)

    for x in (X, X + 1, jnp.asarray(X)):
        PROMOTING[name](x, promote_dtype=counting)
    assert len(traces) == 1
    PROMOTING[name](X[:1], promote_dtype=counting)
    PROMOTING[name](X, promote_dtype=counting, dtype=jnp.bfloat16)
    assert len(traces) == 3


def test_lists_and_tuples_share_a_program():
    reductions = []

    def add(a, b):
        reductions.append(a)
        return a + b

    @compiled(arrays=1)
    def total(x, reduce_fn, axes):
        return jax.lax.reduce(x, np.float32(0), reduce_fn, axes)

    total(X, add, frozen([0, 1]))
    count = len(reductions)
    total(X, add, frozen((0, 1)))
    assert len(reductions) == count > 0


def test_under_an_outer_jit_the_program_is_that_of_the_expression(kernel):
    def expression(x):
        with jax.disable_jit():
            return kernel(x)

    def step(function):
        def loss(x):
            y = function(x)
            return (y.astype(jnp.float32) ** 2).sum(), y

        return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(X).compile()

    ours, plain = step(kernel), step(expression)
    for x, y in zip(jax.tree.leaves(ours(X)), jax.tree.leaves(plain(X)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    cost, least = ours.cost_analysis(), plain.cost_analysis()
    assert cost.get("flops", 0) <= least.get("flops", 0)  # zeros cost nothing
    assert cost["bytes accessed"] <= least["bytes accessed"]


def test_equal_layers_are_one_function_of_the_lowered_program():
    def twice(x, weight):
        return linear(linear(x, weight, None), weight, None)

    text = jax.jit(twice).lower(X, np.eye(6, dtype=np.float32)).as_text()
    assert text.count("func.func private @linear") == 1
    assert text.count("call @linear") == 2


def test_no_implicit_promotion(kernel):
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        kernel(X[:, 1:])


def test_same_result_eager_jitted_and_uncompiled(kernel):
    eager, jitted = kernel(X), jax.jit(kernel)(X)
    with jax.disable_jit():
        uncompiled = kernel(X)
    np.testing.assert_allclose(jitted, eager, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(uncompiled, eager, rtol=1e-5, atol=1e-6)


def test_numpy_and_jax_inputs_agree(kernel):
    np.testing.assert_array_equal(kernel(X), kernel(jnp.asarray(X)))


def test_vmap_is_the_loop(kernel):
    stack = np.stack([X, X[::-1], 2 * X])
    mapped = jax.vmap(kernel)(stack)
    # One key for all lanes: the same mask in each of them.
    np.testing.assert_allclose(mapped, [kernel(x) for x in stack], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_gradient_has_the_type_of_the_input(kernel, dtype):
    x = jnp.asarray(X, dtype)
    gradient = jax.grad(lambda x: kernel(x).astype(jnp.float32).sum())(x)
    assert gradient.dtype == dtype
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("name", PROMOTING)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_computes_in_the_type_asked_for(name, dtype):
    low = PROMOTING[name](X, dtype=dtype)
    assert low.dtype == dtype
    high = PROMOTING[name](X)
    assert high.dtype == jnp.float32
    np.testing.assert_allclose(low.astype(jnp.float32), high, rtol=0.05, atol=0.06)


@pytest.mark.parametrize("name", PROMOTING)
def test_integers_compute_as_float32(name):
    x = np.arange(48).reshape(X.shape)
    assert PROMOTING[name](x).dtype == jnp.float32
    with pytest.raises(ValueError, match="Dtype must be inexact: got int32.*float32"):
        PROMOTING[name](x, dtype=jnp.int32)


@pytest.mark.parametrize("size", [0, 1])
def test_empty_batch_and_batch_of_one(kernel, size):
    y = kernel(X[:size])
    assert y.shape[0] == size
    assert jnp.isfinite(y).all()
    gradient = jax.grad(lambda x: kernel(x).sum())(jnp.asarray(X[:size]))
    assert gradient.shape == X[:size].shape


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_any_number_of_batch_axes(kernel, batch):
    x = np.broadcast_to(X[0], batch + X[0].shape)
    assert kernel(x).shape[: len(batch)] == batch


@pytest.mark.parametrize("function", [linear, conv, layer_norm, batch_norm, embed])
def test_documentation_and_signature_are_those_of_the_function(function):
    plain = inspect.unwrap(function)
    assert function.__doc__ == plain.__doc__
    assert inspect.signature(function) == inspect.signature(plain)


def test_frozen_reaches_every_depth():
    assert frozen([1, [2, (3, [4])], "SAME", None]) == (1, (2, (3, (4,))), "SAME", None)


@pytest.mark.parametrize(
    ("value", "entries"),
    [(None, (1, 1)), (3, (3, 3)), ((1, 2), (1, 2)), ([4, 5], (4, 5))],
)
def test_per_axis(value, entries):
    assert per_axis(value, 2, "strides") == entries


@pytest.mark.parametrize(
    ("padding", "pairs"),
    [
        ("same", "SAME"),
        (2, ((2, 2), (2, 2))),
        ((1, (0, 3)), ((1, 1), (0, 3))),
        ([[1, 2], [3, 4]], ((1, 2), (3, 4))),
    ],
)
def test_padding_pairs(padding, pairs):
    assert padding_pairs(padding, 2) == pairs


def test_wrong_number_of_entries():
    match = r"strides must have 2 entries, .* one for all; got \(1, 2, 3\)"
    with pytest.raises(ValueError, match=match):
        per_axis((1, 2, 3), 2, "strides")
