"""What a jitted call on objects costs beyond the same call on a flat list of arrays.

The objects are a network of Linear + BatchNorm blocks and its Adam optimizer. The
function reads one Variable and adds one to none, to every tenth or to all of them: next
to no arithmetic, so that the time is that of getting into and out of the compiled
program. The baseline is `jax.jit` on a flat list of the same arrays, returning the same
changed arrays; that of a call after a change elsewhere is called after such a change,
too. A last table compares how long a training step takes to trace.

    python benchmarks/dispatch.py --help
"""

import types
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnxlite
from timing import Column, Contender, Report, argument_parser, measure, optional

BASELINE = "jax.jit, flat list"
CONTROL = "jax.jit, flat list, change elsewhere"  # which empties the processor's caches
CHANGED = "nnxlite.jit, change elsewhere"
WIDTH = 4
CHANGES = {"nothing changes": None, "10% change": 10, "all change": 1}

Calls = dict[str, Callable[[], object] | Contender]


# ------------------------------------------------------------- the objects


def build(nnx: types.ModuleType, depth: int, width: int = WIDTH):
    """A network of `depth` blocks and its optimizer, in nnxlite or in Flax."""

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(width, width, rngs=rngs)
            self.norm = nnx.BatchNorm(width, rngs=rngs)

        def __call__(self, x):
            return jax.nn.relu(self.norm(self.linear(x)))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.List([Block(rngs) for _ in range(depth)])

        def __call__(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model = Net(nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


def variables_of(nnx: types.ModuleType, *objects) -> list:
    """Every Variable of the objects, each once."""
    return [v for _, v in nnx.iter_graph(objects) if isinstance(v, nnx.Variable)]


# ------------------------------------------------------------- one function, many ways


@dataclass(frozen=True)
class Touch:
    """The function that is called: reads one array, changes every `step`-th.

    Attributes:
        step: 1 changes all, 10 every tenth, None nothing.
    """

    step: int | None

    def arrays(self, arrays: list, x):
        """For plain arrays: the result and the changed arrays."""
        changed = [array + 1 for array in arrays[:: self.step]] if self.step else []
        return x + arrays[0].sum(), changed

    def tree(self, tree, x):
        """For a pytree: where everything changes, the changed part is the pytree."""
        if self.step == 1:
            first = jax.tree.leaves(tree)[0]
            return x + first.sum(), jax.tree.map(lambda array: array + 1, tree)
        return self.arrays(jax.tree.leaves(tree), x)

    def objects(self, nnx: types.ModuleType) -> Callable:
        """For objects: changes them in place, returns only the result."""
        step = self.step

        def touch(model, optimizer, x):
            variables = variables_of(nnx, model, optimizer)
            y = x + variables[0][...].sum()
            for variable in variables[::step] if step else ():
                variable[...] = variable[...] + 1
            return y

        return touch


def nnxlite_calls(touch: Touch, depth: int, x) -> tuple[Calls, int]:
    """The baseline and nnxlite's ways in, and how many arrays each is called with."""
    nnx = nnxlite
    flat = jax.jit(touch.arrays)
    work = touch.objects(nnx)

    model, optimizer = build(nnx, depth)
    arrays = [jnp.array(v[...]) for v in variables_of(nnx, model, optimizer)]
    passed = nnx.jit(work)

    captured_model, captured_optimizer = build(nnx, depth)

    @nnx.jit
    def captured(x):
        return work(captured_model, captured_optimizer, x)

    class Elsewhere(nnx.Module):
        mark = False

    elsewhere, watch = Elsewhere(), nnx.jit(lambda module: None)

    def change_elsewhere():
        # A change of a module that no call has seen would be announced to nobody.
        watch(elsewhere)
        elsewhere.mark = not elsewhere.mark

    _, state = nnx.split(build(nnx, depth))
    nested, through_jax = nnx.to_pure_dict(state), jax.jit(touch.tree)
    calls: Calls = {
        BASELINE: lambda: flat(arrays, x)[0],
        "nnxlite.jit, passed": lambda: passed(model, optimizer, x),
        "nnxlite.jit, captured": lambda: captured(x),
        CONTROL: Contender(lambda: flat(arrays, x)[0], before=change_elsewhere),
        CHANGED: Contender(
            lambda: passed(model, optimizer, x), before=change_elsewhere
        ),
        "nested dict, jax.jit": lambda: through_jax(nested, x)[0],
        "nnxlite State, jax.jit": lambda: through_jax(state, x)[0],
    }
    return calls, len(arrays) + 1


def flax_calls(touch: Touch, depth: int, x) -> Calls:
    """Flax NNX: graph mode, tree mode, cached, and State through plain JAX."""
    nnx = optional("flax.nnx")
    if nnx is None:
        return {}
    work = touch.objects(nnx)
    tree_mode = {"graph": False, "graph_updates": False}
    graph_jit, graph_objects = nnx.jit(work), build(nnx, depth)
    tree_jit, tree_objects = nnx.jit(work, **tree_mode), build(nnx, depth)
    partial = nnx.jit_partial(work, *build(nnx, depth), **tree_mode)
    _, state = nnx.split(build(nnx, depth))
    through_jax = jax.jit(touch.tree)
    return {
        "flax nnx.jit, graph mode": lambda: graph_jit(*graph_objects, x),
        "flax nnx.jit, tree mode": lambda: tree_jit(*tree_objects, x),
        "flax nnx.jit_partial": lambda: partial(x),
        "flax State, jax.jit": lambda: through_jax(state, x)[0],
    }


def equinox_calls(touch: Touch, depth: int, x) -> Calls:
    """Equinox: a tree of modules with as many arrays, changed functionally."""
    eqx = optional("equinox")
    if eqx is None:
        return {}

    class Block(eqx.Module):
        params: dict
        stats: dict

    def array():
        return jnp.ones(WIDTH)

    blocks = [
        Block(
            params={name: array() for name in ("kernel", "bias", "scale", "shift")},
            stats={name: array() for name in ("mean", "var")},
        )
        for _ in range(depth)
    ]
    optimizer = optax.adam(1e-3).init([block.params for block in blocks])
    tree, jitted = (blocks, optimizer, jnp.uint32(0)), eqx.filter_jit(touch.tree)
    return {"equinox filter_jit": lambda: jitted(tree, x)[0]}


def dispatch_column(touch: Touch, depth: int, rounds: int) -> Column:
    """One size, one amount of change, every way to call."""
    x = jnp.float32(1)
    calls, leaves = nnxlite_calls(touch, depth, x)
    contenders: Calls = {
        **calls,
        **flax_calls(touch, depth, x),
        **equinox_calls(touch, depth, x),
    }
    close = 1.3 if leaves < 100 else 1.2
    return Column(
        title=f"{leaves} leaves",
        timings=measure(contenders, rounds=rounds),
        baseline=BASELINE,
        limits={
            "nnxlite.jit, passed": close,
            "nnxlite.jit, captured": close,
            CHANGED: 1.4,
            "nnxlite State, jax.jit": 2.2,
        },
        controls={CHANGED: CONTROL},
    )


# ------------------------------------------------------------- tracing a training step


def object_step(nnx: types.ModuleType) -> Callable:
    """A fresh training step on objects."""

    def loss(model, x, y):
        return jnp.mean((model(x) - y) ** 2)

    def step(model, optimizer, x, y):
        value, grads = nnx.value_and_grad(loss)(model, x, y)
        optimizer.update(model, grads)
        return value

    return step


def hand_written_step(adam: optax.GradientTransformation) -> Callable:
    """The same step, fresh, on dicts of arrays and in plain JAX."""

    def block(params, stats, x):
        x = x @ params["kernel"] + params["bias"]
        mean = x.mean(0)
        var = jnp.maximum(0, (x * x).mean(0) - mean * mean)
        moving = {
            "mean": 0.99 * stats["mean"] + 0.01 * jax.lax.stop_gradient(mean),
            "var": 0.99 * stats["var"] + 0.01 * jax.lax.stop_gradient(var),
        }
        x = (x - mean) * (jax.lax.rsqrt(var + 1e-5) * params["scale"])
        return jax.nn.relu(x + params["shift"]), moving

    def loss(params, stats, x, y):
        moving = {}
        for name in params:
            x, moving[name] = block(params[name], stats[name], x)
        return jnp.mean((x - y) ** 2), moving

    def step(params, stats, opt_state, x, y):
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(
            params, stats, x, y
        )
        updates, opt_state = adam.update(grads, opt_state, params)
        return value, optax.apply_updates(params, updates), stats, opt_state

    return step


def as_dicts(model) -> tuple[dict, dict]:
    """The arrays of a network as nested dicts: parameters and running statistics."""
    params, stats = {}, {}
    for position, block in enumerate(model.blocks):
        linear, norm = block.linear, block.norm
        params[f"block{position}"] = {
            "kernel": jnp.array(linear.kernel[...]),
            "bias": jnp.array(linear.bias[...]),
            "scale": jnp.array(norm.scale[...]),
            "shift": jnp.array(norm.bias[...]),
        }
        stats[f"block{position}"] = {
            "mean": jnp.array(norm.mean[...]),
            "var": jnp.array(norm.var[...]),
        }
    return params, stats


def batch(width: int):
    """Inputs and targets, each (8, width)."""
    return jnp.sin(jnp.arange(16.0 * width) ** 2).reshape(2, 8, width)


def trace_column(depth: int, rounds: int, width: int = 8) -> Column:
    """Times tracing alone: each sample traces a function never seen before."""
    x, y = batch(width)
    adam = optax.adam(1e-3)
    model, optimizer = build(nnxlite, depth, width)
    params, stats = as_dicts(model)
    opt_state = adam.init(params)
    contenders: Calls = {
        "hand-written JAX": lambda: jax.jit(hand_written_step(adam)).trace(
            params, stats, opt_state, x, y
        ),
        "nnxlite": lambda: nnxlite.jit(object_step(nnxlite)).trace(
            model, optimizer, x, y
        ),
    }
    if nnx := optional("flax.nnx"):
        flax_model, flax_optimizer = build(nnx, depth, width)
        contenders["flax nnx"] = lambda: nnx.jit(object_step(nnx)).trace(
            flax_model, flax_optimizer, x, y
        )
    return Column(
        title=f"{depth} blocks",
        timings=measure(contenders, rounds=rounds),
        baseline="hand-written JAX",
        limits={"nnxlite": 1.3},
    )


def check_same_mathematics(depth: int = 3, width: int = 8, steps: int = 3) -> None:
    """Trains both versions for a few steps; unequal losses make the timing void."""
    x, y = batch(width)
    model, optimizer = build(nnxlite, depth, width)
    adam = optax.adam(1e-3)
    params, stats = as_dicts(model)
    opt_state = adam.init(params)
    by_hand = jax.jit(hand_written_step(adam))
    on_objects = nnxlite.jit(object_step(nnxlite))
    for _ in range(steps):
        expected, params, stats, opt_state = by_hand(params, stats, opt_state, x, y)
        actual = on_objects(model, optimizer, x, y)
        np.testing.assert_allclose(actual, expected, rtol=1e-4)


def main() -> int:
    parser = argument_parser("Dispatch and trace time against plain JAX.")
    parser.add_argument(
        "--depths",
        type=int,
        nargs="+",
        default=[5, 50, 200],
        help="blocks of the network (default 5 50 200: 73, 703 and 2803 leaves)",
    )
    parser.add_argument("--trace-depth", type=int, default=50, help="0 leaves it out")
    options = parser.parse_args()
    report = Report("Dispatch", options.out)
    for title, step in CHANGES.items():
        touch = Touch(step)
        columns = [dispatch_column(touch, d, options.rounds) for d in options.depths]
        report.table(title, columns)
    if options.trace_depth:
        check_same_mathematics()
        rounds = max(3, options.rounds // 4)
        report.table("tracing", [trace_column(options.trace_depth, rounds)])
    status = report.close()
    return status if options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
