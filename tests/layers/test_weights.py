"""WeightNorm, SpectralNorm and LoRA: what is stored, and what is computed with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnxlite as nnx

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def close(actual, desired, tolerance=1e-5):
    actual, desired = np.asarray(actual), np.asarray(desired)
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def linear(rngs):
    return nnx.Linear(4, 5, bias_init=jax.nn.initializers.normal(1.0), rngs=rngs)


def weight_normed(**options):
    rngs = nnx.Rngs(0)
    return nnx.WeightNorm(linear(rngs), **options, rngs=rngs)


def spectral_normed(**options):
    rngs = nnx.Rngs(0)
    return nnx.SpectralNorm(linear(rngs), **options, rngs=rngs)


WRAPPERS = [weight_normed, spectral_normed]
every_wrapper = pytest.mark.parametrize("make", WRAPPERS)


# ------------------------------------------------------------- nothing is overwritten


@every_wrapper
def test_d54_google_flax_5576_a_call_does_not_change_the_stored_weights(make):
    layer = make()
    kernel = layer.layer_instance.kernel
    before = np.array(kernel[...])
    twin = make()
    close(nnx.jit(lambda m, x: m(x))(twin, X), layer(X))
    np.testing.assert_array_equal(twin.layer_instance.kernel[...], before)
    np.testing.assert_array_equal(kernel[...], before)
    assert layer.layer_instance.kernel is kernel


@every_wrapper
def test_an_exception_inside_leaves_the_stored_weights(make):
    layer = make()
    before = np.array(layer.layer_instance.kernel[...])
    with pytest.raises(ValueError, match="Linear 'WeightNorm.layer|Linear 'SpectralNo"):
        layer(X[:, :3])
    np.testing.assert_array_equal(layer.layer_instance.kernel[...], before)


@every_wrapper
@pytest.mark.parametrize(
    "run",
    [
        lambda layer, x: nnx.remat(lambda m, x: m(x))(layer, x),
        lambda layer, x: nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(layer, x),
        lambda layer, x: nnx.cond(True, lambda m: m(x), lambda m: m(x) * 0, layer),
        lambda layer, x: jax.jit(lambda x: layer(x))(x),
    ],
    ids=["remat", "vmap", "cond", "jax.jit"],
)
def test_under_transforms(make, run):
    layer, twin = make(), make()
    layer.eval()
    twin.eval()
    before = np.array(layer.layer_instance.kernel[...])
    close(run(layer, X), twin(X))
    np.testing.assert_array_equal(layer.layer_instance.kernel[...], before)


# ------------------------------------------------------------- weight norm


def test_scales_are_parameters_of_their_own():
    layer = weight_normed()
    scale = layer.scales["kernel",]
    assert isinstance(scale, nnx.Param) and scale.shape == (5,)
    scale[...] = jnp.arange(5.0)
    kernel = layer.layer_instance.kernel[...]
    wanted = kernel / np.linalg.norm(kernel, axis=0) * np.arange(5)
    close(layer(X), X @ wanted + layer.layer_instance.bias[...])
    grads = nnx.grad(lambda m: (m(X) ** 2).sum())(layer)
    assert np.abs(grads["scales"]["kernel",][...]).max() > 0
    # Scaling what is stored changes nothing, so its gradient has no such part.
    along = (np.asarray(grads["layer_instance"]["kernel"][...]) * kernel).sum(0)
    close(along, np.zeros(5), 1e-4)


@pytest.mark.parametrize(
    "feature_axes, shape", [(-1, (5,)), (0, (4,)), ((0, 1), (4, 5)), (None, ())]
)
def test_axes_of_features(feature_axes, shape):
    layer = weight_normed(
        feature_axes=feature_axes, scale_init=jax.nn.initializers.normal(1.0)
    )
    scale = layer.scales["kernel",][...]
    assert scale.shape == shape
    kernel = np.asarray(layer.layer_instance.kernel[...])
    axes = {-1: (0,), 0: (1,), None: (0, 1)}.get(feature_axes, ())
    length = np.sqrt((kernel**2).sum(axes, keepdims=True))
    scale = scale.reshape(length.shape) if feature_axes != 0 else scale[:, None]
    close(layer(X), X @ (kernel / length * scale) + layer.layer_instance.bias[...])


def test_weight_norm_as_torch(oracle):
    torch = oracle("torch")
    layer = weight_normed()
    net = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 5), dim=0)
    with torch.no_grad():
        net.bias.copy_(torch.tensor(np.asarray(layer.layer_instance.bias[...])))
        stored = net.parametrizations.weight
        stored.original1.copy_(
            torch.tensor(np.asarray(layer.layer_instance.kernel[...]).T)
        )
        stored.original0.copy_(torch.arange(1.0, 6.0)[:, None])
    layer.scales["kernel",][...] = jnp.arange(1.0, 6.0)
    y = net(torch.tensor(X))
    close(layer(X), y.detach().numpy())
    (y**2).sum().backward()
    grads = nnx.grad(lambda m: (m(X) ** 2).sum())(layer)
    close(grads["scales"]["kernel",][...], stored.original0.grad.numpy()[:, 0], 1e-4)
    close(grads["layer_instance"]["kernel"][...], stored.original1.grad.numpy().T, 1e-4)


def test_which_weights_are_normalized():
    rngs = nnx.Rngs(0)
    attention = nnx.MultiHeadAttention(2, 8, rngs=rngs)
    layer = nnx.WeightNorm(
        attention,
        variable_filter=nnx.All(nnx.PathContains("query"), nnx.PathContains("kernel")),
        rngs=rngs,
    )
    assert list(layer.scales) == [("query", "kernel")]
    x = jnp.ones((2, 3, 8))
    assert layer(x, is_causal=True).shape == x.shape
    with pytest.raises(
        ValueError, match="WeightNorm: no Param of Linear matches.*bias"
    ):
        weight_normed(variable_filter=nnx.PathContains("nothing"))


# ------------------------------------------------------------- spectral norm


def test_power_iteration_finds_the_largest_singular_value():
    layer = spectral_normed()
    for _ in range(100):
        y = layer(X)
    kernel = np.asarray(layer.layer_instance.kernel[...])
    value = np.linalg.norm(kernel, ord=2)
    close(layer.batch_stats["kernel", "sigma"][...], value)
    close(y, X @ (kernel / value) + layer.layer_instance.bias[...])


def test_evaluation_keeps_the_statistics():
    layer = spectral_normed()
    layer(X)
    layer.eval()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(layer)))
    one, other = layer(X), layer(X, update_stats=False)
    np.testing.assert_array_equal(one, other)
    after = nnx.to_pure_dict(nnx.state(layer))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    layer(X, update_stats=True)
    u = layer.batch_stats["kernel", "u"][...]
    assert (u != before["batch_stats"]["kernel", "u"]).any()


def test_spectral_norm_as_torch(oracle):
    torch = oracle("torch")
    layer = spectral_normed()
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 5)
    with torch.no_grad():
        net.bias.copy_(torch.tensor(np.asarray(layer.layer_instance.bias[...])))
        net.weight.copy_(torch.tensor(np.asarray(layer.layer_instance.kernel[...]).T))
    net = torch.nn.utils.parametrizations.spectral_norm(net, n_power_iterations=30)
    for _ in range(30):
        ours, theirs = layer(X), net(torch.tensor(X))
    close(ours, theirs.detach().numpy())
    (theirs**2).sum().backward()
    grads = nnx.grad(lambda m: (m(X) ** 2).sum())(layer)
    wanted = net.parametrizations.weight.original.grad.numpy().T
    close(grads["layer_instance"]["kernel"][...], wanted, 1e-4)


def test_weights_that_are_no_matrices():
    rngs = nnx.Rngs(0)
    conv = nnx.Conv(2, 3, (3,), rngs=rngs)
    with pytest.raises(ValueError, match=r"'kernel' has the shape \(3, 2, 3\)"):
        nnx.SpectralNorm(conv, error_on_non_matrix=True, rngs=rngs)
    layer = nnx.SpectralNorm(conv, n_steps=50, rngs=rngs)
    x = jnp.ones((1, 5, 2))
    matrix = np.asarray(conv.kernel[...]).reshape(-1, 3)
    y = (conv(x) - conv.bias[...]) / np.linalg.norm(matrix, ord=2) + conv.bias[...]
    close(layer(x), y)


def test_a_weight_of_zeros_stays_zero():
    for layer in (weight_normed(), spectral_normed()):
        layer.layer_instance.kernel[...] = jnp.zeros((4, 5))
        close(layer(X), np.broadcast_to(layer.layer_instance.bias[...], (3, 5)))
        grads = nnx.grad(lambda m: m(X).sum())(layer)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


# ------------------------------------------------------------- LoRA


def test_training_only_the_low_rank_map_leaves_the_weight_as_it_is():
    model = nnx.LoRALinear(4, 5, lora_rank=2, rngs=nnx.Rngs(0))
    before = np.array(model.kernel[...])
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.LoRAParam)
    target = jnp.ones((3, 5))

    @nnx.jit
    def step(model, optimizer):
        wrt = nnx.DiffState(0, nnx.LoRAParam)
        loss, grads = nnx.value_and_grad(
            lambda m: ((m(X) - target) ** 2).mean(), argnums=wrt
        )(model)
        optimizer.update(grads)
        return loss

    losses = [step(model, optimizer) for _ in range(100)]
    assert losses[-1] < losses[0] / 10
    np.testing.assert_array_equal(model.kernel[...], before)


def test_a_lora_linear_takes_the_state_of_a_linear():
    linear = nnx.Linear(4, 5, rngs=nnx.Rngs(1))
    model = nnx.LoRALinear(4, 5, lora_rank=2, rngs=nnx.Rngs(0))
    nnx.update(model, nnx.state(linear))
    np.testing.assert_array_equal(model(X), linear(X))


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="base_module must be a Module with a __call__"):
        nnx.LoRA(3, 2, 4, base_module=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"LoRA: a of shape \(3, 2\) wants inputs of"):
        nnx.LoRA(3, 2, 4, rngs=nnx.Rngs(0))(X)


@pytest.mark.parametrize("wrap", [nnx.WeightNorm, nnx.SpectralNorm])
@pytest.mark.parametrize("size", [1e-3, 0.0])
def test_half_precision_is_computed_in_float32(wrap, size):
    found = []
    for dtype in (jnp.float16, jnp.float32):
        rngs = nnx.Rngs(0)
        init = jax.nn.initializers.normal(size)
        inner = nnx.Linear(64, 4, param_dtype=dtype, kernel_init=init, rngs=rngs)
        if found:
            inner.kernel[...] = found[0][1]
        layer = wrap(inner, param_dtype=dtype, rngs=rngs)
        found.append((layer(jnp.ones((1, 64), dtype)), inner.kernel[...]))
    close(np.float32(found[0][0]), found[1][0], 3e-2)


def test_a_failed_call_leaves_the_statistics():
    layer = spectral_normed()
    before = np.array(layer.batch_stats["kernel", "u"][...])
    with pytest.raises(ValueError, match="Linear 'SpectralNorm.layer_instance'"):
        layer(X[:, :2])
    np.testing.assert_array_equal(layer.batch_stats["kernel", "u"][...], before)


def test_a_policy_is_a_policy():
    with pytest.raises(TypeError, match="Linear: policy must be an nnx.Policy.*'bf16'"):
        nnx.Linear(2, 3, policy="bf16", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(4, 5\) has no feature_axes=5"):
        weight_normed(feature_axes=5)
    with pytest.raises(ValueError, match="^Linear: .*axis -1 is out of bounds"):
        nnx.Linear(2, 3, rngs=nnx.Rngs(0))(1.0)
