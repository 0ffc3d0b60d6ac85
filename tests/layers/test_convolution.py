"""Conv: shapes, values against a loop, arguments, errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

IMAGE = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype(np.float32)


def test_values_are_sums_over_windows():
    layer = nnx.Conv(3, 4, (3, 2), (2, 1), padding="VALID", rngs=nnx.Rngs(0))
    kernel, y = np.asarray(layer.kernel.value), layer(IMAGE)
    assert y.shape == (2, 2, 4, 4)
    for i, j in itertools.product(range(2), range(4)):
        window = IMAGE[:, 2 * i : 2 * i + 3, j : j + 2]
        expected = np.einsum("nhwc,hwco->no", window, kernel)
        np.testing.assert_allclose(y[:, i, j], expected, rtol=1e-5, atol=1e-5)


def test_d55_same_keeps_the_spatial_size_and_batch_axes_are_free():
    layer = nnx.Conv(3, 4, (3, 4), kernel_dilation=(1, 2), rngs=nnx.Rngs(0))
    y = layer(IMAGE)
    assert y.shape == (2, 6, 5, 4)
    np.testing.assert_allclose(layer(IMAGE[0]), y[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer(IMAGE[None]), y[None], rtol=1e-5, atol=1e-6)
    assert layer(IMAGE[:0]).shape == (0, 6, 5, 4)


def test_an_int_is_a_window_over_one_axis():
    layer = nnx.Conv(3, 4, 3, rngs=nnx.Rngs(0))
    assert layer.kernel_size == (3,) and layer.kernel_shape == (3, 3, 4)
    assert layer(IMAGE).shape == (2, 6, 5, 4)


def test_sequences_may_be_lists_now_and_later():
    layer = nnx.Conv(3, 4, [3, 3], [1, 1], padding=[1, (0, 2)], rngs=nnx.Rngs(0))
    assert layer.padding == (1, (0, 2)) and layer.strides == (1, 1)
    assert layer(IMAGE).shape == (2, 6, 5, 4)
    layer.padding, layer.strides = [0, [0, 0]], [2, 2]
    assert layer(IMAGE).shape == (2, 2, 2, 4)


def test_the_mask_multiplies_the_kernel_and_may_be_replaced():
    layer = nnx.Conv(3, 4, (3, 2), rngs=nnx.Rngs(0))
    y = layer(IMAGE)
    layer.mask = jnp.zeros(layer.kernel_shape)
    np.testing.assert_array_equal(layer(IMAGE), np.zeros_like(y))
    layer.mask = jnp.ones(layer.kernel_shape)
    np.testing.assert_allclose(layer(IMAGE), y, rtol=1e-6)
    grads = nnx.grad(lambda layer: layer(IMAGE).sum())(layer)
    assert list(grads) == ["bias", "kernel"]


def test_conv_general_dilated_of_the_users():
    calls = []

    def doubled(*args, **options):
        calls.append(options)
        return 2 * jax.lax.conv_general_dilated(*args, **options)

    layer = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    y = layer(IMAGE)
    layer.conv_general_dilated = doubled
    layer.precision = "highest"
    np.testing.assert_allclose(layer(IMAGE), 2 * y, rtol=1e-5, atol=1e-6)
    assert calls[0]["precision"] == "highest"


def test_groups_must_divide_the_channels():
    with pytest.raises(
        ValueError, match=r"^Conv: feature_group_count=2 .*in_features=3"
    ):
        nnx.Conv(3, 4, 3, feature_group_count=2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "options, shape, wanted",
    [
        ({}, (6, 5, 2), r"got \(6, 5, 2\).*in_features=x.shape\[-1\]"),
        ({}, (5, 3), r"2 spatial axes; got \(5, 3\).*x\[\.\.\., None\]"),
        ({"mask": np.ones((3, 3))}, (6, 5, 3), r"Mask needs .* wanted \(3, 3, 3, 4\)"),
        ({"strides": (1, 1, 1)}, (6, 5, 3), "strides must have 2 entries"),
        ({"padding": (1,)}, (6, 5, 3), "padding must have 2 entries"),
        ({"padding": "CAUSAL"}, (6, 5, 3), "only implemented for 1D"),
    ],
)
def test_errors_at_the_call(options, shape, wanted):
    layer = nnx.Conv(3, 4, (3, 3), **options, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=f"^Conv: .*{wanted}"):
        layer(jnp.ones(shape))
