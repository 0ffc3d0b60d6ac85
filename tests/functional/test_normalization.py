"""layer_norm and batch_norm against numpy and against Flax NNX."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nnxlite.functional import batch_norm, batch_norm_inference, layer_norm

RNG = np.random.default_rng(0)
MEAN, VAR = np.zeros(4, np.float32), np.ones(4, np.float32)


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    RNG.bit_generator.state = np.random.PCG64(0).state


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def close(actual, desired, tolerance=2e-5):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def normalized(x, axes, epsilon=1e-6, mask=True):
    mean = x.mean(axes, keepdims=True, where=mask)
    return (x - mean) / np.sqrt(x.var(axes, keepdims=True, where=mask) + epsilon)


@pytest.mark.parametrize("use_fast_variance", [True, False])
@pytest.mark.parametrize("parameters", ["both", "scale", "bias", "neither"])
def test_layer_norm(use_fast_variance, parameters):
    x, scale, bias = normal(2, 3, 4), normal(4), normal(4)
    scale = scale if parameters in ("both", "scale") else None
    bias = bias if parameters in ("both", "bias") else None
    y = layer_norm(x, scale, bias, None, use_fast_variance=use_fast_variance)
    expected = normalized(x, -1) * (1 if scale is None else scale)
    close(y, expected + (0 if bias is None else bias), 1e-4)


def test_layer_norm_over_other_axes():
    x, scale = normal(2, 3, 4), normal(12)
    y = layer_norm(x, scale, None, None, reduction_axes=(0, -1), feature_axes=(-2, -1))
    close(y, normalized(x, (0, 2)) * scale.reshape(3, 4))


def test_without_mean_it_is_rms_norm():
    x, scale = normal(3, 4) + 1, normal(4)
    y = layer_norm(x, scale, None, None, use_mean=False)
    close(y, x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale)


@pytest.mark.parametrize("use_fast_variance", [True, False])
def test_masked_entries_count_for_nothing(use_fast_variance):
    x = normal(3, 4)
    mask = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], bool)
    norm = partial(layer_norm, use_fast_variance=use_fast_variance)
    close(norm(x, None, None, mask), normalized(x, -1, mask=mask))
    changed = np.where(mask, x, 99)
    close(
        np.where(mask, norm(changed, None, None, mask), 0),
        np.where(mask, norm(x, None, None, mask), 0),
    )


@pytest.mark.parametrize("use_fast_variance", [True, False])
@pytest.mark.parametrize("value", [0.0, 3.3, -1e4])
def test_constant_input_gives_no_nan(use_fast_variance, value):
    x = jnp.full((3, 4), value)
    norm = partial(
        layer_norm, scale=VAR, bias=MEAN, use_fast_variance=use_fast_variance
    )
    value, gradient = jax.value_and_grad(lambda x: norm(x, mask=None).sum())(x)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
    nothing = jnp.zeros((3, 4), bool)
    assert jnp.isfinite(norm(x, mask=nothing)).all()


@pytest.mark.parametrize("use_mean", [True, False])
@pytest.mark.parametrize("use_fast_variance", [True, False])
def test_layer_norm_gradients(use_fast_variance, use_mean):
    norm = partial(
        layer_norm, mask=None, use_fast_variance=use_fast_variance, use_mean=use_mean
    )
    arrays = normal(2, 4) * 2, normal(4), normal(4)
    check_grads(norm, arrays, order=2, modes=["fwd", "rev"], rtol=2e-2, atol=2e-2)


def test_complex_input_has_real_variance():
    x = (normal(3, 4) + 1j * normal(3, 4)).astype(np.complex64)
    for fast in (True, False):
        y = layer_norm(x, None, None, None, use_fast_variance=fast)
        close(y, normalized(x, -1))


TYPES = [
    (jnp.float32, jnp.float32, None),
    (jnp.bfloat16, jnp.float32, None),
    (jnp.bfloat16, jnp.bfloat16, None),
    (jnp.float32, jnp.float32, jnp.bfloat16),
    (jnp.float16, jnp.float32, jnp.float16),
]


@pytest.mark.parametrize(("x_dtype", "param_dtype", "dtype"), TYPES)
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "InstanceNorm"])
@pytest.mark.parametrize("use_fast_variance", [True, False])
def test_layer_norm_as_flax(
    oracle, name, x_dtype, param_dtype, dtype, use_fast_variance
):
    nnx = oracle("flax.nnx")
    layer = getattr(nnx, name)(
        4,
        dtype=dtype,
        param_dtype=param_dtype,
        scale_init=jax.nn.initializers.normal(1.0),
        use_fast_variance=use_fast_variance,
        rngs=nnx.Rngs(0),
    )
    x = jnp.asarray(normal(2, 5, 4) * 3 + 1, x_dtype)
    # Two entries that count in each row and column keep the variance away from 0.
    mask = np.asarray(RNG.integers(0, 2, x.shape), bool)
    mask[:, :2] = mask[..., :2] = True
    mask = jnp.asarray(mask)
    bias = None if name == "RMSNorm" else layer.bias[...]
    # E|x|^2 - |E x|^2 of few numbers magnifies the rounding of their sums.
    tolerance = 1e-3 if use_fast_variance else 2e-5
    for where in (None, mask):
        theirs = layer(x, mask=where)
        ours = layer_norm(
            x,
            layer.scale[...],
            bias,
            where,
            dtype=dtype,
            reduction_axes=1 if name == "InstanceNorm" else -1,
            use_fast_variance=use_fast_variance,
            use_mean=name != "RMSNorm",
        )
        assert ours.dtype == theirs.dtype
        close(ours.astype(np.float32), theirs.astype(np.float32), tolerance)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("use_fast_variance", [True, False])
def test_batch_norm(axis, use_fast_variance):
    x, mean, var = normal(5, 4, 4) + 1, normal(4), normal(4) ** 2
    scale, bias = normal(4), normal(4)
    how = {"axis": axis, "momentum": 0.9, "use_fast_variance": use_fast_variance}
    y, new_mean, new_var = batch_norm(x, mean, var, scale, bias, None, **how)
    others = tuple({0, 1, 2} - {axis % 3})
    shape = (4,) if axis == -1 else (4, 1)
    expected = normalized(x, others, 1e-5) * scale.reshape(shape) + bias.reshape(shape)
    close(y, expected)
    close(new_mean, 0.9 * mean + 0.1 * x.mean(others))
    close(new_var, 0.9 * var + 0.1 * x.var(others))
    y = batch_norm_inference(x, mean, var, scale, bias, axis)
    factor = (scale / np.sqrt(var + 1e-5)).reshape(shape)
    close(y, (x - mean.reshape(shape)) * factor + bias.reshape(shape))


def test_batch_norm_mask_weighs_the_statistics():
    x, mask = normal(6, 4), np.array([1, 1, 0, 1, 0, 1], bool)[:, None]
    y, mean, var = batch_norm(x, MEAN, VAR, None, None, mask, momentum=0.0)
    kept = x[mask[:, 0]]
    close(mean, kept.mean(0))
    close(var, kept.var(0))
    close(y[mask[:, 0]], normalized(kept, 0, 1e-5))


def test_empty_batch_keeps_the_running_statistics():
    _, mean, var = batch_norm(np.zeros((0, 4)), MEAN + 2, VAR, None, None, None)
    np.testing.assert_array_equal(mean, MEAN + 2)
    np.testing.assert_array_equal(var, VAR)


def test_no_gradient_through_the_running_statistics():
    def statistics(x):
        return sum(s.sum() for s in batch_norm(x, MEAN, VAR, None, None, None)[1:])

    assert not jax.grad(statistics)(normal(5, 4)).any()


def test_batch_norm_gradients():
    arrays = normal(5, 4), normal(4), normal(4)
    check_grads(
        lambda x, scale, bias: batch_norm(x, MEAN, VAR, scale, bias, None)[0],
        arrays,
        order=2,
        modes=["fwd", "rev"],
        rtol=2e-2,
        atol=2e-2,
    )
    check_grads(batch_norm_inference, (arrays[0], MEAN, VAR, *arrays[1:]), order=2)


@pytest.mark.parametrize(("x_dtype", "param_dtype", "dtype"), TYPES)
@pytest.mark.parametrize("use_fast_variance", [True, False])
def test_batch_norm_as_flax(oracle, x_dtype, param_dtype, dtype, use_fast_variance):
    nnx = oracle("flax.nnx")
    layer = nnx.BatchNorm(
        4,
        dtype=dtype,
        param_dtype=param_dtype,
        scale_init=jax.nn.initializers.normal(1.0),
        use_fast_variance=use_fast_variance,
        rngs=nnx.Rngs(0),
    )
    mean, var, scale, bias = (
        v[...] for v in (layer.mean, layer.var, layer.scale, layer.bias)
    )
    for _ in range(3):
        x = jnp.asarray(normal(5, 3, 4) * 3 + 1, x_dtype)
        mask = jnp.asarray(RNG.integers(0, 2, (5, 3, 1)), bool)
        theirs = layer(x, mask=mask)
        ours, mean, var = batch_norm(
            x,
            mean,
            var,
            scale,
            bias,
            mask,
            dtype=dtype,
            use_fast_variance=use_fast_variance,
        )
        assert ours.dtype == theirs.dtype
        assert mean.dtype == var.dtype == jnp.float32
        close(ours.astype(np.float32), theirs.astype(np.float32))
        close(mean, layer.mean[...])
        close(var, layer.var[...])
    layer.eval()
    theirs = layer(x, use_running_average=True)
    ours = batch_norm_inference(x, mean, var, scale, bias, dtype=dtype)
    assert ours.dtype == theirs.dtype
    close(ours.astype(np.float32), theirs.astype(np.float32))


@pytest.mark.parametrize("use_fast_variance", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
def test_replicas_share_statistics(use_fast_variance, with_mask):
    x = normal(3, 5, 4)
    mask = RNG.integers(0, 2, (3, 5, 1)).astype(bool) if with_mask else None
    norm = partial(batch_norm, use_fast_variance=use_fast_variance)

    def replica(x, mask):
        return norm(x, MEAN, VAR, None, None, mask, axis_name="replicas")

    y, mean, var = jax.vmap(replica, axis_name="replicas")(x, mask)
    whole = None if mask is None else mask.reshape(15, 1)
    expected = norm(x.reshape(15, 4), MEAN, VAR, None, None, whole)
    close(y.reshape(15, 4), expected[0])
    close(mean, np.broadcast_to(expected[1], (3, 4)))
    close(var, np.broadcast_to(expected[2], (3, 4)))


def test_groups_of_replicas():
    norm = partial(
        layer_norm,
        scale=None,
        bias=None,
        mask=None,
        axis_name="replicas",
        axis_index_groups=((0, 1), (2, 3)),
    )
    jaxpr = str(jax.make_jaxpr(norm, axis_env=[("replicas", 4)])(normal(5, 4)))
    assert jaxpr.count("axis_index_groups=((0, 1), (2, 3))") == 2  # E x and E|x|^2
    assert "8.0:f32[]" in jaxpr  # the entries of a group


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: layer_norm(normal(2, 3), VAR, None, None),
            r"shape \(4,\) do not fit x of shape \(2, 3\) with 3 features along its"
            r" axes \(1,\).*num_features=3",
        ),
        (
            lambda: batch_norm(normal(2, 3), MEAN, VAR, None, None, None),
            r"\(4,\) do not fit x of shape \(2, 3\).*num_features=3",
        ),
        (
            lambda: batch_norm_inference(normal(4, 3), MEAN, VAR, None, None),
            r"do not fit x of shape \(4, 3\).*Transpose x",
        ),
        (
            lambda: layer_norm(normal(4), VAR, None, None, reduction_axes=(-2, -1)),
            "reduction_axes: axis -2 is out of bounds",
        ),
        (
            lambda: layer_norm(normal(4), VAR, None, None, feature_axes=1),
            "feature axes: axis 1 is out of bounds",
        ),
    ],
)
def test_explains_what_does_not_fit(call, match):
    with pytest.raises(ValueError, match=match):
        call()
