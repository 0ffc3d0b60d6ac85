"""What a layer costs without `jit`: against its jnp expression and Flax's layer.

The baseline of each table is the expression that a user would write by hand with the
same arrays, run eagerly. Beside it stands the same expression under `jax.jit`, which is
what the layer could cost at best. Where a layer keeps state (running statistics, a key
counter) the expressions compute the new state too.

    python benchmarks/eager.py --help
"""

import types
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import nnxlite
from timing import Column, Report, argument_parser, measure, optional

EXPRESSION = "jnp expression"
Build = Callable[[types.ModuleType], Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """One layer to time.

    Attributes:
        name: heads the table.
        expression: the mathematics, as a function of `arrays`.
        arrays: what the expression works on.
        build: makes the layer in nnxlite or Flax; returns a call without arguments.
        limit: the largest good ratio of nnxlite to the expression, if one is set.
        is_random: whether the results differ by chance and cannot be compared.
    """

    name: str
    expression: Callable
    arrays: tuple
    build: Build
    limit: float | None = None
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


# ------------------------------------------------------------- the layers


def uniform(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)


def layer(make: Callable, x, mode: str = "train") -> Build:
    """Builds `make(nnx, rngs)` and calls it on `x`."""

    def build(nnx):
        module = make(nnx, nnx.Rngs(0))
        getattr(module, mode)()
        return lambda: module(x)

    return build


def next_key(nnx):
    rngs = nnx.Rngs(0)
    return lambda: rngs.params()


def parameters(make: Callable, *names: str) -> tuple:
    """The named arrays of nnxlite's own layer, for the expression."""
    module = make(nnxlite, nnxlite.Rngs(0))
    return tuple(jnp.array(getattr(module, name)[...]) for name in names)


def make_linear(nnx, rngs):
    return nnx.Linear(64, 64, rngs=rngs)


def make_layer_norm(nnx, rngs):
    return nnx.LayerNorm(64, rngs=rngs)


def make_batch_norm(nnx, rngs):
    return nnx.BatchNorm(64, rngs=rngs)


def make_dropout(nnx, rngs):
    return nnx.Dropout(0.5, rngs=rngs)


def make_embed(nnx, rngs):
    return nnx.Embed(100, 64, rngs=rngs)


def make_conv(nnx, rngs):
    return nnx.Conv(8, 16, (3, 3), rngs=rngs)


def cases() -> list[Case]:
    x, image, ids = uniform(8, 64), uniform(2, 8, 8, 8), jnp.arange(8)
    statistics = parameters(make_batch_norm, "scale", "bias", "mean", "var")
    return [
        Case(
            "Linear 8x64x64",
            linear,
            (x, *parameters(make_linear, "kernel", "bias")),
            layer(make_linear, x),
            limit=1.0,
        ),
        Case(
            "LayerNorm 8x64",
            layer_norm,
            (x, *parameters(make_layer_norm, "scale", "bias")),
            layer(make_layer_norm, x),
            limit=0.5,
        ),
        Case(
            "BatchNorm 8x64, train",
            batch_norm_train,
            (x, *statistics),
            layer(make_batch_norm, x),
            limit=0.5,
        ),
        Case(
            "BatchNorm 8x64, eval",
            batch_norm_eval,
            (x, *statistics),
            layer(make_batch_norm, x, mode="eval"),
            limit=0.5,
        ),
        Case(
            "Dropout 8x64",
            dropout,
            (x, jax.random.key(0), jnp.uint32(0)),
            layer(make_dropout, x),
            is_random=True,
        ),
        Case(
            "Embed 100x64, 8 ids",
            embed,
            (ids, *parameters(make_embed, "embedding")),
            layer(make_embed, ids),
        ),
        Case(
            "Conv 2x8x8x8 -> 16, 3x3",
            conv,
            (image, *parameters(make_conv, "kernel", "bias")),
            layer(make_conv, image),
        ),
        Case(
            "Rngs key",
            jax.random.fold_in,
            (jax.random.key(0), 5),
            next_key,
            limit=0.3,
            is_random=True,
        ),
    ]


def column(case: Case, flax_nnx: types.ModuleType | None, rounds: int) -> Column:
    """Times one case, after a look that layer and expression give the same."""
    ours, compiled = case.build(nnxlite), jax.jit(case.expression)
    if not case.is_random:
        expected = jax.tree.leaves(case.expression(*case.arrays))[0]
        np.testing.assert_allclose(ours(), expected, rtol=1e-4, atol=1e-5)
    contenders = {
        EXPRESSION: lambda: case.expression(*case.arrays),
        "the same, compiled": lambda: compiled(*case.arrays),
        "nnxlite": ours,
    }
    if flax_nnx is not None:
        contenders["flax nnx"] = case.build(flax_nnx)
    return Column(
        title="a call",
        timings=measure(contenders, rounds=rounds),
        baseline=EXPRESSION,
        limits={} if case.limit is None else {"nnxlite": case.limit},
    )


def main() -> int:
    parser = argument_parser("Eager layers against their jnp expressions.")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    report, flax_nnx = Report("Eager layers", options.out), optional("flax.nnx")
    for case in cases():
        if options.only.lower() in case.name.lower():
            report.table(case.name, [column(case, flax_nnx, options.rounds)])
    status = report.close()
    return status if options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
