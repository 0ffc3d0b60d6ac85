"""Whether anything grows, and whether a step ever stalls, over many training steps.

Runs a jitted step of a small network with Adam 20,000 times; after a warm-up, counts
live arrays, objects that the garbage collector tracks, and resident memory, at the
start and at the end, and looks at the slowest step, beside that of the same step as a
plain `jax.jit` on a State: what stalls there too is the machine's or JAX's doing. Then
drops the model and looks whether it, and what the compiled function kept, is gone.

    python benchmarks/soak.py --help
"""

import argparse
import functools
import gc
import statistics
import sys
import time
import weakref

import jax
import jax.numpy as jnp
import optax

import nnxlite as nnx

WARM_UP = 100


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = [nnx.Linear(16, 16, rngs=rngs) for _ in range(4)]
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.dropout(self.norm(x))


def train(model, optimizer, x):
    loss, grads = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    optimizer.update(grads)
    return loss


step = nnx.jit(train)


def plain_step(model, optimizer):
    """The same step on a State, through plain JAX, as a function of the input."""
    graphdef, state = nnx.split((model, optimizer))
    state = jax.tree.map(jnp.copy, state)

    @jax.jit
    def pure(state, x):
        model, optimizer = nnx.merge(graphdef, state)
        loss = train(model, optimizer, x)
        return loss, nnx.state((model, optimizer))

    def step(x):
        nonlocal state
        loss, state = pure(state, x)
        return loss

    return step


def resident_bytes() -> int:
    """Resident memory of this process (Linux), 0 where it cannot be read."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


def counts() -> dict[str, int]:
    gc.collect()
    return {
        "live arrays": len(jax.live_arrays()),
        "tracked objects": len(gc.get_objects()),
        "resident KiB": resident_bytes() // 1024,
    }


def timed(name: str, call, seconds: list[float]) -> float:
    """Fills in how long each call took; prints and returns slowest over median."""
    call().block_until_ready()
    for number in range(len(seconds)):
        start = time.perf_counter()
        call().block_until_ready()
        seconds[number] = time.perf_counter() - start
    median, slowest = statistics.median(seconds), max(seconds)
    stalls = sum(one > 20 * median for one in seconds)
    print(
        f"{name}, {len(seconds):,} steps: median {median * 1e6:.0f} us, slowest "
        f"{slowest * 1e6:.0f} us, {slowest / median:.1f} times the median; {stalls} "
        "steps over 20 times"
    )
    return slowest / median


def run(steps: int) -> bool:
    """Prints the figures; True if nothing grew, nothing stalled, all was collected."""
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3))
    x = jnp.ones((8, 16))
    plain = plain_step(model, optimizer)
    usual = timed("jax.jit on a State", functools.partial(plain, x), [0.0] * steps)
    del plain
    seconds = [0.0] * steps  # made before counting
    for _ in range(WARM_UP):
        step(model, optimizer, x).block_until_ready()
    before = counts()
    stall = timed("nnxlite.jit", functools.partial(step, model, optimizer, x), seconds)
    after = counts()
    for name in before:
        print(f"{name:>16}: {before[name]:>10,} before, {after[name]:>10,} after")
    references = [weakref.ref(model), weakref.ref(optimizer)]
    del model, optimizer
    gc.collect()
    alive = sum(reference() is not None for reference in references)
    print(f"after dropping: {alive} objects alive, {len(step._plans)} plans")
    grew = [n for n in ("live arrays", "tracked objects") if after[n] > before[n]]
    more = after["resident KiB"] - before["resident KiB"]
    return not grew and more < 2048 and stall < max(20, usual) and not alive


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    sys.exit(0 if run(parser.parse_args().steps) else 1)
