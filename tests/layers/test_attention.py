"""Attention: against PyTorch and a formula, decoding, dropout, masks, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def formula(q, k, v, bias=0.0, mask=True):
    """Attention with one loop over heads, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    groups = q.shape[-2] // k.shape[-2]
    out = np.zeros(q.shape[:-1] + v.shape[-1:])
    for head in range(q.shape[-2]):
        logits = np.einsum(
            "...qd,...kd->...qk", q[..., head, :], k[..., head // groups, :]
        )
        logits = logits / np.sqrt(q.shape[-1])
        shape = (*logits.shape[:-2], q.shape[-2], *logits.shape[-2:])
        logits = logits + np.broadcast_to(bias, shape)[..., head, :, :]
        logits = np.where(np.broadcast_to(mask, shape)[..., head, :, :], logits, -1e30)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[..., head, :] = np.einsum(
            "...qk,...kd->...qd", weights, v[..., head // groups, :]
        )
    return out


@pytest.mark.parametrize("sown", [False, True], ids=["jax.nn", "weights"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_formula(batch, kv_heads, sown):
    q = normal(*batch, 5, 4, 8)
    k, v = (
        normal(*batch, 6, kv_heads, 8, seed=1),
        normal(*batch, 6, kv_heads, 8, seed=2),
    )
    bias = normal(4, 5, 6, seed=3)
    mask = normal(*batch, 1, 5, 6, seed=4) > -1
    module = nnx.Module() if sown else None

    y = nnx.dot_product_attention(q, k, v, bias, mask, module=module)

    np.testing.assert_allclose(y, formula(q, k, v, bias, mask), atol=1e-5)
    if module is not None:
        (weights,) = module.attention_weights.value
        assert weights.shape == (*batch, 4, 5, 6)
        np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("sown", [False, True], ids=["jax.nn", "weights"])
def test_causal(sown):
    q, k, v = (normal(2, 5, 4, 8, seed=n) for n in range(3))
    module = nnx.Module() if sown else None
    y = nnx.dot_product_attention(q, k, v, is_causal=True, module=module)
    np.testing.assert_allclose(y, formula(q, k, v, mask=np.tri(5) > 0), atol=1e-5)


def test_a_query_that_sees_nothing_gets_no_nan():
    q, k, v = (normal(5, 4, 8, seed=n) for n in range(3))
    for module in (None, nnx.Module()):
        y = nnx.dot_product_attention(q, k, v, mask=jnp.zeros((5, 5)), module=module)
        np.testing.assert_allclose(y, jnp.broadcast_to(v.mean(0), y.shape), atol=1e-5)


def test_dropout_of_weights_keeps_the_mean():
    q, k, v = (normal(1, 4, 2, 8, seed=n) for n in range(3))
    exact = nnx.dot_product_attention(q, k, v)

    def noisy(key):
        return nnx.dot_product_attention(q, k, v, dropout_rng=key, dropout_rate=0.5)

    ys = jax.vmap(noisy)(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(ys.mean(0), exact, atol=0.1)
    off = nnx.dot_product_attention(q, k, v, dropout_rate=0.5, deterministic=True)
    np.testing.assert_array_equal(off, exact)
    with pytest.raises(ValueError, match="dropout of the weights needs a key"):
        nnx.dot_product_attention(q, k, v, dropout_rate=0.5)


@pytest.mark.parametrize("broadcast", [True, False])
def test_dropout_patterns(broadcast):
    module = nnx.Module()
    q = normal(3, 4, 2, 8)
    v = jnp.broadcast_to(jnp.eye(4)[:, None, :], (3, 4, 2, 4))
    y = nnx.dot_product_attention(
        q,
        q,
        v,
        module=module,
        dropout_rng=jax.random.key(0),
        dropout_rate=0.5,
        broadcast_dropout=broadcast,
    )
    patterns = np.unique(np.asarray(y > 0).transpose(0, 2, 1, 3).reshape(6, -1), axis=0)
    assert len(patterns) == (1 if broadcast else 6)


def test_multi_head_attention_is_that_of_pytorch(oracle):
    torch = oracle("torch")
    theirs = torch.nn.MultiheadAttention(8, 4, batch_first=True)
    ours = nnx.MultiHeadAttention(4, 8, rngs=nnx.Rngs(0))
    with torch.no_grad():
        theirs.in_proj_bias.normal_()
        theirs.out_proj.bias.normal_()
        weights = theirs.in_proj_weight.numpy().reshape(3, 4, 2, 8)
        biases = theirs.in_proj_bias.numpy().reshape(3, 4, 2)
        for part, w, b in zip(
            (ours.query, ours.key, ours.value), weights, biases, strict=True
        ):
            part.kernel.value = jnp.asarray(w.transpose(2, 0, 1))
            part.bias.value = jnp.asarray(b)
        ours.out.kernel.value = jnp.asarray(theirs.out_proj.weight.numpy().T).reshape(
            4, 2, 8
        )
        ours.out.bias.value = jnp.asarray(theirs.out_proj.bias.numpy())
        q, kv = normal(3, 5, 8), normal(3, 6, 8, seed=1)
        hidden = np.random.default_rng(2).random((5, 6)) < 0.3
        arrays = [torch.tensor(np.asarray(x)) for x in (q, kv, kv)]
        expected, _ = theirs(*arrays, attn_mask=torch.tensor(hidden))

    np.testing.assert_allclose(ours(q, kv, mask=~hidden), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda f: f, nnx.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_google_flax_5591_decoding_equals_the_full_causal_pass(kv_heads, wrap):
    layer = nnx.MultiHeadAttention(
        4, 32, num_kv_heads=kv_heads, normalize_qk=True, rngs=nnx.Rngs(0)
    )
    x = normal(2, 7, 32)
    expected = layer(x, is_causal=True)
    layer.init_cache(x.shape)
    step = wrap(lambda layer, x: layer(x, decode=True))

    steps = [step(layer, x[:, i : i + 1]) for i in range(7)]

    np.testing.assert_allclose(jnp.concatenate(steps, 1), expected, atol=1e-5)
    assert layer.cache_index.item() == 7


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_prompt_in_one_call_equals_the_full_causal_pass(kv_heads):
    layer = nnx.MultiHeadAttention(
        4, 8, num_kv_heads=kv_heads, rotary_base=100.0, rngs=nnx.Rngs(0)
    )
    x = normal(2, 7, 8)
    unpadded = jnp.arange(7) != 2
    step = nnx.jit(lambda layer, x, mask: layer(x, decode=True, mask=mask))
    for mask in (None, unpadded, unpadded[None, None, None]):
        layer.init_cache(x.shape)
        parts = [x[:, :4], x[:, 4:5], x[:, 5:]]
        steps = [step(layer, part, mask) for part in parts]
        expected = layer(x, is_causal=True, mask=None if mask is None else unpadded)
        np.testing.assert_allclose(
            jnp.concatenate(steps, 1)[:, 3:], expected[:, 3:], rtol=1e-5, atol=1e-5
        )
    with pytest.raises(ValueError, match=r"full: it has 7 positions, 7 are known"):
        layer(x[:, :2], decode=True)
    layer.init_cache((2, 3, 8))
    layer(x[:, :1], decode=True)
    with pytest.raises(ValueError, match="full: it has 3 positions, 1 .* and 3 come"):
        layer(x[:, :3], decode=True)
    assert jnp.isnan(step(layer, x[:, :3], None)).all()
    with pytest.raises(ValueError, match="cache shape error"):
        step(layer, x[:1, :1], None)
    with pytest.raises(ValueError, match="full: it has 3 positions, 0 .* and 7 come"):
        step(layer, x, None)
    layer.init_cache((2, 3, 8))
    with pytest.raises(ValueError, match=r"^MultiHeadAttention: The mask .*4, 1, 3"):
        layer(x[:, :1], decode=True, mask=jnp.ones(4))
    assert layer.cache_index.item() == 0


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_decoding_with_rotated_positions_equals_the_full_causal_pass(kv_heads):
    layer = nnx.MultiHeadAttention(
        4, 8, num_kv_heads=kv_heads, rotary_base=100.0, rngs=nnx.Rngs(0)
    )
    x = jax.random.normal(jax.random.key(1), (2, 6, 8))
    whole = layer(x, is_causal=True)
    plain = nnx.MultiHeadAttention(4, 8, num_kv_heads=kv_heads, rngs=nnx.Rngs(0))
    assert np.abs(whole - plain(x, is_causal=True)).max() > 1e-3
    layer.init_cache(x.shape)
    step = nnx.jit(lambda layer, x: layer(x, decode=True))
    steps = [step(layer, x[:, n : n + 1]) for n in range(6)]
    np.testing.assert_allclose(
        jnp.concatenate(steps, axis=1), whole, rtol=1e-5, atol=1e-5
    )


def test_positions_of_each_example():
    """Left-padded sequences, with positions that count from their first entry."""
    layer = nnx.MultiHeadAttention(2, 8, rotary_base=100.0, rngs=nnx.Rngs(0))
    x = normal(1, 4, 8)
    padded = jnp.concatenate([normal(1, 3, 8), x], axis=1)
    positions = jnp.array([[0, 0, 0, 0, 1, 2, 3]])
    mask = jnp.arange(7) >= 3

    y = layer(padded, mask=mask, is_causal=True, input_positions=positions)

    expected = layer(x, is_causal=True)
    np.testing.assert_allclose(y[:, 3:], expected, rtol=1e-5, atol=1e-6)
    counted = layer(x, is_causal=True, input_positions=jnp.arange(4))
    np.testing.assert_array_equal(counted, expected)
    far = layer(x, is_causal=True, input_positions=jnp.arange(4) * 50)
    assert np.abs(far - expected).max() > 1e-3

    layer.init_cache(padded.shape)
    step = nnx.jit(lambda layer, x, at: layer(x, decode=True, input_positions=at))
    last = jnp.concatenate(
        [step(layer, x[:, n : n + 1], positions[:, 3 + n, None]) for n in range(4)], 1
    )
    np.testing.assert_allclose(last, expected, rtol=1e-5, atol=1e-6)


def test_positions_go_to_the_attention_fn():
    seen = []

    def attention_fn(query, key, value, *, input_positions=None, **options):
        seen.append(input_positions)
        return nnx.dot_product_attention(query, key, value, **options)

    layer = nnx.MultiHeadAttention(2, 8, attention_fn=attention_fn, rngs=nnx.Rngs(0))
    layer(normal(1, 4, 8), input_positions=jnp.arange(4))
    layer(normal(1, 4, 8))
    np.testing.assert_array_equal(seen[0], np.arange(4))
    assert seen[1] is None


def test_positions_that_nothing_takes_or_of_another_length():
    model = nnx.Dict(plain=nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0)))
    x = normal(1, 4, 8)
    with pytest.raises(TypeError, match=r"Dict.plain': input_pos.*rotary_base=10_000"):
        model.plain(x, input_positions=jnp.arange(4))
    model.plain.init_cache(x.shape)
    with pytest.raises(TypeError, match=r"Dict.plain': input_pos.*rotary_base=10_000"):
        model.plain(x, decode=True, input_positions=jnp.arange(4))
    assert model.plain.cache_index.item() == 0
    model.rotary = nnx.MultiHeadAttention(2, 8, rotary_base=9.0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"rotary': rotary_.*positions of shape \(4,"):
        model.rotary(x, input_positions=jnp.arange(5))


def test_a_full_cache():
    layer = nnx.MultiHeadAttention(2, 4, decode=True, rngs=nnx.Rngs(0))
    layer.init_cache((1, 2, 4))
    x = normal(1, 1, 4)
    layer(x), layer(x)
    with pytest.raises(
        ValueError, match=r"the cache is full: it has 2 positions.*init_ca"
    ):
        layer(x)
    assert jnp.isnan(nnx.jit(lambda layer, x: layer(x))(layer, x)).all()


def test_weights_are_sown():
    layer = nnx.MultiHeadAttention(2, 4, rngs=nnx.Rngs(0))
    layer(normal(3, 5, 4), sow_weights=True)
    assert layer.attention_weights.value[0].shape == (3, 2, 5, 5)


def test_dropout_follows_the_mode():
    layer = nnx.MultiHeadAttention(2, 4, dropout_rate=0.5, rngs=nnx.Rngs(0))
    x = normal(3, 5, 4)
    with pytest.raises(ValueError, match="`deterministic` is None"):
        layer(x)
    layer.eval()
    np.testing.assert_array_equal(layer(x), layer(x))
    layer.train()
    assert not jnp.array_equal(layer(x), layer(x))
    ours = nnx.Rngs(dropout=3)
    np.testing.assert_array_equal(
        layer(x, rngs=ours), layer(x, rngs=nnx.Rngs(dropout=3))
    )
    bare = nnx.MultiHeadAttention(
        2, 4, dropout_rate=0.5, deterministic=False, keep_rngs=False, rngs=nnx.Rngs(0)
    )
    with pytest.raises(ValueError, match="there is no random stream"):
        bare(x)


ERRORS = {
    "features": (
        lambda: nnx.MultiHeadAttention(3, 8, rngs=nnx.Rngs(0)),
        "Memory dimen",
    ),
    "kv heads": (
        lambda: nnx.MultiHeadAttention(4, 8, num_kv_heads=3, rngs=nnx.Rngs(0)),
        "num_heads=4 must be a multiple of num_kv_heads=3",
    ),
    "values alone": (
        lambda: nnx.MultiHeadAttention(2, 4, rngs=nnx.Rngs(0))(
            normal(5, 4), inputs_v=normal(5, 4)
        ),
        "`inputs_k` cannot be None if `inputs_v` is not None",
    ),
    "last axis": (
        lambda: nnx.MultiHeadAttention(2, 4, rngs=nnx.Rngs(0))(normal(5, 3)),
        "LinearGeneral 'MultiHeadAttention.query': A kernel of shape",
    ),
    "no cache": (
        lambda: nnx.MultiHeadAttention(2, 4, decode=True, rngs=nnx.Rngs(0))(
            normal(1, 4)
        ),
        "cache is not initialized. Call its init_cache",
    ),
    "heads": (
        lambda: nnx.dot_product_attention(
            normal(5, 4, 8), normal(5, 3, 8), normal(5, 3, 8)
        ),
        "kv_heads that divides heads; got",
    ),
    "mask": (
        lambda: nnx.dot_product_attention(
            *[normal(5, 4, 8)] * 3, mask=jnp.ones((4, 5))
        ),
        r"mask of attention has the shape \(4, 5\).*= \(4, 5, 5\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    make, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_masks_are_those_of_flax(oracle):
    flax_nnx = oracle("flax.nnx")
    x, y = jnp.array([[1, 1, 0], [1, 0, 0]]), jnp.array([[1, 0], [1, 1]])
    for extra in (0, 2):
        for name, args in (("make_attention_mask", (x, y)), ("make_causal_mask", (x,))):
            one, other = (
                getattr(framework, name)(*args, extra_batch_dims=extra)
                for framework in (nnx, flax_nnx)
            )
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    masks = nnx.make_causal_mask(x), None, nnx.make_attention_mask(x, x)
    np.testing.assert_array_equal(
        nnx.combine_masks(*masks), flax_nnx.combine_masks(*masks)
    )
    assert nnx.combine_masks(None) is None
    with pytest.raises(ValueError, match="masks must have same rank"):
        nnx.combine_masks(jnp.ones(2), jnp.ones((2, 2)))


def test_cache_sizes_come_together_and_rates_are_probabilities():
    layer = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="a cache needs both sizes: nnx.view"):
        nnx.view(layer, decode=True, batch_size=2)
    with pytest.raises(ValueError, match="dropout_rate must be a probability"):
        nnx.MultiHeadAttention(2, 8, dropout_rate=2.0, rngs=nnx.Rngs(0))


def test_errors_of_masks_name_the_path():
    class Net(nnx.Module):
        def __init__(self):
            self.attention = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0))

    net = Net()
    with pytest.raises(
        ValueError, match="^MultiHeadAttention 'Net.attention': The mask"
    ):
        net.attention(jnp.ones((2, 5, 8)), mask=jnp.ones((2, 5)))


def test_reseed_reaches_the_stream_of_dropout():
    layer = nnx.MultiHeadAttention(2, 8, dropout_rate=0.5, rngs=nnx.Rngs(0))
    before = jax.random.key_data(layer.rngs.key[...])
    nnx.reseed(layer, dropout=3)
    assert (jax.random.key_data(layer.rngs.key[...]) != before).any()
