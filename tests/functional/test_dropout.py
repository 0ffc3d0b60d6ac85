"""dropout against its definition and against Flax NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nnxlite.functional import dropout

KEY = jax.random.key(0)
X = np.linspace(1, 2, 4000, dtype=np.float32).reshape(40, 100)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64]
)
def test_drops_a_fraction_and_scales_the_rest(rate, dtype):
    x = jnp.asarray(X, dtype)
    y = dropout(x, KEY, rate)
    assert y.dtype == dtype
    kept = np.asarray(y != 0)
    # Compiled as a whole or not, a complex division rounds differently.
    tolerance = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(y, jnp.where(kept, x / (1 - rate), 0), rtol=tolerance)
    assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / X.size)


def test_mask_is_that_of_bernoulli():
    kept = jax.random.bernoulli(KEY, 0.75, X.shape)
    np.testing.assert_array_equal(dropout(X, KEY, 0.25) != 0, kept)


def test_old_and_new_style_keys_agree():
    old = jax.random.key_data(KEY)
    np.testing.assert_array_equal(dropout(X, KEY, 0.5), dropout(X, old, 0.5))


@pytest.mark.parametrize("rate", [0, 0.0, False])
def test_rate_zero_is_the_input_itself(rate):
    assert dropout(X, KEY, rate) is X
    assert dropout(X, None, rate) is X


@pytest.mark.parametrize("value", [1.0, np.inf, np.nan])
def test_rate_one_is_zeros(value):
    assert not dropout(np.full(3, value, np.float32), KEY, 1.0).any()


def test_dropped_infinities_are_zero():
    y = dropout(np.full(100, np.inf, np.float32), KEY, 0.5)
    assert set(y.tolist()) == {0.0, np.inf}


@pytest.mark.parametrize("dims", [(0,), (-1,), [1], (0, 1)])
def test_broadcast_dims_share_their_fate(dims):
    kept = np.asarray(dropout(X, KEY, 0.5, dims) != 0)
    for axis in dims:
        assert (kept == kept.take([0], axis)).all()


def test_gradients():
    check_grads(lambda x: dropout(x, KEY, 0.5), (X[:2, :5],), order=2)


def test_vmap_over_keys_gives_different_masks():
    keys = jax.random.split(KEY, 2)
    y = jax.vmap(lambda key: dropout(X, key, 0.5))(keys)
    np.testing.assert_array_equal(y[1], dropout(X, keys[1], 0.5))
    assert (y[0] != y[1]).any()


@pytest.mark.parametrize("dims", [(), (1,)])
def test_as_flax(oracle, dims):
    nnx = oracle("flax.nnx")
    layer = nnx.Dropout(0.3, broadcast_dims=dims)
    x = jnp.asarray(X)
    np.testing.assert_array_equal(dropout(x, KEY, 0.3, dims), layer(x, rngs=KEY))


@pytest.mark.parametrize("dtype", [jnp.int32, bool])
@pytest.mark.parametrize("rate", [0.5, 1])
def test_integers_are_refused(dtype, rate):
    name = jnp.dtype(dtype).name
    with pytest.raises(TypeError, match=f"{name} cannot represent.*astype"):
        dropout(jnp.ones(3, dtype), KEY, rate)


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rate_out_of_range(rate):
    with pytest.raises(ValueError, match=f"must be from 0 to 1; got {rate}"):
        dropout(X, KEY, rate)


def test_missing_axis():
    with pytest.raises(ValueError, match="broadcast_dims: axis 2 is out of bounds"):
        dropout(X, KEY, 0.5, (2,))
