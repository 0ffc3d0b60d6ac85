"""Numerical gradients of every function of the package; positions, odd ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nnxlite import functional as F

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(actual, desired, tolerance=1e-5):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


X, FEATURES = normal(3, 4), normal(4, seed=1)
IMAGES = normal(2, 6, 5, 4)
# Far enough from each other for the largest to stay the largest.
SPACED = jnp.argsort(IMAGES.ravel()).reshape(IMAGES.shape) / 20
HEADS, KEYS = normal(2, 5, 4, 6), normal(2, 5, 2, 6, seed=2)
MASK = jnp.tri(5, dtype=bool)
GATES = normal(2, 16, seed=3), normal(2, 16, seed=4), normal(2, 4, seed=5)
THREE = normal(2, 12, seed=3), normal(2, 12, seed=4), normal(2, 4, seed=5)

# Of each function: what is differentiated, and the function of it.
FUNCTIONS = {
    "adaptive_avg_pool": ((IMAGES,), lambda x: F.adaptive_avg_pool(x, (4, 2))),
    "alpha_dropout": ((X,), lambda x: F.alpha_dropout(x, KEY, 0.3)),
    "attend": ((X, normal(6, 4)), F.attend),
    "attention": (
        (HEADS, KEYS, KEYS),
        lambda q, k, v: F.attention(q, k, v, None, MASK),
    ),
    "attention_weights": (
        (HEADS, KEYS),
        lambda q, k: F.attention_weights(q, k, None, MASK, KEY, dropout_rate=0.3),
    ),
    "avg_pool": ((IMAGES,), lambda x: F.avg_pool(x, (2, 2), (2, 1), "SAME", False)),
    "batch_norm": (
        (X, FEATURES, FEATURES),
        lambda x, s, b: F.batch_norm(x, b * 0, s * 0 + 1, s, b, None)[0],
    ),
    "batch_norm_inference": (
        (X, FEATURES, FEATURES, FEATURES),
        lambda x, m, s, b: F.batch_norm_inference(x, m, m**2 + 1, s, b),
    ),
    "conv": (
        (IMAGES, normal(3, 2, 2, 6), normal(6)),
        lambda x, w, b: F.conv(x, w, b, None, strides=2, feature_group_count=2),
    ),
    "conv_transpose": (
        (IMAGES, normal(3, 2, 4, 3), normal(3)),
        lambda x, w, b: F.conv_transpose(x, w, b, None, strides=2),
    ),
    "dropout": ((X,), lambda x: F.dropout(x, KEY, 0.5)),
    "einsum": (
        (X, normal(4, 5), normal(5)),
        lambda x, w, b: F.einsum(x, w, b, "ab,bc->ac"),
    ),
    "embed": ((normal(6, 4),), lambda table: F.embed(jnp.array([0, 5, 5]), table)),
    "flip_sequences": (
        (normal(2, 5, 3),),
        lambda x: F.flip_sequences(x, jnp.array([3, 5]), 1),
    ),
    "group_norm": (
        (X, FEATURES, FEATURES),
        lambda x, s, b: F.group_norm(x, s, b, None, num_groups=2),
    ),
    "gated": ((X, X), F.gated),
    "gru": (THREE, F.gru),
    "layer_norm": (
        (X, FEATURES, FEATURES),
        lambda x, s, b: F.layer_norm(x, s, b, None),
    ),
    "linear": ((X, normal(4, 5), normal(5)), F.linear),
    "linear_general": (
        (IMAGES, normal(4, 5, 3), normal(3)),
        lambda x, w, b: F.linear_general(jnp.swapaxes(x, 2, 3), w, b, axis=(2, 3)),
    ),
    "low_rank": ((X, normal(4, 2), normal(2, 5)), F.low_rank),
    "lstm": (GATES, F.lstm),
    "max_pool": ((SPACED,), lambda x: F.max_pool(x, (2, 2), 2)),
    "min_pool": ((SPACED,), lambda x: F.min_pool(x, (2, 2), 2)),
    "pool": ((IMAGES,), lambda x: F.pool(x, 0, jax.lax.add, (2, 2), 1, 1)),
    "prelu": ((X, jnp.float32(0.2)), F.prelu),
    "rotary_embedding": ((HEADS,), F.rotary_embedding),
    "simple_rnn": ((X, X, X), lambda x, h, c: F.simple_rnn(x, h, c, True)),
    "spectral_norm": (
        (normal(4, 5),),
        # The vectors are constants, so the gradient is exact where they are.
        lambda w: F.spectral_norm(w, normal(1, 5, seed=1), steps=40)[0],
    ),
    "weight_norm": (
        (normal(4, 5), normal(5)),
        F.weight_norm,
    ),
    "weighted_sum": ((normal(2, 4, 5, 5), KEYS), F.weighted_sum),
}
# No gradients: types, masks, and positions, which are integers.
OTHERS = {
    "canonicalize_dtype",
    "combine_masks",
    "make_attention_mask",
    "make_causal_mask",
    "promote_dtype",
    "sinusoidal_positions",
}


def test_every_function_is_here():
    public = {
        name
        for name, x in vars(F).items()
        if callable(x) and not name.startswith("_") and not isinstance(x, type)
    }
    assert public == FUNCTIONS.keys() | OTHERS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numerical_gradients(name):
    arguments, function = FUNCTIONS[name]
    with jax.default_matmul_precision("highest"):
        check_grads(function, arguments, order=1, atol=2e-2, rtol=2e-2, eps=1e-2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_outer_jit_and_vmap_give_the_same(name):
    arguments, function = FUNCTIONS[name]
    wanted = function(*arguments)
    jax.tree.map(close, jax.jit(function)(*arguments), wanted)
    stacked = [jnp.stack([a, 2 * a]) for a in arguments]
    together = jax.vmap(function)(*stacked)
    for n in range(2):
        one = function(*[a[n] for a in stacked])
        jax.tree.map(lambda a, b, n=n: close(a[n], b, 1e-4), together, one)


# ------------------------------------------------------------- positions


def test_sinusoids_are_those_of_the_paper():
    table = F.sinusoidal_positions(50, 6)
    for position in (0, 7, 49):
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            close(table[position, 2 * pair], np.sin(angle), 1e-4)
            close(table[position, 2 * pair + 1], np.cos(angle), 1e-4)
    close(F.sinusoidal_positions(jnp.array([[7, 0]]), 6)[0, 0], table[7])
    assert F.sinusoidal_positions(3, 5).shape == (3, 5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotated_products_depend_on_distance_only(interleaved):
    q, k = normal(1, 1, 8), normal(1, 1, 8, seed=1)

    def product(i, j):
        at = [jnp.array([n]) for n in (i, j)]
        rotated = [
            F.rotary_embedding(x, n, interleaved=interleaved)
            for x, n in zip((q, k), at, strict=True)
        ]
        return (rotated[0] * rotated[1]).sum()

    close(product(3, 1), product(12, 10), 1e-4)
    close(product(5, 5), (q * k).sum(), 1e-4)
    assert abs(product(3, 1) - product(3, 2)) > 1e-3


def test_a_rotation_is_that_of_complex_numbers():
    x = normal(5, 2, 8)
    angles = np.arange(5)[:, None] / 10_000 ** (np.arange(0, 8, 2) / 8)
    turn = np.exp(1j * angles)[:, None]
    pairs = np.asarray(x[..., 0::2] + 1j * x[..., 1::2]) * turn
    wanted = np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)
    close(F.rotary_embedding(x, interleaved=True), wanted)
    halves = np.asarray(x[..., :4] + 1j * x[..., 4:]) * turn
    close(F.rotary_embedding(x), np.concatenate([halves.real, halves.imag], -1))
    half = F.rotary_embedding(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_positions_may_differ_in_a_batch():
    x = normal(2, 3, 1, 4)
    at = jnp.array([[0, 1, 2], [5, 6, 7]])
    y = F.rotary_embedding(x, at)
    for n in range(2):
        close(y[n], F.rotary_embedding(x[n], at[n]))


def test_mistakes_of_positions_are_named():
    with pytest.raises(
        ValueError, match=r"an even number of features; got \(3, 1, 5\)"
    ):
        F.rotary_embedding(normal(3, 1, 5))
    with pytest.raises(ValueError, match=r"positions of shape \(3,\) or \(2, 3\); got"):
        F.rotary_embedding(normal(2, 3, 1, 4), jnp.arange(2))


# ------------------------------------------------------------- dropout, sequences


def test_alpha_dropout_keeps_mean_and_variance():
    x = jax.random.normal(KEY, (20_000,))
    for rate in (0.1, 0.5, 0.8):
        y = F.alpha_dropout(x, jax.random.key(1), rate)
        assert abs(y.mean()) < 0.05 and abs(y.var() - 1) < 0.06
    assert F.alpha_dropout(x, KEY, 0) is x


@pytest.mark.parametrize("time_axis", [0, 1])
def test_only_what_counts_is_flipped(time_axis):
    x, lengths = normal(3, 5, 2), np.array([5, 2, 0])
    given = jnp.swapaxes(x, 0, 1) if time_axis == 0 else x
    y = F.flip_sequences(given, jnp.asarray(lengths), time_axis)
    y = jnp.swapaxes(y, 0, 1) if time_axis == 0 else y
    for row, length in enumerate(lengths):
        close(y[row, :length], x[row, :length][::-1])
    close(F.flip_sequences(x, None, 1), x[:, ::-1])
    assert F.flip_sequences(x[:, :0], jnp.array([0, 0, 0]), 1).shape == (3, 0, 2)


@pytest.mark.parametrize("size, wanted", [(6, 3), (7, 3), (3, 5), (5, 1), (4, 4)])
def test_windows_cover_all_evenly(size, wanted):
    x = normal(size, 2)
    y = F.adaptive_avg_pool(x, wanted)
    for n in range(wanted):
        low, high = n * size // wanted, -(-(n + 1) * size // wanted)
        close(y[n], x[low:high].mean(0))
    with pytest.raises(ValueError, match=r"output_shape=\(1, 2, 3\) wants inputs of"):
        F.adaptive_avg_pool(x, (1, 2, 3))
