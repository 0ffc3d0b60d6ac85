"""conv against a direct sum in numpy and against Flax NNX."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from nnxlite.functional import conv

RNG = np.random.default_rng(0)
PAD_MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect", "CAUSAL": "constant"}


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    RNG.bit_generator.state = np.random.PCG64(0).state


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def close(actual, desired, tolerance=2e-5):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def pads(padding, size, extent, stride):
    """(low, high) of one axis and how `numpy.pad` fills it, by the definitions."""
    if padding == "SAME":
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        return (total // 2, total - total // 2), "constant"
    if padding == "VALID":
        return (0, 0), "constant"
    if padding == "CAUSAL":
        return (extent - 1, 0), "constant"
    if padding in PAD_MODES:
        return ((extent - 1) // 2, extent // 2), PAD_MODES[padding]
    return (padding, padding) if isinstance(padding, int) else padding, "constant"


def direct(x, kernel, bias, strides, padding, dilation, groups=1):
    """One image (*spatial, channels) at a time, one window at a time."""
    rank = kernel.ndim - 2
    extents = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
    per = padding if isinstance(padding, tuple) else (padding,) * rank
    both = [pads(per[i], x.shape[i], extents[i], strides[i]) for i in range(rank)]
    x = np.pad(x, [pair for pair, _ in both] + [(0, 0)], both[0][1])
    outs = [(x.shape[i] - extents[i]) // strides[i] + 1 for i in range(rank)]
    y = np.zeros((*outs, kernel.shape[-1]), np.float32)
    inputs = np.split(x, groups, -1)
    kernels = np.split(kernel, groups, -1)
    for at in itertools.product(*map(range, outs)):
        window = tuple(
            slice(a * s, a * s + e, d)
            for a, s, e, d in zip(at, strides, extents, dilation, strict=True)
        )
        y[at] = np.concatenate(
            [
                np.tensordot(part[window], weight, rank + 1)
                for part, weight in zip(inputs, kernels, strict=True)
            ]
        )
    return y + bias


@pytest.mark.parametrize(
    "padding", ["SAME", "VALID", 0, 1, "CIRCULAR", "REFLECT", (1, (0, 2))]
)
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (1, 2)])
@pytest.mark.parametrize("window", [(3, 2), (1, 3)])
def test_two_spatial_axes(padding, strides, dilation, window):
    x, kernel, bias = normal(6, 7, 2), normal(*window, 2, 3), normal(3)
    y = conv(x, kernel, bias, None, strides, padding, kernel_dilation=dilation)
    close(y, direct(x, kernel, bias, strides, padding, dilation))


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL"])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_one_spatial_axis_and_any_batch(padding, batch, dilation):
    x, kernel = normal(*batch, 8, 4), normal(3, 2, 6)
    y = conv(
        x,
        kernel,
        np.ones(6, np.float32),
        None,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=2,
    )
    images = x.reshape(-1, 8, 4)
    expected = [direct(i, kernel, 1, (1,), padding, (dilation,), 2) for i in images]
    close(y, np.reshape(expected, y.shape) if expected else y)
    assert y.shape[: len(batch)] == batch


def test_three_spatial_axes_and_none():
    x, kernel = normal(2, 4, 5, 3, 2), normal(2, 2, 2, 2, 1)
    y = conv(x, kernel, None, None, 1, "VALID")
    close(y[1], direct(x[1], kernel, 0, (1, 1, 1), "VALID", (1, 1, 1)))
    pointwise = normal(2, 3)
    close(conv(x, pointwise, None, None), x @ pointwise)


def test_causal_output_sees_no_later_input():
    x, kernel = normal(10, 1), normal(3, 1, 1)
    changed = np.concatenate([x[:6], x[6:] + 1])
    before = conv(x, kernel, None, None, padding="CAUSAL", kernel_dilation=2)
    after = conv(changed, kernel, None, None, padding="CAUSAL", kernel_dilation=2)
    np.testing.assert_array_equal(before[:6], after[:6])
    assert (before[6:] != after[6:]).all()


@pytest.mark.parametrize("mask_type", [bool, np.float32, np.int32])
def test_mask_multiplies_the_kernel_and_keeps_its_type(mask_type):
    x, kernel = normal(5, 2).astype(jnp.bfloat16), normal(3, 2, 4).astype(jnp.bfloat16)
    mask = RNG.integers(0, 2, kernel.shape).astype(mask_type)
    y = conv(x, kernel, None, mask)
    assert y.dtype == jnp.bfloat16
    expected = conv(x, np.where(mask, kernel, jnp.bfloat16(0)), None, None)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2, "padding": "VALID"},
        {"padding": [(1, 2), (0, 1)], "input_dilation": (2, 1)},
        {"padding": "CIRCULAR", "kernel_dilation": 2},
        {"padding": "REFLECT"},
        {"padding": 2, "feature_group_count": 2},
    ],
)
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_as_flax(oracle, options, dtype):
    nnx = oracle("flax.nnx")
    layer = nnx.Conv(
        2,
        4,
        (3, 3),
        dtype=dtype,
        bias_init=jax.nn.initializers.normal(),
        rngs=nnx.Rngs(0),
        **options,
    )
    if isinstance(options.get("padding"), list):
        options = options | {"padding": tuple(options["padding"])}
    for shape in ((6, 5, 2), (3, 6, 5, 2), (2, 3, 6, 5, 2)):
        x = jnp.asarray(normal(*shape))
        y = conv(x, layer.kernel[...], layer.bias[...], None, dtype=dtype, **options)
        assert y.dtype == layer(x).dtype
        close(y.astype(np.float32), layer(x).astype(np.float32))


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR", "REFLECT"])
def test_gradients(padding):
    arrays = normal(2, 5, 2), normal(3, 2, 3), normal(3)
    check_grads(
        lambda x, kernel, bias: conv(x, kernel, bias, None, 2, padding),
        arrays,
        order=2,
        modes=["fwd", "rev"],
        eps=1e-2,
    )


def test_hands_on_what_is_given():
    seen = []

    def recording(*args, **options):
        seen.append({name: options.get(name) for name in ("precision", "out_sharding")})
        assert "out_sharding" not in options
        return lax.conv_general_dilated(*args, **options)

    x, kernel = normal(5, 2).astype(jnp.bfloat16), normal(3, 2, 4).astype(jnp.bfloat16)
    y = conv(
        x,
        kernel,
        None,
        None,
        precision="highest",
        conv_general_dilated=recording,
        preferred_element_type=jnp.float32,
    )
    assert y.dtype == jnp.float32
    assert seen == [{"precision": "highest", "out_sharding": None}]


@pytest.mark.parametrize(
    ("x", "kernel", "options", "match"),
    [
        ((6, 2), (3, 3, 2, 4), {}, r"2 spatial axes; got \(6, 2\).*x\[\.\.\., None\]"),
        (
            (6, 5),
            (3, 2, 4),
            {},
            r"\(\*batch, \*spatial, 2\).*got \(6, 5\).*in_features",
        ),
        ((6, 5), (3, 2, 4), {"feature_group_count": 2}, r"\*spatial, 4\)"),
        ((6, 2), (3, 2, 4), {"strides": (1, 2)}, "strides must have 1 entries"),
        ((6, 2), (3, 2, 4), {"padding": (1, 2)}, "padding must have 1 entries"),
        ((6, 2), (3, 2, 4), {"kernel_dilation": (1, 2)}, "kernel_dilation must have"),
        ((6, 2), (3, 2, 4), {"input_dilation": (1, 2)}, "input_dilation must have"),
        (
            (6, 6, 2),
            (3, 3, 2, 4),
            {"padding": "CAUSAL"},
            r"only implemented for 1D .* 2 spatial axes\. Give \(low, high\)",
        ),
    ],
)
def test_explains_what_does_not_fit(x, kernel, options, match):
    with pytest.raises(ValueError, match=match):
        conv(normal(*x), normal(*kernel), None, None, **options)


def test_explains_a_wrong_mask():
    match = r"same shape as the kernel: got \(2, 4\).*jnp.broadcast_to\(mask"
    with pytest.raises(ValueError, match=match):
        conv(normal(6, 2), normal(3, 2, 4), None, np.ones((2, 4)))
