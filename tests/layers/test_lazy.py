"""Sizes that the first inputs tell."""

import copy
import pickle

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnxlite as nnx


def gru_rnn(size, rngs):
    return nnx.RNN(nnx.GRUCell(size, 6, rngs=rngs))


# How to make each layer, given the size of its inputs or None; the shape of an input.
LAYERS = {
    "linear": (lambda n, rngs: nnx.Linear(n, 5, rngs=rngs), (2, 3)),
    "general": (lambda n, rngs: nnx.LinearGeneral(n, (2, 4), rngs=rngs), (2, 3)),
    "general axes": (
        lambda n, rngs: nnx.LinearGeneral(
            n and (4, 3), 5, axis=(1, 2), batch_axis={0: 2}, rngs=rngs
        ),
        (2, 4, 3),
    ),
    "conv": (lambda n, rngs: nnx.Conv(n, 4, (3, 3), rngs=rngs), (2, 5, 5, 3)),
    "conv groups": (
        lambda n, rngs: nnx.Conv(n, 6, (3,), feature_group_count=3, rngs=rngs),
        (2, 5, 3),
    ),
    "transposed": (lambda n, rngs: nnx.ConvTranspose(n, 4, (3,), rngs=rngs), (2, 5, 3)),
    "transposed flipped": (
        lambda n, rngs: nnx.ConvTranspose(n, 4, 3, transpose_kernel=True, rngs=rngs),
        (2, 5, 3),
    ),
    "batch norm": (lambda n, rngs: nnx.BatchNorm(n, rngs=rngs), (4, 3)),
    "layer norm": (lambda n, rngs: nnx.LayerNorm(n, rngs=rngs), (4, 3)),
    "layer norm axes": (
        lambda n, rngs: nnx.LayerNorm(n and 12, feature_axes=(1, 2), rngs=rngs),
        (2, 4, 3),
    ),
    "rms norm": (lambda n, rngs: nnx.RMSNorm(n, rngs=rngs), (4, 3)),
    "group norm": (lambda n, rngs: nnx.GroupNorm(n, 3, rngs=rngs), (4, 5, 3)),
    "group norm size": (
        lambda n, rngs: nnx.GroupNorm(n, None, 1, rngs=rngs),
        (4, 5, 3),
    ),
    "instance norm": (lambda n, rngs: nnx.InstanceNorm(n, rngs=rngs), (4, 5, 3)),
    "lora": (
        lambda n, rngs: nnx.LoRA(
            n, 2, 4, b_initializer=nnx.initializers.ones, rngs=rngs
        ),
        (2, 3),
    ),
    "lora linear": (
        lambda n, rngs: nnx.LoRALinear(n, 4, lora_rank=2, rngs=rngs),
        (2, 3),
    ),
    "gated mlp": (lambda n, rngs: nnx.GatedMLP(n, 6, 5, rngs=rngs), (2, 3)),
    "attention": (
        lambda n, rngs: nnx.MultiHeadAttention(2, n, 8, 8, rngs=rngs),
        (2, 4, 3),
    ),
    "rnn": (gru_rnn, (2, 4, 3)),
    "conv lstm": (
        lambda n, rngs: nnx.RNN(nnx.ConvLSTMCell(n, 2, (3,), rngs=rngs)),
        (2, 4, 5, 3),
    ),
    "bidirectional": (
        lambda n, rngs: nnx.Bidirectional(gru_rnn(n, rngs), gru_rnn(n, rngs)),
        (2, 4, 3),
    ),
    "stack": (
        lambda n, rngs: nnx.Stack(
            lambda rngs: nnx.Linear(n, 3, rngs=rngs), 4, rngs=rngs
        ),
        (2, 3),
    ),
    "sequential": (
        lambda n, rngs: nnx.Sequential(
            nnx.Linear(n, 8, rngs=rngs),
            nnx.BatchNorm(n and 8, rngs=rngs),
            nnx.Dropout(0.5, rngs=rngs),
            nnx.Linear(n and 8, 2, rngs=rngs),
        ),
        (4, 3),
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def made(name, size):
    make, shape = LAYERS[name]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return make(size, nnx.Rngs(0, dropout=1)), x


def values(layer):
    return [
        jax.random.key_data(x) if x.dtype == jax.random.key(0).dtype else x
        for x in jax.tree.leaves(nnx.state(layer))
    ]


def assert_equal(lazy, wanted):
    assert nnx.graphdef(lazy) == nnx.graphdef(wanted)
    for a, b in zip(values(lazy), values(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@every_layer
def test_the_first_call_infers_the_sizes(name):
    (lazy, x), (wanted, _) = made(name, None), made(name, 3)
    for _ in range(2):
        np.testing.assert_allclose(lazy(x), wanted(x), rtol=1e-6, atol=1e-6)
    assert_equal(lazy, wanted)


@every_layer
@pytest.mark.parametrize("through", ["arrays", "shapes", "method", "jit"])
def test_shapes_are_enough_and_nothing_else_is_changed(name, through):
    (lazy, x), (wanted, _) = made(name, None), made(name, 3)
    if through == "arrays":
        assert nnx.lazy_init(lazy, x) is lazy
    elif through == "shapes":
        nnx.lazy_init(lazy, jax.ShapeDtypeStruct(x.shape, x.dtype))
    elif through == "method":
        nnx.lazy_init(lambda x: lazy(x), x)
    else:
        nnx.jit(lambda layer: nnx.lazy_init(layer, x))(lazy)
        np.testing.assert_allclose(lazy(x), wanted(x), rtol=1e-6, atol=1e-6)
        return
    assert_equal(lazy, wanted)


@every_layer
@pytest.mark.parametrize(
    # JAX's initializers are closures, which pickle itself cannot take.
    "copied",
    [copy.deepcopy, nnx.clone, lambda x: pickle.loads(cloudpickle.dumps(x))],
)
def test_a_copy_infers_the_same(name, copied):
    (lazy, x), (wanted, _) = made(name, None), made(name, 3)
    other = copied(lazy)
    nnx.lazy_init(other, x)
    assert_equal(other, wanted)


@every_layer
def test_what_needs_values_names_those_that_miss(name):
    lazy, x = made(name, None)
    paths = [
        nnx.core.paths.format_path(path)
        for path, v in nnx.to_flat_state(nnx.state(lazy))
        if "Uninferred" in repr(v)
    ]
    assert paths
    for use in (nnx.split, lambda m: nnx.Optimizer(m, optax.sgd(0.1))):
        with pytest.raises(nnx.UninferredError, match="nnx.lazy_init") as info:
            use(lazy)
        assert any(repr(path) in str(info.value) for path in paths)
    for transform in (nnx.jit, nnx.grad, nnx.remat):
        call = transform(lambda m, x: m(x).sum())
        with pytest.raises(nnx.UninferredError, match=r"Call nnx.lazy_init\(model, \*"):
            call(lazy, x)
    y = lazy(x)
    assert np.isfinite(np.asarray(y)).all()


def test_errors_name_the_layer_and_its_path():
    class Net(nnx.Module):
        def __init__(self):
            self.blocks = [nnx.Linear(None, 3, rngs=nnx.Rngs(0))]

        def __call__(self, x):
            return self.blocks[0](x)

    net = Net()
    with pytest.raises(
        nnx.UninferredError, match=r"^Linear 'Net.blocks\[0\]': a parameter of shape"
    ):
        nnx.jit(net)(jnp.ones((1, 2)))
    with pytest.raises(nnx.UninferredError, match=r"no value yet for 'blocks\[0\].ker"):
        nnx.split(net)


def test_a_failed_call_leaves_all_as_it_was():
    model = nnx.Conv(None, 8, (3,), feature_group_count=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="feature_group_count=4 does not divide"):
        model(jnp.ones((1, 5, 3)))
    assert model.in_features is None and "None" in repr(model.kernel)
    with pytest.raises(ValueError, match="feature_group_count=4 does not divide"):
        nnx.lazy_init(model, jnp.ones((1, 5, 3)))
    assert model(jnp.ones((1, 5, 8))).shape == (1, 5, 8)


def test_sizes_that_follow_from_the_missing_one_must_be_given():
    with pytest.raises(ValueError, match="give both, too"):
        nnx.MultiHeadAttention(2, None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="give out_features, too"):
        nnx.GatedMLP(None, 4, rngs=nnx.Rngs(0))


def test_training_goes_on_from_inferred_sizes():
    model = nnx.Sequential(
        nnx.Linear(None, 8, rngs=nnx.Rngs(0)),
        nnx.relu,
        nnx.Linear(None, 1, rngs=nnx.Rngs(1)),
    )
    x = jnp.linspace(-1, 1, 32)[:, None]
    nnx.lazy_init(model, x)
    optimizer = nnx.Optimizer(model, optax.adam(0.05))

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: ((m(x) - x**2) ** 2).mean())(model)
        optimizer.update(grads)
        return loss

    first = step(model, optimizer)
    for _ in range(100):
        last = step(model, optimizer)
    assert last < first / 10


def test_a_whole_model_is_made_abstractly_or_in_an_ensemble():
    abstract = nnx.eval_shape(lambda: nnx.Linear(None, 3, rngs=nnx.Rngs(0)))
    assert "Uninferred" in repr(abstract.kernel)

    @nnx.vmap(in_axes=0)
    def make(seed):
        return nnx.Linear(None, 3, rngs=nnx.Rngs(seed))

    models = make(jnp.arange(4))
    assert "Uninferred" in repr(models.kernel)


@pytest.mark.parametrize("wrap", [nnx.WeightNorm, nnx.SpectralNorm])
@pytest.mark.parametrize("how", ["call", "lazy_init"])
def test_a_wrapped_layer_infers_its_sizes(wrap, how):
    layers = []
    for size in (None, 3):
        rngs = nnx.Rngs(0)
        layers.append(wrap(nnx.Linear(size, 4, rngs=rngs), rngs=rngs))
    lazy, wanted = layers
    x = jnp.ones((2, 3))
    if how == "lazy_init":
        nnx.lazy_init(lazy, x)
        assert lazy.layer_instance.kernel.shape == (3, 4)
    np.testing.assert_allclose(lazy(x), wanted(x), rtol=1e-6)
    assert_equal(lazy, wanted)


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: nnx.Linear(3, None, rngs=rngs),
        lambda rngs: nnx.LinearGeneral(3, None, rngs=rngs),
        lambda rngs: nnx.Conv(None, None, (3,), rngs=rngs),
        lambda rngs: nnx.ConvTranspose(3, None, (3,), rngs=rngs),
        lambda rngs: nnx.LoRA(3, 2, None, rngs=rngs),
        lambda rngs: nnx.GatedMLP(3, None, rngs=rngs),
        lambda rngs: nnx.GRUCell(3, None, rngs=rngs),
        lambda rngs: nnx.Embed(None, 3, rngs=rngs),
    ],
)
def test_only_sizes_of_inputs_are_inferred(make):
    with pytest.raises(
        TypeError, match="must be a number; only the size of the inputs"
    ):
        make(nnx.Rngs(0))
