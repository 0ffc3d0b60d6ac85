"""What a layer costs without `jit`: against its jnp expression, Flax and PyTorch.

The baseline of each table is the expression that a user would write by hand with the
same arrays, run eagerly. Beside it stands the same expression under `jax.jit`, which is
what the layer could cost at best. Where a layer keeps state (running statistics, a key
counter) the expressions compute the new state too. The last tables are networks,
forward and with gradients; there the baseline is PyTorch.

    python benchmarks/eager.py --help
"""

import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

import nnxlite
from nnxlite import functional
from timing import Column, Report, argument_parser, measure, optional

EXPRESSION = "jnp expression"
TORCH = "PyTorch"
Build = Callable[[types.ModuleType], Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """One layer to time.

    Attributes:
        name: heads the table.
        expression: the mathematics, as a function of `arrays`.
        arrays: what the expression works on.
        build: makes the layer in nnxlite or Flax; returns a call without arguments.
        torch: likewise in PyTorch; None where it has no such layer.
        limits: the largest good ratios of nnxlite to others, by their names.
        is_random: whether the results differ by chance and cannot be compared.
    """

    name: str
    expression: Callable
    arrays: tuple
    build: Build
    torch: Build | None = None
    limits: dict[str, float] = field(default_factory=lambda: {EXPRESSION: 1.0})
    is_random: bool = False


# ------------------------------------------------------------- the expressions


def linear(x, kernel, bias):
    return x @ kernel + bias


def normalize(x, mean, var, scale, bias, epsilon):
    return (x - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias


def layer_norm(x, scale, bias):
    mean = x.mean(-1, keepdims=True)
    var = jnp.maximum(0, (x * x).mean(-1, keepdims=True) - mean * mean)
    return normalize(x, mean, var, scale, bias, 1e-6)


def batch_norm_train(x, scale, bias, moving_mean, moving_var):
    mean = x.mean(0)
    var = jnp.maximum(0, (x * x).mean(0) - mean * mean)
    moving = 0.99 * moving_mean + 0.01 * mean, 0.99 * moving_var + 0.01 * var
    return normalize(x, mean, var, scale, bias, 1e-5), moving


def batch_norm_eval(x, scale, bias, moving_mean, moving_var):
    return normalize(x, moving_mean, moving_var, scale, bias, 1e-5)


def dropout(x, key, count):
    mask = jax.random.bernoulli(jax.random.fold_in(key, count), 0.5, x.shape)
    return jnp.where(mask, x / 0.5, 0), count + 1


def embed(ids, embedding):
    return jnp.take(embedding, ids, axis=0)


def conv(x, kernel, bias):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=dimensions
    )
    return y + bias


def by_hand(kernel: Callable, **options) -> Callable:
    """The source of one of our functions, run operation by operation."""
    return functools.partial(inspect.unwrap(kernel), **options)


# ------------------------------------------------------------- the layers


def uniform(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)


X, IMAGE, IDS = uniform(8, 64), uniform(2, 8, 8, 8), jnp.arange(8)
SEQUENCE = uniform(2, 16, 64)
HEADS = SEQUENCE.reshape(2, 16, 4, 16)
STEP = HIDDEN = uniform(8, 32)


def layer(make: Callable, x, mode: str = "train") -> Build:
    """Builds `make(nnx, rngs)` and calls it on `x`."""

    def build(nnx):
        module = make(nnx, nnx.Rngs(0))
        getattr(module, mode)()
        return lambda: module(x)

    return build


def in_torch(make: Callable, x, mode: str = "train") -> Build:
    """Builds `make(torch.nn)` and calls it on `x`, channels first; no gradients."""

    def build(torch):
        module, value = make(torch.nn), np.asarray(x)
        if value.ndim == 4:
            value = np.moveaxis(value, -1, 1)
        value = torch.tensor(np.ascontiguousarray(value))
        if value.dtype == torch.int32:
            value = value.long()
        getattr(module, mode)()

        def call():
            with torch.no_grad():
                return module(value)

        return call

    return build


def next_key(nnx):
    rngs = nnx.Rngs(0)
    return lambda: rngs.params()


def parameters(make: Callable, *paths: str) -> tuple:
    """The named arrays of nnxlite's own layer, for the expression."""
    module = make(nnxlite, nnxlite.Rngs(0))

    def at(path):
        variable = functools.reduce(getattr, path.split("."), module)
        return None if variable is None else jnp.array(variable[...])

    return tuple(map(at, paths))


def kind(name: str, *args, **options) -> Callable:
    """What makes a layer of a framework, by the name of its class."""

    def make(nnx, rngs):
        return getattr(nnx, name)(*args, **options, rngs=rngs)

    return make


def attention(x, *arrays):
    """Projections of queries, keys and values, attention, and the way out."""
    query, key, value = (
        jnp.einsum("...i,ihd->...hd", x, kernel) + bias
        for kernel, bias in zip(arrays[0:6:2], arrays[1:6:2], strict=True)
    )
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key) / query.shape[-1] ** 0.5
    y = jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(logits), value)
    return jnp.einsum("...hd,hdo->...o", y, arrays[6]) + arrays[7]


def lstm(carry, x, inward, recurrent, bias):
    memory, hidden = carry
    i, f, g, o = jnp.split(x @ inward + hidden @ recurrent + bias, 4, axis=-1)
    memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
    return memory, jax.nn.sigmoid(o) * jnp.tanh(memory)


def step_of(make: Callable) -> Build:
    """Builds a cell; returns a call of one step, which gives the new carry."""

    def build(nnx):
        cell = make(nnx, nnx.Rngs(0))
        carry = (HIDDEN, HIDDEN) if make is LSTM else HIDDEN
        return lambda: cell(carry, STEP)[0]

    return build


def torch_step(name: str) -> Build:
    def build(torch):
        cell, step = getattr(torch.nn, name)(32, 32), torch.tensor(np.asarray(STEP))

        def call():
            with torch.no_grad():
                return cell(step)

        return call

    return build


def alpha_dropout(x, key, count):
    low = -1.0507009873554805 * 1.6732632423543772
    scale = (0.5 * (1 + 0.5 * low**2)) ** -0.5
    mask = jax.random.bernoulli(jax.random.fold_in(key, count), 0.5, x.shape)
    return scale * jnp.where(mask, x, low) - scale * low * 0.5


def gated_mlp(x, gate, up, down):
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down


def low_rank(x, kernel, bias, a, b):
    return x @ kernel + bias + x @ a @ b


LINEAR = kind("Linear", 64, 64)
LAYER_NORM = kind("LayerNorm", 64)
RMS_NORM = kind("RMSNorm", 64)
BATCH_NORM = kind("BatchNorm", 64)
GROUP_NORM = kind("GroupNorm", 8, 4)
INSTANCE_NORM = kind("InstanceNorm", 8)
GENERAL = kind("LinearGeneral", 64, (4, 16))
EINSUM = kind("Einsum", "bi,io->bo", (64, 64), (64,))
EMBED = kind("Embed", 100, 64)
CONV = kind("Conv", 8, 16, (3, 3))
TRANSPOSED = kind("ConvTranspose", 8, 16, (3, 3))
ATTENTION = kind("MultiHeadAttention", 4, 64, decode=False)
LSTM = kind("OptimizedLSTMCell", 32, 32)
GRU = kind("GRUCell", 32, 32)
SIMPLE = kind("SimpleCell", 32, 32)
MLP = kind("GatedMLP", 64, 64)
LORA = kind("LoRALinear", 64, 64, lora_rank=4)
SLOPE = jnp.float32(0.01)


def prelu(nnx, rngs):
    return nnx.PReLU()


def called(name: str, x, *args, **options) -> Build:
    def build(nnx):
        function = getattr(nnx, name)
        return lambda: function(x, *args, **options)

    return build


def layer_cases() -> list[Case]:
    half = {EXPRESSION: 0.5}
    tenth = {"flax nnx": 0.1}
    statistics = parameters(BATCH_NORM, "scale", "bias", "mean", "var")
    projections = [
        f"{name}.{part}"
        for name in ("query", "key", "value", "out")
        for part in ("kernel", "bias")
    ]
    gates = parameters(LSTM, "dense_i.kernel", "dense_h.kernel", "dense_h.bias")
    return [
        Case(
            "Linear 8x64x64",
            linear,
            (X, *parameters(LINEAR, "kernel", "bias")),
            layer(LINEAR, X),
            in_torch(lambda nn: nn.Linear(64, 64), X),
            {EXPRESSION: 1.0} | tenth,
        ),
        Case(
            "LinearGeneral 8x64x4x16",
            lambda x, kernel, bias: jnp.tensordot(x, kernel, 1) + bias,
            (X, *parameters(GENERAL, "kernel", "bias")),
            layer(GENERAL, X),
        ),
        Case(
            "Einsum 8x64x64",
            lambda x, kernel, bias: jnp.einsum("bi,io->bo", x, kernel) + bias,
            (X, *parameters(EINSUM, "kernel", "bias")),
            layer(EINSUM, X),
        ),
        Case(
            "LoRALinear 8x64x64",
            low_rank,
            (X, *parameters(LORA, "kernel", "bias", "lora.lora_a", "lora.lora_b")),
            layer(LORA, X),
        ),
        Case(
            "Embed 100x64, 8 ids",
            embed,
            (IDS, *parameters(EMBED, "embedding")),
            layer(EMBED, IDS),
            in_torch(lambda nn: nn.Embedding(100, 64), IDS),
        ),
        Case(
            "Conv 2x8x8x8 -> 16, 3x3",
            conv,
            (IMAGE, *parameters(CONV, "kernel", "bias")),
            layer(CONV, IMAGE),
            in_torch(lambda nn: nn.Conv2d(8, 16, 3, padding=1), IMAGE),
        ),
        Case(
            "ConvTranspose 2x8x8x8 -> 16, 3x3",
            lambda x, kernel, bias: (
                jax.lax.conv_transpose(x, kernel, (1, 1), "SAME") + bias
            ),
            (IMAGE, *parameters(TRANSPOSED, "kernel", "bias")),
            layer(TRANSPOSED, IMAGE),
            in_torch(lambda nn: nn.ConvTranspose2d(8, 16, 3, padding=1), IMAGE),
        ),
        Case(
            "LayerNorm 8x64",
            layer_norm,
            (X, *parameters(LAYER_NORM, "scale", "bias")),
            layer(LAYER_NORM, X),
            in_torch(lambda nn: nn.LayerNorm(64), X),
            half | tenth,
        ),
        Case(
            "RMSNorm 8x64",
            lambda x, scale: (
                x * (jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale)
            ),
            (X, *parameters(RMS_NORM, "scale")),
            layer(RMS_NORM, X),
            in_torch(lambda nn: nn.RMSNorm(64), X),
            {EXPRESSION: 1.0} | tenth,
        ),
        Case(
            "GroupNorm 2x8x8x8, 4 groups",
            by_hand(functional.group_norm, num_groups=4),
            (IMAGE, *parameters(GROUP_NORM, "scale", "bias"), None),
            layer(GROUP_NORM, IMAGE),
            in_torch(lambda nn: nn.GroupNorm(4, 8), IMAGE),
            {EXPRESSION: 1.0} | tenth,
        ),
        Case(
            "InstanceNorm 2x8x8x8",
            by_hand(functional.layer_norm, reduction_axes=(1, 2)),
            (IMAGE, *parameters(INSTANCE_NORM, "scale", "bias"), None),
            layer(INSTANCE_NORM, IMAGE),
            in_torch(lambda nn: nn.InstanceNorm2d(8, affine=True), IMAGE),
            {EXPRESSION: 1.0} | tenth,
        ),
        Case(
            "BatchNorm 8x64, train",
            batch_norm_train,
            (X, *statistics),
            layer(BATCH_NORM, X),
            in_torch(lambda nn: nn.BatchNorm1d(64), X),
            half | tenth,
        ),
        Case(
            "BatchNorm 8x64, eval",
            batch_norm_eval,
            (X, *statistics),
            layer(BATCH_NORM, X, mode="eval"),
            in_torch(lambda nn: nn.BatchNorm1d(64), X, mode="eval"),
            half | tenth,
        ),
        Case(
            "Dropout 8x64",
            dropout,
            (X, jax.random.key(0), jnp.uint32(0)),
            layer(kind("Dropout", 0.5), X),
            in_torch(lambda nn: nn.Dropout(0.5), X),
            {EXPRESSION: 1.0} | tenth,
            is_random=True,
        ),
        Case(
            "AlphaDropout 8x64",
            alpha_dropout,
            (X, jax.random.key(0), jnp.uint32(0)),
            layer(kind("AlphaDropout", 0.5), X),
            in_torch(lambda nn: nn.AlphaDropout(0.5), X),
            is_random=True,
        ),
        Case(
            "MultiHeadAttention 2x16x64, 4 heads",
            attention,
            (SEQUENCE, *parameters(ATTENTION, *projections)),
            layer(ATTENTION, SEQUENCE),
            None,
            {EXPRESSION: 1.0} | tenth,
        ),
        Case(
            "LSTM cell 8x32",
            lambda *arrays: lstm((HIDDEN, HIDDEN), STEP, *arrays),
            gates,
            step_of(LSTM),
            torch_step("LSTMCell"),
        ),
        Case(
            "GRU cell 8x32",
            lambda inward, bias, recurrent: by_hand(functional.gru)(
                STEP @ inward + bias, HIDDEN @ recurrent, HIDDEN
            ),
            parameters(GRU, "dense_i.kernel", "dense_i.bias", "dense_h.kernel"),
            step_of(GRU),
            torch_step("GRUCell"),
        ),
        Case(
            "Simple cell 8x32",
            lambda inward, bias, recurrent: jnp.tanh(
                STEP @ inward + bias + HIDDEN @ recurrent
            ),
            parameters(SIMPLE, "dense_i.kernel", "dense_i.bias", "dense_h.kernel"),
            step_of(SIMPLE),
            torch_step("RNNCell"),
        ),
        Case(
            "PReLU 8x64",
            lambda x, slope: jnp.where(x >= 0, x, slope * x),
            (X, SLOPE),
            layer(prelu, X),
            in_torch(lambda nn: nn.PReLU(init=0.01), X),
        ),
        Case(
            "GatedMLP 8x64x64",
            gated_mlp,
            (X, *parameters(MLP, "gate.kernel", "up.kernel", "down.kernel")),
            layer(MLP, X),
        ),
        Case(
            "max_pool 2x8x8x8, 2x2",
            by_hand(
                functional.pool,
                init=-jnp.inf,
                reduce_fn=jax.lax.max,
                padding=0,
                window_shape=(2, 2),
                strides=2,
            ),
            (IMAGE,),
            called("max_pool", IMAGE, (2, 2), (2, 2)),
            in_torch(lambda nn: nn.MaxPool2d(2), IMAGE),
        ),
        Case(
            "avg_pool 2x8x8x8, 2x2",
            lambda x: (
                by_hand(
                    functional.pool,
                    init=0,
                    reduce_fn=jax.lax.add,
                    padding=0,
                    window_shape=(2, 2),
                    strides=2,
                )(x)
                / 4
            ),
            (IMAGE,),
            called("avg_pool", IMAGE, (2, 2), (2, 2)),
            in_torch(lambda nn: nn.AvgPool2d(2), IMAGE),
        ),
        Case(
            "rotary_embedding 2x16x4x16",
            by_hand(functional.rotary_embedding),
            (HEADS,),
            called("rotary_embedding", HEADS),
        ),
        Case(
            "Rngs key",
            jax.random.fold_in,
            (jax.random.key(0), 5),
            next_key,
            None,
            {EXPRESSION: 0.3},
            is_random=True,
        ),
    ]


# ------------------------------------------------------------- networks


def mlp(nnx, rngs):
    return nnx.Sequential(
        nnx.Linear(64, 64, rngs=rngs),
        nnx.relu,
        nnx.Linear(64, 64, rngs=rngs),
        nnx.relu,
        nnx.Linear(64, 10, rngs=rngs),
    )


def torch_mlp(nn):
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def block(nnx, rngs):
    class Block(nnx.Module):
        def __init__(self):
            self.norm1 = nnx.LayerNorm(64, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(4, 64, decode=False, rngs=rngs)
            self.norm2 = nnx.LayerNorm(64, rngs=rngs)
            self.up = nnx.Linear(64, 256, rngs=rngs)
            self.down = nnx.Linear(256, 64, rngs=rngs)

        def __call__(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.down(nnx.gelu(self.up(self.norm2(x))))

    return Block()


def torch_block(nn):
    return nn.TransformerEncoderLayer(
        64, 4, 256, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


NETWORKS = {
    "MLP 8x64x64x10": (mlp, torch_mlp, X),
    "transformer block 2x16x64": (block, torch_block, SEQUENCE),
}


def forward_of(nnx, make: Callable, x) -> Callable:
    module = make(nnx, nnx.Rngs(0))
    return lambda: module(x)


def gradients_of(nnx, make: Callable, x) -> Callable:
    module = make(nnx, nnx.Rngs(0))
    call = nnx.value_and_grad(lambda module: (module(x) ** 2).mean())
    return lambda: call(module)[0]


def torch_network(torch, make: Callable, x, with_gradients: bool) -> Callable:
    module, value = make(torch.nn), torch.tensor(np.asarray(x))

    def forward():
        with torch.no_grad():
            return module(value)

    def both():
        module.zero_grad()
        loss = (module(value) ** 2).mean()
        loss.backward()
        return loss

    return both if with_gradients else forward


# ------------------------------------------------------------- tables


def column(case: Case, flax_nnx, torch, rounds: int) -> Column:
    """Times one case, after a look that layer and expression give the same."""
    ours, compiled = case.build(nnxlite), jax.jit(case.expression)
    if not case.is_random:
        expected = jax.tree.leaves(case.expression(*case.arrays))[0]
        result = jax.tree.leaves(ours())[0]
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    contenders = {
        EXPRESSION: lambda: case.expression(*case.arrays),
        "the same, compiled": lambda: compiled(*case.arrays),
        "nnxlite": ours,
    }
    if flax_nnx is not None:
        try:
            contenders["flax nnx"] = case.build(flax_nnx)
        except AttributeError:
            pass  # it has no such layer
    if torch is not None and case.torch is not None:
        contenders[TORCH] = case.torch(torch)
    return Column(
        title="a call",
        timings=measure(contenders, rounds=rounds),
        baseline=EXPRESSION,
        limits={"nnxlite": case.limits[EXPRESSION]},
    )


def network_column(make, torch_make, x, with_gradients, flax_nnx, torch, rounds):
    """Times one network; PyTorch is the baseline where it is installed."""
    work = gradients_of if with_gradients else forward_of
    contenders = {"nnxlite": work(nnxlite, make, x)}
    if torch is not None:
        network = torch_network(torch, torch_make, x, with_gradients)
        contenders = {TORCH: network, **contenders}
    if flax_nnx is not None:
        contenders["flax nnx"] = work(flax_nnx, make, x)
    return Column(
        title="forward and backward" if with_gradients else "forward",
        timings=measure(contenders, rounds=rounds),
        baseline=next(iter(contenders)),
        limits={"nnxlite": 2.0},
    )


def main() -> int:
    parser = argument_parser("Eager layers against jnp, Flax and PyTorch.")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    report = Report("Eager layers", options.out)
    flax_nnx, torch = optional("flax.nnx"), optional("torch")
    for case in layer_cases():
        if options.only.lower() not in case.name.lower():
            continue
        timed = column(case, flax_nnx, torch, options.rounds)
        report.table(case.name, [timed])
        ours = timed.timings["nnxlite"].typical
        for other, limit in case.limits.items():
            if other != EXPRESSION and other in timed.timings:
                ratio = ours / timed.timings[other].typical
                if ratio > limit:
                    report.missed.append(
                        f"{case.name} / nnxlite / of {other}: {ratio:.2f}, "
                        f"limit {limit:g}"
                    )
    for name, (make, torch_make, x) in NETWORKS.items():
        if options.only.lower() in name.lower():
            columns = [
                network_column(
                    make, torch_make, x, both, flax_nnx, torch, options.rounds
                )
                for both in (False, True)
            ]
            report.table(name, columns)
    status = report.close()
    return status if options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
