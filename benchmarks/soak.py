"""Whether anything grows, and whether a step ever stalls, over many training steps.

Runs a jitted step of a small network with Adam 20,000 times; after a warm-up, counts
live arrays, objects that the garbage collector tracks, and resident memory, at the
start and at the end, and looks at the slowest step. Then drops the model and looks
whether it, and what the compiled function kept of it, is gone.

    python benchmarks/soak.py --help
"""

import argparse
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


@nnx.jit
def step(model, optimizer, x):
    loss, grads = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    optimizer.update(grads)
    return loss


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


def run(steps: int) -> bool:
    """Prints the figures; True if nothing grew, nothing stalled, all was collected."""
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3))
    x = jnp.ones((8, 16))
    seconds = [0.0] * steps  # made before counting
    for _ in range(WARM_UP):
        step(model, optimizer, x).block_until_ready()
    before = counts()
    for number in range(steps):
        start = time.perf_counter()
        step(model, optimizer, x).block_until_ready()
        seconds[number] = time.perf_counter() - start
    after = counts()
    for name in before:
        print(f"{name:>16}: {before[name]:>10,} before, {after[name]:>10,} after")
    median = statistics.median(seconds)
    slowest = max(seconds)
    print(
        f"{steps:,} steps: median {median * 1e6:.0f} us, slowest "
        f"{slowest * 1e6:.0f} us, {slowest / median:.1f} times the median"
    )
    references = [weakref.ref(model), weakref.ref(optimizer)]
    del model, optimizer
    gc.collect()
    alive = sum(reference() is not None for reference in references)
    print(f"after dropping: {alive} objects alive, {len(step._plans)} plans")
    grew = [n for n in ("live arrays", "tracked objects") if after[n] > before[n]]
    more = after["resident KiB"] - before["resident KiB"]
    return not grew and more < 2048 and slowest < 20 * median and not alive


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    sys.exit(0 if run(parser.parse_args().steps) else 1)
