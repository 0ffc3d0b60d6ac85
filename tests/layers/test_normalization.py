"""BatchNorm and LayerNorm: statistics, modes, masks, axes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

X = np.random.default_rng(0).normal(1, 2, (8, 4)).astype(np.float32)
MASK = np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)[:, None]


def close(actual, desired, tolerance=1e-5):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def normalized(x, axis, epsilon, **options):
    mean = x.mean(axis, keepdims=True, **options)
    return (x - mean) / np.sqrt(x.var(axis, keepdims=True, **options) + epsilon)


def test_d53_batchnorm_statistics():
    layer = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    mean, var = np.zeros(4), np.ones(4)
    for _ in range(3):
        close(layer(X), normalized(X, 0, 1e-5))
        mean = 0.99 * mean + 0.01 * X.mean(0)
        var = 0.99 * var + 0.01 * X.var(0)
        close(layer.mean.value, mean)
        close(layer.var.value, var)
    layer.eval()
    close(layer(X), (X - mean) / np.sqrt(var + 1e-5))
    close(layer.mean.value, mean)
    assert type(layer.mean) is type(layer.var) is nnx.BatchStat


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_d53_statistics_are_float32(dtype):
    options = {"dtype": dtype, "param_dtype": jnp.bfloat16}
    layer = nnx.BatchNorm(4, **options, rngs=nnx.Rngs(0))
    layer(X.astype(jnp.bfloat16))
    assert layer.mean.dtype == layer.var.dtype == jnp.float32
    assert layer.scale.dtype == layer.bias.dtype == jnp.bfloat16


@pytest.mark.parametrize("argument", [None, True, False])
@pytest.mark.parametrize("attribute", [None, True, False])
def test_d49_use_running_average(attribute, argument):
    layer = nnx.BatchNorm(4, use_running_average=attribute, rngs=nnx.Rngs(0))
    if attribute is None and argument is None:
        wanted = (
            r"^BatchNorm: `use_running_average` is None.*layer\(x, use_running_average="
            r".*nnx.BatchNorm\(\.\.\., use_running_average=.*model.eval\(\).*nnx.view"
        )
        with pytest.raises(ValueError, match=wanted):
            layer(X)
        return
    layer(X, use_running_average=argument)
    is_running = attribute if argument is None else argument
    assert bool((layer.mean.value == 0).all()) is is_running


def test_d50_train_and_eval_reach_every_layer():
    rngs = nnx.Rngs(0)
    norm, dropout = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), norm, nnx.Sequential(dropout))
    for is_eval, switch in [(True, model.eval), (False, model.train)]:
        switch()
        assert norm.use_running_average is dropout.deterministic is is_eval
    with pytest.raises(ValueError, match="'determinstic'.*check the spelling"):
        model.set_attributes(determinstic=True)


def test_d51_view_of_a_batchnorm():
    layer = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    view = nnx.view(layer, use_running_average=True)
    assert view.use_running_average and not layer.use_running_average
    assert view.mean is layer.mean
    layer(X)
    close(view(X), layer(X, use_running_average=True))
    with pytest.raises(ValueError, match=r"determinstic: see nnx.view_info"):
        nnx.view(layer, determinstic=True)


@pytest.mark.parametrize("use_running_average", [True, False])
def test_batchnorm_over_another_axis(use_running_average):
    options = {"momentum": 0.5, "use_running_average": use_running_average}
    last = nnx.BatchNorm(4, **options, rngs=nnx.Rngs(0))
    first = nnx.BatchNorm(4, axis=1, **options, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    close(first(np.moveaxis(x, -1, 1)), np.moveaxis(np.asarray(last(x)), -1, 1))
    close(first.mean.value, last.mean.value)


def test_masked_entries_count_for_nothing():
    layer = nnx.BatchNorm(4, momentum=0.0, rngs=nnx.Rngs(0))
    close(layer(X, mask=MASK)[:5], normalized(X[:5], 0, 1e-5))
    close(layer.mean.value, X[:5].mean(0))
    layer = nnx.LayerNorm(8, rngs=nnx.Rngs(0))
    close(layer(X.T, mask=MASK.T)[:, :5], normalized(X.T[:, :5], -1, 1e-6))


def test_statistics_over_the_lanes_of_vmap():
    layer = nnx.BatchNorm(4, axis_name="lanes", rngs=nnx.Rngs(0))
    call = jax.vmap(lambda x: nnx.clone(layer)(x), axis_name="lanes")
    close(call(X.reshape(2, 4, 4)).reshape(8, 4), normalized(X, 0, 1e-5))


def test_google_deepmind_dm_haiku_788_running_statistics_over_lanes():
    layer = nnx.BatchNorm(4, axis_name="lanes", momentum=0.5, rngs=nnx.Rngs(0))
    whole = nnx.BatchNorm(4, momentum=0.5, rngs=nnx.Rngs(0))
    wanted = whole(X)

    @nnx.vmap(axis_name="lanes", in_axes=(nnx.StateAxes({...: None}), 0))
    def call(layer, x):
        return layer(x)

    close(call(layer, X.reshape(2, 4, 4)).reshape(8, 4), wanted)
    close(layer.mean.value, whole.mean.value)
    close(layer.var.value, whole.var.value)
    layer.eval()  # and then the axis need not be there
    whole.eval()
    close(layer(X), whole(X))


def test_groups_of_devices_may_be_lists():
    options = {"axis_name": "devices", "axis_index_groups": [[0]]}
    layer = nnx.BatchNorm(4, **options, rngs=nnx.Rngs(0))
    call = jax.pmap(lambda x: nnx.clone(layer)(x), axis_name="devices")
    close(call(X[None])[0], normalized(X, 0, 1e-5))
    layer.axis_index_groups = [[0]]
    close(call(X[None])[0], normalized(X, 0, 1e-5))


def test_layernorm_over_the_lanes_of_vmap():
    options = {"use_scale": False, "use_bias": False, "rngs": nnx.Rngs(0)}
    layer = nnx.LayerNorm(2, axis_name="lanes", **options)
    halves = np.stack([X[:, :2], X[:, 2:]])
    y = jax.vmap(layer, axis_name="lanes")(halves)
    close(np.concatenate(y, axis=1), normalized(X, -1, 1e-6))


def test_layernorm_values():
    layer = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
    close(layer(X), normalized(X, -1, 1e-6))
    layer.scale.value, layer.bias.value = jnp.arange(4.0), jnp.ones(4)
    close(layer(X), normalized(X, -1, 1e-6) * np.arange(4) + 1)


def test_layernorm_over_several_axes():
    x = X.reshape(2, 4, 4)
    layer = nnx.LayerNorm(
        16, reduction_axes=[1, 2], feature_axes=[1, 2], rngs=nnx.Rngs(0)
    )
    close(layer(x), normalized(x, (1, 2), 1e-6))
    layer.reduction_axes = [2]
    close(layer(x), normalized(x, 2, 1e-6))


def test_slow_variance_does_not_cancel():
    x = X + 1e4
    options = {"use_fast_variance": False, "rngs": nnx.Rngs(0)}
    close(nnx.LayerNorm(4, **options)(x), normalized(np.float64(x), -1, 1e-6), 1e-3)
    close(nnx.BatchNorm(4, **options)(x), normalized(np.float64(x), 0, 1e-5), 1e-3)


@pytest.mark.parametrize("kind", [nnx.BatchNorm, nnx.LayerNorm])
def test_wrong_number_of_features(kind):
    layer = kind(4, rngs=nnx.Rngs(0))
    wanted = rf"^{kind.__name__}: .*shape \(4,\).*\(8, 3\).*num_features=3"
    with pytest.raises(ValueError, match=wanted):
        layer(X[:, :3])


def test_an_error_leaves_the_statistics():
    layer = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="num_features=3"):
        layer(X[:, :3])
    assert (layer.mean.value == 0).all() and (layer.var.value == 1).all()


def test_d80_statistics_move_once_under_jit_and_grad():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.linear(x))

    @nnx.jit
    def step(model):
        return nnx.value_and_grad(lambda model: (model(X) ** 2).mean())(model)

    model = Model(nnx.Rngs(0))
    twin = nnx.clone(model)
    for _ in range(2):
        _, grads = step(model)
        twin(X)
    close(model.norm.mean.value, twin.norm.mean.value)
    close(model.norm.var.value, twin.norm.var.value)
    assert sorted(grads) == ["linear", "norm"]
    assert sorted(grads["norm"]) == ["bias", "scale"]


def test_statistics_carry_no_gradient():
    layer = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    def loss(x):
        layer(x)
        return layer.mean.value.sum() + layer.var.value.sum()

    assert (nnx.grad(loss)(jnp.asarray(X)) == 0).all()


def test_a_plain_jax_transform_names_the_statistics():
    layer = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    with pytest.raises(nnx.TraceContextError, match=r"BatchNorm.mean.*nnx.grad"):
        jax.grad(lambda x: layer(x).sum())(jnp.asarray(X))
    assert (layer.mean.value == 0).all()
    jax.grad(lambda x: layer(x, use_running_average=True).sum())(jnp.asarray(X))


def test_group_norm_over_some_axes():
    """Flax 0.12 repeats the statistics along the wrong axis here."""
    x = np.random.default_rng(0).normal(1, 2, (2, 3, 5, 6)).astype("f4")
    layer = nnx.GroupNorm(6, 2, reduction_axes=(2, 3), rngs=nnx.Rngs(0))
    groups = x.reshape(2, 3, 5, 2, 3)
    mean, var = (f(groups, axis=(2, 4), keepdims=True) for f in (np.mean, np.var))
    expected = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)

    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_group_norm_with_a_mask():
    x = jnp.array([[1.0, 3.0, 5.0, 90.0]])
    layer = nnx.GroupNorm(4, 2, rngs=nnx.Rngs(0))
    masked = layer(x, mask=jnp.array([True, True, True, False]))

    np.testing.assert_allclose(masked[0, :3], [-1.0, 1.0, 0.0], atol=1e-5)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((None, None), "Either `num_groups` or `group_size`"),
        ((2, 2), "Either `num_groups` or `group_size`"),
        ((4, None), "6 features cannot be divided into 4 groups"),
        ((0, None), "6 features cannot be divided into 0 groups"),
        ((None, 4), "6 features cannot be divided into 1 groups of 4"),
        ((12, None), "6 features cannot be divided into 12 groups"),
    ],
)
def test_groups_that_do_not_fit(groups, message):
    with pytest.raises(ValueError, match=message):
        nnx.GroupNorm(6, *groups, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("shape", "axes"), [((2, 5), None), ((2, 3, 6), (0, 1))])
def test_inputs_that_do_not_fit_group_norm(shape, axes):
    layer = nnx.GroupNorm(6, 2, reduction_axes=axes, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="GroupNorm: x of shape .* last axis must be"):
        layer(jnp.ones(shape))


def test_instance_norm_keeps_examples_apart():
    layer = nnx.InstanceNorm(2, feature_axes=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"InstanceNorm: .*feature_axes=0 for x of"):
        layer(jnp.ones((2, 3)))
