"""What transforms over objects cost beside the same transforms of hand-written JAX.

Each case is the gradient of a loss, once over objects with nnxlite's transforms, once
over dicts of arrays with JAX's: layers in a scan, an ensemble under vmap, layers under
remat, and all three nested. Both must compile to programs of the same FLOPs, the same
bytes moved and the same temporary memory, and trace in about the same time. A last
table compares how long a Stack of 96 layers takes to compile with one of 2.

    python benchmarks/transforms.py --help
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nnxlite as nnx
from timing import Column, Report, argument_parser, markdown, measure

WIDTH, LAYERS, MEMBERS = 64, 8, 4
BY_HAND = "hand-written JAX"


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.down = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(x)))


def block_by_hand():
    """A new function at each call, so that JAX has not traced it yet."""

    def block(params, x):
        hidden = jax.nn.relu(x @ params["up"]["kernel"] + params["up"]["bias"])
        return x + hidden @ params["down"]["kernel"] + params["down"]["bias"]

    return block


def inputs():
    return jnp.sin(jnp.arange(16.0 * WIDTH)).reshape(16, WIDTH)


@dataclass(frozen=True)
class Case:
    """One computation, written twice.

    Attributes:
        model: the objects.
        forward: of objects and input, makes a new function at each call.
        by_hand: of a nested dict of the same arrays and input, likewise.
    """

    model: Any
    forward: Callable[[], Callable[..., Any]]
    by_hand: Callable[[], Callable[..., Any]]

    @property
    def params(self) -> Any:
        return nnx.to_pure_dict(nnx.state(self.model, nnx.Param))

    def on_objects(self):
        forward = self.forward()
        return nnx.jit(nnx.value_and_grad(lambda m, x: (forward(m, x) ** 2).mean()))

    def on_arrays(self):
        forward = self.by_hand()
        return jax.jit(jax.value_and_grad(lambda p, x: (forward(p, x) ** 2).mean()))


def stacked(remat: bool = False) -> Callable[[nnx.Rngs], nnx.Stack]:
    return lambda rngs: nnx.Stack(Block, LAYERS, rngs=rngs, remat=remat)


def scanned(remat: bool = False):
    block = block_by_hand()
    step = jax.checkpoint(block) if remat else block

    def forward(params, x):
        return jax.lax.scan(lambda x, p: (step(p, x), None), x, params["layers"])[0]

    return forward


def cases() -> dict[str, Case]:
    def ensemble(make):
        every = nnx.vmap(make, in_axes=None, axis_size=MEMBERS, split_rngs=True)
        return every(nnx.Rngs(0))

    def over_members(forward):
        return nnx.vmap(forward, in_axes=(0, None))

    def rematerialized():
        step = nnx.remat(lambda layer, x: layer(x))

        def forward(model, x):
            for layer in model:
                x = step(layer, x)
            return x

        return forward

    def rematerialized_by_hand():
        step = jax.checkpoint(block_by_hand())

        def forward(params, x):
            for number in range(LAYERS):
                x = step(params[number], x)
            return x

        return forward

    def call():
        return lambda model, x: model(x)

    return {
        "scan over layers": Case(stacked()(nnx.Rngs(0)), call, scanned),
        "vmap over an ensemble": Case(
            ensemble(Block),
            lambda: over_members(call()),
            lambda: jax.vmap(block_by_hand(), in_axes=(0, None)),
        ),
        "remat of each layer": Case(
            nnx.List([Block(nnx.Rngs(n)) for n in range(LAYERS)]),
            rematerialized,
            rematerialized_by_hand,
        ),
        "vmap of scan of remat": Case(
            ensemble(stacked(remat=True)),
            lambda: over_members(call()),
            lambda: jax.vmap(scanned(remat=True), in_axes=(0, None)),
        ),
    }


def compiled_costs(program: Any) -> dict[str, float]:
    """FLOPs, bytes accessed and temporary bytes of a lowered program."""
    compiled = program.compile()
    analysis = compiled.cost_analysis()
    return {
        "FLOPs": analysis["flops"],
        "bytes accessed": analysis["bytes accessed"],
        "temporary bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


LIMITS = {"FLOPs": 1.0, "bytes accessed": 1.0, "temporary bytes": 1.05}


def cost_table(report: Report, title: str, case: Case) -> None:
    """Compares what is compiled; first checks that both compute the same."""
    x = inputs()
    loss, _ = case.on_objects()(case.model, x)
    expected, _ = case.on_arrays()(case.params, x)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    objects = compiled_costs(case.on_objects().lower(case.model, x))
    arrays = compiled_costs(case.on_arrays().lower(case.params, x))
    rows = []
    for name, limit in LIMITS.items():
        ratio = objects[name] / arrays[name] if arrays[name] else 1.0
        is_missed = ratio > limit + 1e-9
        verdict = " MISSED" if is_missed else ""
        figures = [f"{costs[name]:,.0f}" for costs in (arrays, objects)]
        rows.append([name, *figures, f"{ratio:.3f} (<= {limit:g}{verdict})"])
        if is_missed:
            report.missed.append(f"{title} / {name}: {ratio:.3f}, limit {limit:g}")
    report.write(markdown([title, BY_HAND, "nnxlite", "ratio"], rows) + "\n")


def trace_column(title: str, case: Case, rounds: int) -> Column:
    """Times tracing alone: each sample traces functions never seen before."""
    x, params = inputs(), case.params
    contenders = {
        BY_HAND: lambda: case.on_arrays().trace(params, x),
        "nnxlite": lambda: case.on_objects().trace(case.model, x),
    }
    return Column(title, measure(contenders, rounds=rounds), BY_HAND, {"nnxlite": 1.3})


def compile_table(report: Report, rounds: int) -> None:
    """Seconds to trace and compile the gradient of a Stack, by number of layers."""
    seconds: dict[int, list[float]] = {2: [], 96: []}
    models = {n: nnx.Stack(Block, n, rngs=nnx.Rngs(0)) for n in seconds}
    for _ in range(rounds):
        for n, model in models.items():
            jax.clear_caches()
            step = nnx.jit(nnx.value_and_grad(lambda m, x: (m(x) ** 2).mean()))
            start = time.perf_counter()
            step.lower(model, inputs()).compile()
            seconds[n].append(time.perf_counter() - start)
    few, many = (sorted(taken)[len(taken) // 4] for taken in seconds.values())
    ratio = many / few
    verdict = " MISSED" if ratio > 1.5 else ""
    rows = [[f"{n} layers", f"{s:.2f}"] for n, s in ((2, few), (96, many))]
    rows[1].append(f"{ratio:.2f} (<= 1.5{verdict})")
    rows[0].append("1.00")
    report.write(markdown(["compiling a Stack", "seconds", "ratio"], rows) + "\n")
    if verdict:
        report.missed.append(f"compiling a Stack: {ratio:.2f}, limit 1.5")


def main() -> int:
    parser = argument_parser("Transforms against plain JAX.")
    options = parser.parse_args()
    report = Report("Transforms", options.out)
    all_cases = cases()
    for title, case in all_cases.items():
        cost_table(report, title, case)
    rounds = max(3, options.rounds // 4)
    columns = [trace_column(title, case, rounds) for title, case in all_cases.items()]
    report.table("tracing", columns)
    compile_table(report, max(3, options.rounds // 12))
    status = report.close()
    return status if options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
