"""Whole models against Flax NNX: the same source, equal results, equal FLOPs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnxlite


def mlp(nnx, rngs):
    return nnx.Sequential(
        nnx.Linear(16, 32, rngs=rngs),
        nnx.relu,
        nnx.Linear(32, 32, rngs=rngs),
        nnx.gelu,
        nnx.Linear(32, 4, rngs=rngs),
    )


def resnet18(nnx, rngs):
    """ResNet-18 (arXiv:1512.03385) with an eighth of the channels."""
    conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)

    class Block(nnx.Module):
        def __init__(self, before, after, stride):
            self.conv1 = conv(before, after, (3, 3), stride)
            self.norm1 = nnx.BatchNorm(after, rngs=rngs)
            self.conv2 = conv(after, after, (3, 3))
            self.norm2 = nnx.BatchNorm(after, rngs=rngs)
            if stride > 1:
                self.short = conv(before, after, (1, 1), stride)
                self.norm3 = nnx.BatchNorm(after, rngs=rngs)

        def __call__(self, x):
            y = nnx.relu(self.norm1(self.conv1(x)))
            y = self.norm2(self.conv2(y))
            if hasattr(self, "short"):
                x = self.norm3(self.short(x))
            return nnx.relu(x + y)

    class ResNet(nnx.Module):
        def __init__(self):
            self.stem = conv(3, 8, (7, 7), 2)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            widths = [(8, 8, 1), (8, 16, 2), (16, 32, 2), (32, 64, 2)]
            blocks = []
            for before, after, stride in widths:
                blocks += [Block(before, after, stride), Block(after, after, 1)]
            self.blocks = nnx.List(blocks)
            self.head = nnx.Linear(64, 4, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.stem(x)))
            x = nnx.max_pool(x, (3, 3), (2, 2), "SAME")
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((1, 2)))

    return ResNet()


def transformer(nnx, rngs):
    """Six blocks with attention and an MLP, each after a LayerNorm; tied embeddings."""

    class Block(nnx.Module):
        def __init__(self):
            self.norm1 = nnx.LayerNorm(16, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
            self.norm2 = nnx.LayerNorm(16, rngs=rngs)
            self.up = nnx.Linear(16, 64, rngs=rngs)
            self.down = nnx.Linear(64, 16, rngs=rngs)

        def __call__(self, x):
            x = x + self.attention(self.norm1(x), is_causal=True)
            return x + self.down(nnx.gelu(self.up(self.norm2(x))))

    class Transformer(nnx.Module):
        def __init__(self):
            self.embed = nnx.Embed(20, 16, rngs=rngs)
            self.blocks = nnx.List([Block() for _ in range(6)])
            self.norm = nnx.RMSNorm(16, rngs=rngs)

        def __call__(self, ids):
            x = self.embed(ids)
            for block in self.blocks:
                x = block(x)
            return self.embed.attend(self.norm(x))

    return Transformer()


def lstm(nnx, rngs):
    class Network(nnx.Module):
        def __init__(self):
            self.embed = nnx.Embed(20, 8, rngs=rngs)
            self.rnn = nnx.Bidirectional(
                nnx.RNN(nnx.OptimizedLSTMCell(8, 16, rngs=rngs)),
                nnx.RNN(nnx.OptimizedLSTMCell(8, 16, rngs=rngs)),
            )
            self.head = nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, ids):
            return self.head(self.rnn(self.embed(ids)).mean(1))

    return Network()


IDS = np.random.default_rng(0).integers(0, 20, (2, 12))
IMAGES = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
MODELS = {
    "mlp": (mlp, IMAGES.reshape(-1, 16)[:8]),
    "resnet18": (resnet18, IMAGES),
    "transformer": (transformer, IDS),
    "lstm": (lstm, IDS),
}
every_model = pytest.mark.parametrize("name", MODELS)


def made(nnx, name):
    make, x = MODELS[name]
    return make(nnx, nnx.Rngs(0)), jnp.asarray(x)


def train(nnx):
    """One step of stochastic gradient descent, in place; returns the loss."""

    def step(model, x):
        def loss_of(model):
            return (model(x).astype(jnp.float32) ** 2).mean()

        loss, grads = nnx.value_and_grad(loss_of)(model)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
        return loss

    return step


def forward(nnx):
    return lambda model, x: model(x)


def pure(nnx, work, model):
    """A function of Flax's state for plain `jax.jit`, which has `lower`."""
    graphdef, state = nnx.split(model)

    def run(state, x):
        model = nnx.merge(graphdef, state)
        result = work(model, x)
        return result, nnx.state(model)

    return jax.jit(run), state


def close(actual, desired, tolerance=1e-5):
    actual, desired = np.float64(actual), np.float64(desired)
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


@every_model
@pytest.mark.parametrize("work", [forward, train], ids=["forward", "train"])
def test_equal_results_and_flops(oracle, name, work):
    flax_nnx = oracle("flax.nnx")
    (ours, x), (theirs, _) = made(nnxlite, name), made(flax_nnx, name)
    jitted = nnxlite.jit(work(nnxlite))
    run, state = pure(flax_nnx, work(flax_nnx), theirs)
    costs = [
        stage.compile().cost_analysis()["flops"]
        for stage in (jitted.lower(ours, x), run.lower(state, x))
    ]
    # Flax also draws random keys for carries of zeros.
    least = 0.98 if name == "lstm" else 0.9999
    assert least * costs[1] <= costs[0] <= 1.0001 * costs[1]
    for _ in range(2):
        result = jitted(ours, x)
        wanted, state = run(state, x)
        close(result, wanted)
    left = nnxlite.to_pure_dict(nnxlite.state(ours, (nnxlite.Param, nnxlite.BatchStat)))
    kept = flax_nnx.to_pure_dict(
        flax_nnx.filter_state(state, (flax_nnx.Param, flax_nnx.BatchStat))
    )
    jax.tree.map(lambda a, b: close(a, b, 1e-4), left, kept)


@every_model
@pytest.mark.parametrize("work", [forward, train], ids=["forward", "train"])
def test_eager_is_the_same(name, work):
    (eager, x), (compiled, _) = made(nnxlite, name), made(nnxlite, name)
    call, jitted = work(nnxlite), nnxlite.jit(work(nnxlite))
    for _ in range(2):
        close(call(eager, x), jitted(compiled, x), 1e-4)
    jax.tree.map(
        lambda a, b: close(a, b, 1e-4),
        nnxlite.to_pure_dict(nnxlite.state(eager, nnxlite.Param)),
        nnxlite.to_pure_dict(nnxlite.state(compiled, nnxlite.Param)),
    )


def test_an_optimizer_trains_the_transformer():
    model, ids = made(nnxlite, "transformer")
    optimizer = nnxlite.Optimizer(model, optax.adam(1e-2))

    @nnxlite.jit
    def step(model, optimizer):
        def loss_of(model):
            logits = model(ids[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, ids[:, 1:]
            ).mean()

        loss, grads = nnxlite.value_and_grad(loss_of)(model)
        optimizer.update(grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]
