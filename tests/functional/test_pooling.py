"""Pooling against a direct loop in numpy and against Flax NNX."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from nnxlite.functional import avg_pool, max_pool, min_pool, pool

RNG = np.random.default_rng(0)
POOLS = {
    "max": (max_pool, np.nanmax),
    "min": (min_pool, np.nanmin),
    "avg": (avg_pool, lambda window, axis: np.nansum(window, axis) / 4),
    "true avg": (
        lambda *args: avg_pool(*args, count_include_pad=False),
        np.nanmean,
    ),
}


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    RNG.bit_generator.state = np.random.PCG64(0).state


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def direct(x, reduce, strides, padding):
    """Windows of 2 x 2 on (height, width, channels); nan marks padding."""
    low = 0
    sizes = x.shape[:2]
    if padding == "SAME":
        outs = [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
        totals = [
            max((o - 1) * s + 2 - n, 0)
            for o, s, n in zip(outs, strides, sizes, strict=True)
        ]
        pairs = [(t // 2, t - t // 2) for t in totals]
    else:
        pairs = [(0, 0)] * 2 if padding == "VALID" else [(padding, padding)] * 2
    x = np.pad(x, [*pairs, (0, 0)], constant_values=np.nan)
    outs = [(x.shape[i] - 2) // strides[i] + 1 for i in range(2)]
    y = np.zeros((*outs, x.shape[-1]), np.float32)
    for i, j in itertools.product(*map(range, outs)):
        low = i * strides[0], j * strides[1]
        window = x[low[0] : low[0] + 2, low[1] : low[1] + 2]
        y[i, j] = reduce(window, axis=(0, 1))
    return y


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("padding", ["VALID", "SAME", 1])
@pytest.mark.parametrize("strides", [None, (2, 1), 2])
def test_pools(name, padding, strides):
    function, reduce = POOLS[name]
    x = normal(5, 4, 3)
    per_axis = {None: (1, 1), 2: (2, 2)}.get(strides, strides)
    expected = direct(x, reduce, per_axis, padding)
    np.testing.assert_allclose(
        function(x, (2, 2), strides, padding), expected, rtol=1e-5, atol=1e-6
    )
    batched = function(np.stack([x, -x])[None], [2, 2], strides, padding)
    np.testing.assert_allclose(batched[0, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_gradients(name, batch):
    x = RNG.permutation(np.arange(np.prod(batch + (4, 3, 2), dtype=int)))
    x = x.reshape(batch + (4, 3, 2)).astype(np.float32)
    function = POOLS[name][0]
    check_grads(
        lambda x: function(x, (2, 2), None, "SAME"), (x,), order=1, eps=1e-1, rtol=1e-2
    )


@pytest.mark.parametrize("name", ["max_pool", "min_pool", "avg_pool"])
@pytest.mark.parametrize("padding", ["VALID", "SAME", ((0, 1), (1, 0))])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_as_flax(oracle, name, padding, dtype):
    ours, theirs = globals()[name], getattr(oracle("flax.nnx"), name)
    shapes = [(5, 4, 3), (2, 5, 4, 3), (2, 3, 5, 4, 3)]
    # Flax fails for pairs and several batch axes.
    for shape in shapes if isinstance(padding, str) else shapes[:2]:
        x = jnp.asarray(normal(*shape), dtype)
        for strides in (None, (2, 1)):
            y = ours(x, (2, 2), strides, padding)
            expected = theirs(x, (2, 2), strides, padding)
            assert y.dtype == expected.dtype
            np.testing.assert_allclose(
                y.astype(np.float32), expected.astype(np.float32), rtol=1e-2
            )


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_integers(dtype):
    x = jnp.asarray([[3], [2], [5]], dtype)
    np.testing.assert_array_equal(max_pool(x, (2,), padding=1)[:, 0], [3, 3, 5, 5])
    np.testing.assert_array_equal(min_pool(x, (2,), padding=1)[:, 0], [3, 2, 2, 5])
    assert max_pool(x, (2,)).dtype == dtype
    np.testing.assert_array_equal(avg_pool(x, (2,))[:, 0], [2.5, 3.5])


def test_pool_takes_any_function():
    x = normal(4, 2)
    y = pool(x, 0.0, lambda a, b: a + b, [2], None, [(1, 0)])
    expected = x + np.concatenate([np.zeros((1, 2), np.float32), x[:-1]])
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    y = jax.jit(lambda x: pool(x, -jnp.inf, lax.max, (2,), (1,), "VALID"))(x)
    np.testing.assert_array_equal(y, max_pool(x, (2,)))


@pytest.mark.parametrize(
    ("window", "strides", "padding", "match"),
    [
        ((2, 2), None, "VALID", r"2 spatial axes; got \(4, 2\).*x\[\.\.\., None\]"),
        ((2,), (1, 1), "VALID", "strides must have 1 entries"),
        ((2,), None, ((0, 1), (0, 1)), "padding must have 1 entries"),
    ],
)
@pytest.mark.parametrize("function", [max_pool, min_pool, avg_pool])
def test_explains_what_does_not_fit(function, window, strides, padding, match):
    with pytest.raises(ValueError, match=match):
        function(normal(4, 2), window, strides, padding)
