"""Dropout: masks, where their keys come from, modes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

X = jnp.ones((4, 50))


def mask(layer, **options):
    return np.asarray(layer(X, **options) != 0)


def same(a, b):
    return bool((a == b).all())


class Net(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(50, 50, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.linear(x))


def test_values():
    layer = nnx.Dropout(0.2, rngs=nnx.Rngs(0))
    y = layer(jnp.ones((1000, 10)))
    np.testing.assert_allclose(np.unique(y), [0, 1.25])
    assert abs(float((y == 0).mean()) - 0.2) < 0.02


def test_entries_along_broadcast_dims_share_their_fate():
    y = mask(nnx.Dropout(0.5, broadcast_dims=[0], rngs=nnx.Rngs(0)))
    assert same(y, y[:1]) and 0 < y[0].mean() < 1


@pytest.mark.parametrize("argument", [None, True, False])
@pytest.mark.parametrize("attribute", [None, True, False])
def test_d49_deterministic(attribute, argument):
    layer = nnx.Dropout(0.5, deterministic=attribute, rngs=nnx.Rngs(0))
    if attribute is None and argument is None:
        wanted = (
            r"^Dropout: `deterministic` is None.*layer\(x, deterministic=.*nnx.Dropout"
            r"\(\.\.\., deterministic=.*model.eval\(\).*nnx.view"
        )
        with pytest.raises(ValueError, match=wanted):
            layer(X)
        return
    is_off = attribute if argument is None else argument
    assert (layer(X, deterministic=argument) is X) is is_off
    assert layer.rngs.count.value == (0 if is_off else 1)


def test_d49_off_or_at_rate_0_it_needs_no_randomness():
    x = np.arange(3)
    assert nnx.Dropout(0.0)(x) is x
    assert nnx.Dropout(0.5, deterministic=True)(x) is x
    assert nnx.Dropout(0.5)(x, deterministic=True) is x
    assert not nnx.Dropout(1.0)(X).any()


def test_d46_a_stream_of_its_own():
    rngs = nnx.Rngs(dropout=0)
    layer = nnx.Dropout(0.5, rngs=rngs)
    assert rngs.dropout.count.value == 1
    key = jax.random.fold_in(jax.random.key(0), jnp.uint32(0))
    assert same(layer.rngs.key.value, key)
    twin = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0))
    rngs.dropout()  # what the parent does later changes nothing
    first, second = mask(layer), mask(layer)
    assert same(mask(twin), first) and same(mask(twin), second)
    assert not same(first, second)
    nnx.reseed(layer, dropout=42)
    nnx.reseed(twin, dropout=42)
    assert layer.rngs.count.value == 0
    again = mask(layer)
    assert same(mask(twin), again) and not same(first, again)


@pytest.mark.parametrize("rngs", [{"default": 0}, {"dropout": 0}, {"noise": 0}])
def test_the_stream_has_the_name_that_was_asked_for(rngs):
    name = "noise" if "noise" in rngs else "dropout"
    layer = nnx.Dropout(0.5, rng_collection=name, rngs=nnx.Rngs(**rngs))
    assert layer.rngs.tag == layer.rngs.key.tag == layer.rngs.count.tag == name
    before = mask(layer)
    nnx.reseed(layer, **{name: 42})
    assert layer.rngs.count.value == 0 and not same(mask(layer), before)


def test_two_layers_of_one_rngs_have_different_masks():
    rngs = nnx.Rngs(0)
    a, b = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    assert not same(mask(a), mask(b))


def test_a_stream_given_is_forked():
    stream = nnx.RngStream(0, tag="noise")
    layer = nnx.Dropout(0.5, rngs=stream)
    assert layer.rngs is not stream and layer.rngs.tag == "noise"
    assert stream.count.value == 1


def test_randomness_of_the_call_comes_first():
    layer = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
    rngs, stream = nnx.Rngs(0), nnx.RngStream(0, tag="any")
    key = jax.random.fold_in(jax.random.key(0), jnp.uint32(0))
    expected = mask(layer, rngs=key)
    for given in (
        rngs,
        stream,
        nnx.Rngs(dropout=0, default=3),
        jax.random.key_data(key),
    ):
        assert same(mask(layer, rngs=given), expected)
    assert same(mask(layer, rngs=nnx.RngKey(key)), expected)
    assert rngs.default.count.value == stream.count.value == 1
    assert layer.rngs.count.value == 0


def test_same_masks_as_flax_with_randomness_of_the_call(oracle):
    flax_nnx = oracle("flax.nnx")
    ours, theirs = nnx.Dropout(0.5), flax_nnx.Dropout(0.5)
    key = jax.random.key(3)
    for a, b in [
        (nnx.Rngs(0), flax_nnx.Rngs(0)),
        (nnx.Rngs(1, dropout=2), flax_nnx.Rngs(1, dropout=2)),
        (nnx.RngStream(3, tag="a"), flax_nnx.RngStream(3, tag="a")),
        (key, key),
    ]:
        for _ in range(2):
            np.testing.assert_array_equal(ours(X, rngs=a), theirs(X, rngs=b))


def test_it_fails_only_when_a_mask_is_drawn():
    model = Net(nnx.Rngs(params=jax.random.key(0)))
    wanted = (
        r"^Dropout 'Net.dropout': .*no random stream 'dropout'.*nnx.Dropout\(0.5, "
        r"rngs=nnx.Rngs\(dropout=seed\)\).*layer\(x, rngs=.*model.eval\(\)"
    )
    with pytest.raises(ValueError, match=wanted):
        model(X)
    model.eval()
    np.testing.assert_array_equal(model(X), model.linear(X))


@pytest.mark.parametrize("rngs", [None, nnx.Rngs(params=0)])
def test_no_random_stream_in_the_call_either(rngs):
    with pytest.raises(ValueError, match=r"no random stream 'noise'.*noise=seed"):
        nnx.Dropout(0.5, rng_collection="noise")(X, rngs=rngs)


@pytest.mark.parametrize("rngs", [0, "dropout", 1.5])
def test_what_is_no_randomness(rngs):
    wanted = r"^Dropout: rngs must be .*nnx.Rngs\(dropout=seed\)"
    with pytest.raises(TypeError, match=wanted):
        nnx.Dropout(0.5, rngs=rngs)
    with pytest.raises(TypeError, match=wanted):
        nnx.Dropout(0.5)(X, rngs=rngs)


@pytest.mark.parametrize("rate", [-0.1, 1.5, 50])
def test_the_rate_is_a_probability(rate):
    with pytest.raises(ValueError, match=f"from 0 to 1; got {rate}"):
        nnx.Dropout(rate)


def test_integers_cannot_be_dropped():
    with pytest.raises(TypeError, match=r"^Dropout: .*int32.*astype\('float32'\)"):
        nnx.Dropout(0.5, rngs=nnx.Rngs(0))(jnp.ones(3, jnp.int32))


def test_d51_view_of_a_dropout():
    layer = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    view = nnx.view(layer, deterministic=True)
    assert view.deterministic and not layer.deterministic
    assert view.rngs.count is layer.rngs.count
    other = nnx.view(layer, rngs=nnx.Rngs(1))
    assert other.rngs.tag == "dropout" and other.rngs is not layer.rngs
    assert same(mask(other), mask(nnx.Dropout(0.5, rngs=nnx.Rngs(1))))
    assert layer.rngs.count.value == 0


@pytest.mark.parametrize("transform", [nnx.jit, nnx.grad])
def test_each_call_of_a_transform_has_a_mask_of_its_own(transform):
    layer, eager = (nnx.Dropout(0.5, rngs=nnx.Rngs(0)) for _ in range(2))
    call = transform(
        lambda x, layer: layer(x).sum() if transform is nnx.grad else layer(x)
    )
    for _ in range(3):
        assert same(np.asarray(call(X, layer)) != 0, mask(eager))
    assert layer.rngs.count.value == 3


def test_a_rate_may_change():
    layer = nnx.Dropout(0.0, rngs=nnx.Rngs(0))
    assert layer(X) is X
    layer.rate = 1.0
    assert not layer(X).any()
