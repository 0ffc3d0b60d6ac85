"""Odd inputs of every layer: none, one, in disorder, and extreme values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

from .catalog import LAYERS, call, inputs, make

NORMS = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")
every_layer = pytest.mark.parametrize("name", LAYERS)
# Those whose inputs have an axis of examples that do not see each other.
batched = pytest.mark.parametrize(
    "name",
    [
        name
        for name, (kind, _, options, shape) in LAYERS.items()
        if len(shape) > (4 if "2d" in name else 2 if "conv" in name else 1)
        and shape != "indices"
        and not options.get("time_major")
        and not options.get("batch_axis")
        and kind not in ("BatchNorm", "Einsum")
        and name
        not in (
            "attention groups",
            "conv mask",
            "transposed mask",
            "rnn back",
            "transposed valid",
        )
    ],
)
norms = pytest.mark.parametrize("name", [n for n in LAYERS if LAYERS[n][0] in NORMS])


def finite(tree):
    return all(np.isfinite(np.float32(x)).all() for x in jax.tree.leaves(tree))


@batched
def test_an_empty_batch_gives_an_empty_result(name):
    layer, x = make(nnx, name)[0], inputs(name)
    wanted = call(layer, x)
    y = call(layer, x[:0])
    assert y.shape == (0, *wanted.shape[1:]) and y.dtype == wanted.dtype
    grads = nnx.grad(lambda m: call(m, x[:0]).astype(jnp.float32).sum())(layer)
    assert finite(grads)


@pytest.mark.parametrize("name", [n for n in LAYERS if LAYERS[n][0] == "BatchNorm"])
def test_an_empty_batch_leaves_running_statistics(name):
    layer, x = make(nnx, name)[0], inputs(name)
    before = np.array(layer.mean[...]), np.array(layer.var[...])
    assert layer(x[:0]).shape == x[:0].shape
    np.testing.assert_array_equal(layer.mean[...], before[0])
    np.testing.assert_array_equal(layer.var[...], before[1])


@batched
def test_one_example_gives_what_it_gives_among_others(name):
    layer, x = make(nnx, name)[0], inputs(name)
    layer.eval()
    if "carry" in name:
        pytest.skip("each example draws a carry of its own")
    tolerance = 2e-2 if "bf16" in name or "bare" in name else 1e-5
    np.testing.assert_allclose(
        np.float32(call(layer, x[:1])),
        np.float32(call(layer, x)[:1]),
        rtol=tolerance,
        atol=tolerance,
    )


@batched
def test_vmap_over_the_examples_is_a_batch(name):
    layer, x = make(nnx, name)[0], inputs(name)
    layer.eval()
    if "carry" in name:
        pytest.skip("each example draws a carry of its own")
    one = nnx.vmap(lambda layer, x: call(layer, x[None])[0], in_axes=(None, 0))
    tolerance = 2e-2 if "bf16" in name or "bare" in name else 1e-5
    np.testing.assert_allclose(
        np.float32(one(layer, x)),
        np.float32(call(layer, x)),
        rtol=tolerance,
        atol=tolerance,
    )


@every_layer
def test_arrays_of_numpy_in_any_order_of_memory(name):
    x = np.asarray(inputs(name))
    orders = [np.asfortranarray(x), np.repeat(x, 2, axis=-1)[..., ::2], x[::-1][::-1]]
    wanted = call(make(nnx, name)[0], jnp.asarray(x))
    for order in orders:
        y = call(make(nnx, name)[0], order)
        np.testing.assert_array_equal(np.float32(y), np.float32(wanted))


@norms
@pytest.mark.parametrize("value", [0.0, 1.0, -3e4, 1e-20])
def test_norms_of_constant_inputs_are_finite(name, value):
    layer = make(nnx, name)[0]
    x = jnp.full(LAYERS[name][3], value)

    def loss(layer, x):
        return (layer(x).astype(jnp.float32) ** 2).sum()

    y = layer(x)
    grads = nnx.grad(loss, argnums=(0, 1))(layer, x)
    assert finite([y, grads, nnx.state(layer)])
    if LAYERS[name][0] not in ("RMSNorm", "BatchNorm") and value in (0.0, 1.0):
        bias = 0 if layer.bias is None else np.asarray(layer.bias[...], np.float32)
        if np.ndim(bias) and "axes" not in name:
            np.testing.assert_allclose(
                np.float32(y), np.broadcast_to(bias, y.shape), atol=1e-2
            )


def test_softmax_and_logsumexp_of_large_logits():
    logits = jnp.array([1e30, -1e30, 0.0, 1e30])
    np.testing.assert_allclose(nnx.softmax(logits), [0.5, 0, 0, 0.5])
    assert finite(nnx.log_softmax(jnp.array([3e4, -3e4])))
    assert nnx.logsumexp(jnp.array([3e4, 3e4])) == 3e4 + np.float32(np.log(2))


@pytest.mark.parametrize("sow", [False, True])
def test_a_mask_that_hides_everything_gives_a_mean_of_all(sow):
    layer = nnx.MultiHeadAttention(2, 4, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    mask = jnp.zeros((2, 1, 3, 3), bool)
    y = layer(x, mask=mask, sow_weights=sow)
    assert finite(y)
    value = layer.value(x).mean(1, keepdims=True)
    wanted = jnp.broadcast_to(layer.out(value), y.shape)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    grads = nnx.grad(lambda m: (m(x, mask=mask, sow_weights=sow) ** 2).sum())(layer)
    assert finite(grads)


def test_a_batch_norm_mask_that_hides_everything_is_finite():
    layer = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    y = layer(jnp.ones((3, 4)), mask=jnp.zeros((3, 1), bool))
    assert finite([y, nnx.state(layer)])
