"""Layers and functions against PyTorch: outputs, and gradients of all that is learned.

Recurrent layers, attention, weight and spectral norm are compared in their own files.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

RNGS = nnx.Rngs(0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(actual, desired, tolerance=1e-5):
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.shape == desired.shape
    scale = max(1.0, np.abs(desired).max(initial=0))
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance * scale)


def first(x):
    """Channels last to channels first."""
    return np.moveaxis(np.asarray(x), -1, 1)


def last(x):
    return np.moveaxis(np.asarray(x), 1, -1)


def same(x):
    return np.asarray(x)


def conv_weight(w):
    """(*window, in, out) to (out, in, *window)."""
    w = np.asarray(w)
    return np.moveaxis(np.moveaxis(w, -1, 0), -1, 1)


def transposed_weight(w):
    """(*window, in, out), flipped, to (in, out, *window)."""
    w = np.asarray(w)
    w = np.flip(w, tuple(range(w.ndim - 2)))
    return np.moveaxis(np.moveaxis(w, -1, 0), -1, 0)


class Case:
    """One layer in both frameworks.

    ours, theirs: make it. shape: of an input of ours. names: of the parameters, ours
    and PyTorch's, and how ours becomes its. layout: likewise for inputs and outputs.
    """

    def __init__(self, ours, theirs, shape, names, layout=(same, same)):
        self.ours, self.theirs, self.shape = ours, theirs, shape
        self.names, (self.to, self.back) = names, layout


CHANNELS = first, last
LINEAR = {"kernel": ("weight", lambda w: np.asarray(w).T), "bias": ("bias", same)}
CONV = {"kernel": ("weight", conv_weight), "bias": ("bias", same)}
TRANSPOSED = {"kernel": ("weight", transposed_weight), "bias": ("bias", same)}
NORM = {"scale": ("weight", same), "bias": ("bias", same)}

CASES = {
    "linear": Case(
        lambda: nnx.Linear(4, 5, rngs=RNGS),
        lambda nn: nn.Linear(4, 5),
        (2, 3, 4),
        LINEAR,
    ),
    "conv 1d": Case(
        lambda: nnx.Conv(3, 4, (3,), padding="VALID", rngs=RNGS),
        lambda nn: nn.Conv1d(3, 4, 3),
        (2, 8, 3),
        CONV,
        CHANNELS,
    ),
    "conv 2d": Case(
        lambda: nnx.Conv(4, 6, (3, 2), strides=2, padding=1, rngs=RNGS),
        lambda nn: nn.Conv2d(4, 6, (3, 2), stride=2, padding=1),
        (2, 8, 7, 4),
        CONV,
        CHANNELS,
    ),
    "conv groups": Case(
        lambda: nnx.Conv(
            4, 6, (3, 3), padding=2, kernel_dilation=2, feature_group_count=2, rngs=RNGS
        ),
        lambda nn: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
        (2, 8, 8, 4),
        CONV,
        CHANNELS,
    ),
    "conv depthwise": Case(
        lambda: nnx.Conv(4, 8, (3,), padding=1, feature_group_count=4, rngs=RNGS),
        lambda nn: nn.Conv1d(4, 8, 3, padding=1, groups=4),
        (2, 8, 4),
        CONV,
        CHANNELS,
    ),
    "conv circular": Case(
        lambda: nnx.Conv(3, 4, (3,), padding="CIRCULAR", rngs=RNGS),
        lambda nn: nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"),
        (2, 8, 3),
        CONV,
        CHANNELS,
    ),
    "conv reflect": Case(
        lambda: nnx.Conv(3, 4, (5,), padding="REFLECT", rngs=RNGS),
        lambda nn: nn.Conv1d(3, 4, 5, padding=2, padding_mode="reflect"),
        (2, 8, 3),
        CONV,
        CHANNELS,
    ),
    "conv 3d": Case(
        lambda: nnx.Conv(2, 3, (3, 3, 1), padding="SAME", rngs=RNGS),
        lambda nn: nn.Conv3d(2, 3, (3, 3, 1), padding="same"),
        (2, 4, 5, 4, 2),
        CONV,
        CHANNELS,
    ),
    "transposed": Case(
        lambda: nnx.ConvTranspose(3, 4, (3,), padding="VALID", rngs=RNGS),
        lambda nn: nn.ConvTranspose1d(3, 4, 3),
        (2, 5, 3),
        TRANSPOSED,
        CHANNELS,
    ),
    "transposed strides": Case(
        lambda: nnx.ConvTranspose(
            3, 4, (3, 4), strides=2, padding=((1, 1), (2, 2)), rngs=RNGS
        ),
        lambda nn: nn.ConvTranspose2d(3, 4, (3, 4), stride=2, padding=(1, 1)),
        (2, 5, 4, 3),
        TRANSPOSED,
        CHANNELS,
    ),
    "batch norm": Case(
        lambda: nnx.BatchNorm(4, rngs=RNGS),
        lambda nn: nn.BatchNorm1d(4, momentum=0.01),
        (6, 4),
        NORM,
    ),
    "batch norm 2d": Case(
        lambda: nnx.BatchNorm(4, momentum=0.9, epsilon=1e-3, rngs=RNGS),
        lambda nn: nn.BatchNorm2d(4, momentum=0.1, eps=1e-3),
        (2, 5, 3, 4),
        NORM,
        CHANNELS,
    ),
    "layer norm": Case(
        lambda: nnx.LayerNorm(4, rngs=RNGS),
        lambda nn: nn.LayerNorm(4, eps=1e-6),
        (2, 3, 4),
        NORM,
    ),
    "rms norm": Case(
        lambda: nnx.RMSNorm(4, rngs=RNGS),
        lambda nn: nn.RMSNorm(4, eps=1e-6),
        (2, 3, 4),
        {"scale": ("weight", same)},
    ),
    "group norm": Case(
        lambda: nnx.GroupNorm(6, 3, rngs=RNGS),
        lambda nn: nn.GroupNorm(3, 6, eps=1e-6),
        (2, 5, 4, 6),
        NORM,
        CHANNELS,
    ),
    "instance norm": Case(
        lambda: nnx.InstanceNorm(4, rngs=RNGS),
        lambda nn: nn.InstanceNorm2d(4, eps=1e-6, affine=True),
        (2, 5, 3, 4),
        NORM,
        CHANNELS,
    ),
    "prelu": Case(
        lambda: nnx.PReLU(0.3),
        lambda nn: nn.PReLU(init=0.3),
        (2, 3, 4),
        {"negative_slope": ("weight", lambda a: np.asarray(a)[None])},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["eager", "jit"])
def test_as_torch(oracle, name, way):
    torch = oracle("torch")
    case = CASES[name]
    layer, net = case.ours(), case.theirs(torch.nn)
    for number, (own, (other, to)) in enumerate(case.names.items()):
        parameter = getattr(layer, own)
        parameter[...] = jnp.asarray(1 + normal(*parameter.shape, seed=number))
        with torch.no_grad():
            getattr(net, other).copy_(torch.tensor(to(parameter[...]).copy()))
    data = normal(*case.shape, seed=9)
    x = torch.tensor(case.to(data).copy(), requires_grad=True)
    y = net(x)
    weights = normal(*y.shape, seed=10)
    (y * torch.tensor(weights)).sum().backward()

    def loss(layer, x):
        y = layer(x)
        return (y * case.back(weights)).sum(), y

    call = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    if way == "jit":
        call = nnx.jit(call)
    (_, ours), (grads, grad) = call(layer, jnp.asarray(data))
    close(ours, case.back(y.detach().numpy()))
    close(grad, case.back(x.grad.numpy()), 1e-4)
    for own, (other, to) in case.names.items():
        close(to(grads[own][...]), getattr(net, other).grad.numpy(), 1e-4)
    if isinstance(layer, nnx.BatchNorm):
        close(layer.mean[...], net.running_mean.numpy())
        count = data.size / 4  # PyTorch keeps the unbiased variance
        kept = 1 - net.momentum
        var = (net.running_var.numpy() - kept) * (count - 1) / count + kept
        close(layer.var[...], var)
        layer.eval()
        net.eval()
        net.running_var.copy_(torch.tensor(np.asarray(layer.var[...])))
        close(layer(data), case.back(net(x).detach().numpy()))


def test_embed_as_torch(oracle):
    torch = oracle("torch")
    layer, net = nnx.Embed(6, 4, rngs=RNGS), torch.nn.Embedding(6, 4)
    with torch.no_grad():
        net.weight.copy_(torch.tensor(np.asarray(layer.embedding[...])))
    indices = np.array([[0, 5, 3], [3, 3, 2]])
    y = net(torch.tensor(indices))
    (y**2).sum().backward()
    close(layer(indices), y.detach().numpy())
    grads = nnx.grad(lambda m: (m(indices) ** 2).sum())(layer)
    close(grads["embedding"][...], net.weight.grad.numpy())
    query = normal(2, 4)
    tied = torch.nn.functional.linear(torch.tensor(query), net.weight)
    close(layer.attend(query), tied.detach().numpy())


POOLS = {
    "max": (
        lambda x: nnx.max_pool(x, (3, 2), strides=(2, 2), padding=((1, 1), (0, 0))),
        lambda f, x: f.max_pool2d(x, (3, 2), stride=2, padding=(1, 0)),
    ),
    "avg": (
        lambda x: nnx.avg_pool(x, (2, 2), strides=(2, 2)),
        lambda f, x: f.avg_pool2d(x, 2),
    ),
    "avg padded": (
        lambda x: nnx.avg_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))),
        lambda f, x: f.avg_pool2d(x, 3, stride=2, padding=1),
    ),
    "avg true counts": (
        lambda x: nnx.avg_pool(
            x, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=False
        ),
        lambda f, x: f.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False),
    ),
    "adaptive": (
        lambda x: nnx.adaptive_avg_pool(x, (3, 4)),
        lambda f, x: f.adaptive_avg_pool2d(x, (3, 4)),
    ),
    "adaptive one": (
        lambda x: nnx.adaptive_avg_pool(x, (1, None)),
        lambda f, x: f.adaptive_avg_pool2d(x, (1, None)),
    ),
    "adaptive more than there are": (
        lambda x: nnx.adaptive_avg_pool(x, (11, 9)),
        lambda f, x: f.adaptive_avg_pool2d(x, (11, 9)),
    ),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling_as_torch(oracle, name):
    torch = oracle("torch")
    ours, theirs = POOLS[name]
    data = normal(2, 8, 7, 3)
    x = torch.tensor(first(data).copy(), requires_grad=True)
    y = theirs(torch.nn.functional, x)
    (y**2).sum().backward()
    close(ours(data), last(y.detach().numpy()))
    grad = jax.grad(lambda x: (ours(x) ** 2).sum())(data)
    close(grad, last(x.grad.numpy()))


ACTIVATIONS = {
    "celu": {},
    "elu": {},
    "gelu": {"theirs": {"approximate": "tanh"}},
    "glu": {},
    "leaky_relu": {},
    "logsigmoid": {"ours": "log_sigmoid"},
    "log_softmax": {"theirs": {"dim": -1}},
    "relu": {},
    "relu6": {},
    "selu": {},
    "sigmoid": {},
    "silu": {},
    "softmax": {"theirs": {"dim": -1}},
    "softplus": {},
    "softsign": {"ours": "soft_sign"},
    "tanh": {},
    "hardsigmoid": {"ours": "hard_sigmoid"},
    "hardswish": {"ours": "hard_swish"},
    "hardtanh": {"ours": "hard_tanh"},
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_as_torch(oracle, name):
    torch = oracle("torch")
    case = ACTIVATIONS[name]
    ours = getattr(nnx, case.get("ours", name))
    theirs = getattr(torch.nn.functional, name)
    data = 4 * normal(5, 6)
    x = torch.tensor(data, requires_grad=True)
    y = theirs(x, **case.get("theirs", {}))
    (y**2).sum().backward()
    close(ours(data), y.detach().numpy())
    close(jax.grad(lambda x: (ours(x) ** 2).sum())(data), x.grad.numpy())


def test_alpha_dropout_has_the_values_of_torch(oracle):
    torch = oracle("torch")
    ours = nnx.AlphaDropout(0.3, rngs=nnx.Rngs(0))(np.ones(2000, np.float32))
    theirs = torch.nn.functional.alpha_dropout(torch.ones(2000), 0.3, training=True)
    values, counts = np.unique(np.asarray(ours), return_counts=True)
    wanted = np.unique(theirs.numpy())
    close(values, wanted)
    assert abs(counts[0] / 2000 - 0.3) < 0.05
    assert not nnx.AlphaDropout(1.0, rngs=nnx.Rngs(0))(jnp.ones(3)).any()
