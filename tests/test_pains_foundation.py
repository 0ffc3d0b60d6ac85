"""What users of other frameworks stumbled over: the object graph, jit and grad.

Each test is named after the public issue thread that describes the pain. Costs are
counted in traces and in calls of Python functions, never timed.
"""

import copy
import functools
import inspect
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnxlite as nnx

from .properties.comparison import Snapshot
from .properties.programs import reachable


class Counter(nnx.Module):
    def __init__(self):
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self) -> Any:
        self.calls += 1
        return self.calls * 1

    def bump(self, by: Any) -> Any:
        self.calls += by
        return self.calls * 1


class Net(nnx.Module):
    """Layers in a plain list, with BatchNorm and Dropout."""

    def __init__(self, depth: int, rngs: nnx.Rngs):
        self.layers = [nnx.Linear(2, 2, rngs=rngs) for _ in range(depth)]
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.dropout(self.norm(x))


class Mlp(nnx.Module):
    """Only reads when it is called."""

    def __init__(self, rngs: nnx.Rngs):
        self.a, self.b = nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.b(nnx.relu(self.a(x)))

    @nnx.jit
    def forward(self, x: Any) -> Any:
        return self(x)

    @nnx.jit
    def loss(self, x: Any) -> Any:
        return (self(x) ** 2).sum()


def python_calls(function: Callable[[], Any]) -> int:
    """How many Python functions run during a call."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    old = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(old)
    return count


def snapshot(*roots: Any) -> Snapshot:
    return Snapshot(reachable(roots))


# Dispatch cost and recompilation


@pytest.mark.parametrize("way", ["passed", "captured", "method"])
def test_google_flax_4045_a_warm_step_runs_no_python_per_variable(way: str):
    calls = []
    for depth in (1, 20):
        model = Net(depth, nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-3))
        traces = []

        def step(m: Any, o: Any, x: Any, traces: Any = traces) -> None:
            traces.append(1)
            o.update(m, nnx.grad(lambda m: (m(x) ** 2).mean())(m))

        x = jnp.ones((3, 2))
        if way == "passed":
            call = functools.partial(nnx.jit(step), model, optimizer, x)
        elif way == "captured":
            compiled = nnx.jit(lambda x, m=model, o=optimizer, f=step: f(m, o, x))
            call = functools.partial(compiled, x)
        else:
            bound = types.MethodType(step, model)
            call = functools.partial(nnx.jit(bound), optimizer, x)
        for _ in range(3):
            call()
        calls.append(python_calls(call))
        assert len(traces) == 1
        assert int(optimizer.step[...]) == 4
    assert calls[0] == calls[1]


def test_vllm_project_tpu_inference_2607_flattening_a_state_is_done_by_jax():
    """No callback runs for a Variable but the read of its value."""
    calls, leaves = [], []
    for depth in (1, 50):
        state = nnx.state(Net(depth, nnx.Rngs(0)))
        leaves.append(len(jax.tree.leaves(state)))
        calls.append(python_calls(functools.partial(jax.tree.flatten, state)))
    assert leaves[1] - leaves[0] == 2 * 49
    assert calls[1] - calls[0] <= leaves[1] - leaves[0]


def test_vllm_project_tpu_inference_2607_a_state_through_jax_jit_traces_once():
    traces = []

    @jax.jit
    def double(state: Any) -> Any:
        traces.append(1)
        return jax.tree.map(lambda x: x * 2, nnx.filter_state(state, nnx.Param))

    for seed in range(3):
        params = double(nnx.state(Net(2, nnx.Rngs(seed))))
        params = double(params)
    assert len(traces) == 2
    assert type(params["layers"][1]["kernel"]) is nnx.Param


def test_patrick_kidger_equinox_973_a_tiny_function_costs_a_constant():
    """The number of Python calls does not depend on what was compiled before."""
    step = nnx.jit(lambda x: x)
    x = jnp.ones(2)
    step(x)
    before = python_calls(lambda: step(x))
    for shape in range(1, 20):
        step(jnp.ones(shape))
    for _ in range(20):
        nnx.jit(lambda m: m(jnp.ones((1, 2))))(Net(1, nnx.Rngs(0)))
    assert python_calls(lambda: step(x)) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.adam(1e-3),
        lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 10), momentum=0.9),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
        lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
        lambda: optax.masked(optax.adam(1e-3), lambda p: jax.tree.map(jnp.ndim, p)),
        lambda: {nnx.PathContains("bias"): optax.sgd(0.1), ...: optax.adam(1e-3)},
    ],
    ids="adam schedule chain inject masked mapping".split(),
)
def test_google_flax_5548_fresh_models_and_optimizers_share_one_program(make: Any):
    traces = []

    @nnx.jit
    def step(m: Any, o: Any, x: Any) -> None:
        traces.append(1)
        o.update(m, nnx.grad(lambda m: (m(x) ** 2).mean())(m))

    for seed in range(3):
        model = nnx.Linear(2, 2, rngs=nnx.Rngs(seed))
        optimizer = nnx.Optimizer(model, make())
        for _ in range(2):
            step(model, optimizer, jnp.ones((3, 2)))
        assert int(optimizer.step[...]) == 2
    assert len(traces) == 1


def test_google_flax_4329_another_learning_rate_is_another_program():
    """Equality by content must not take one for the other."""
    traces = []

    @nnx.jit
    def step(m: Any, o: Any) -> None:
        traces.append(1)
        o.update(m, nnx.grad(lambda m: m.w.sum())(m))

    results = []
    for rate in (0.1, 0.2, 0.1):
        model = nnx.Dict(w=nnx.Param(jnp.zeros(())))
        step(model, nnx.Optimizer(model, optax.sgd(rate)))
        results.append(round(float(model.w[...]), 5))
    assert results == [-0.1, -0.2, -0.1]
    assert len(traces) == 2


# Trace-level errors, mixing with plain JAX


@pytest.mark.parametrize(
    "transform",
    [
        lambda m, xs: jax.vmap(m.forward)(xs),
        lambda m, xs: jax.lax.scan(lambda c, x: (c, m.forward(x)), 0, xs)[1],
        lambda m, xs: jax.jit(m.forward)(xs),
        lambda m, xs: jax.checkpoint(m.forward)(xs),
        lambda m, xs: jnp.stack([m.forward(x) for x in xs]),
        lambda m, xs: jax.vmap(jax.jit(m.forward))(xs),
        lambda m, xs: jax.jvp(m.forward, (xs,), (xs,))[0],
    ],
    ids="vmap scan jit checkpoint loop vmap(jit) jvp".split(),
)
def test_google_flax_4720_plain_transforms_over_a_jitted_method(transform: Any):
    model, xs = Mlp(nnx.Rngs(0)), jnp.arange(8.0).reshape(4, 2)
    before = snapshot(model)
    np.testing.assert_allclose(transform(model, xs), model(xs), rtol=1e-6)
    before.check()


def test_maxencefaldor_cax_17_plain_grad_over_a_jitted_method():
    model, x = Mlp(nnx.Rngs(0)), jnp.ones(2)
    wanted = jax.grad(lambda x: (model(x) ** 2).sum())(x)
    np.testing.assert_allclose(jax.grad(model.loss)(x), wanted, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(model.loss))(x[None])[0], wanted)
    np.testing.assert_allclose(jax.jit(jax.grad(model.loss))(x), wanted, rtol=1e-6)


@pytest.mark.parametrize("jitted", [False, True])
def test_google_flax_5025_batched_inference_with_lax_map(jitted: bool):
    model, xs = Mlp(nnx.Rngs(0)), jnp.arange(10.0).reshape(5, 2)
    inner = nnx.jit(lambda m, x: m(x))
    net = (lambda x: inner(model, x)) if jitted else model
    result = jax.lax.map(net, xs, batch_size=2)
    np.testing.assert_allclose(result, jnp.stack([model(x) for x in xs]), rtol=1e-6)


@pytest.mark.parametrize(
    ("wrap", "nnx_wrap"),
    [(lambda f: f, lambda f: f), (jax.jit, nnx.jit)],
    ids=["eager", "jit"],
)
@pytest.mark.parametrize("rest_is", ["captured", "argument"])
@pytest.mark.parametrize("options", [{}, {"copy": True}], ids=["default", "copy"])
def test_google_flax_5050_merge_inside_jax_grad_gives_a_usable_model(
    options: Any, rest_is: str, wrap: Any, nnx_wrap: Any
):
    model, x = Net(2, nnx.Rngs(0)), jnp.arange(6.0).reshape(3, 2)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    before = snapshot(model)

    def loss(params: Any, rest: Any) -> Any:
        inside = nnx.merge(graphdef, params, rest, **options)
        value = (inside(x) ** 2).mean()
        return value, nnx.state(inside, nnx.Not(nnx.Param))

    if rest_is == "argument":
        grads, new = wrap(jax.grad(loss, has_aux=True))(params, rest)
    else:
        grads, new = wrap(jax.grad(lambda p: loss(p, rest), has_aux=True))(params)
    before.check()
    # changes the model
    wanted = nnx_wrap(nnx.grad(lambda m: (m(x) ** 2).mean()))(model)
    for left, right in zip(
        jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)
    for left, right in zip(
        jax.tree.leaves(new),
        jax.tree.leaves(nnx.state(model, nnx.Not(nnx.Param))),
        strict=True,
    ):
        if jnp.issubdtype(left.dtype, jnp.floating):
            np.testing.assert_allclose(left, right, rtol=1e-6)
        else:
            assert bool((left == right).all())


def test_google_flax_3997_a_jitted_module_or_bound_method_updates_it():
    counter, plain = Counter(), Counter()
    for _ in range(2):
        assert int(nnx.jit(counter)()) == int(plain())
        assert int(nnx.jit(counter.bump)(2)) == int(plain.bump(2))
    assert int(counter.calls[...]) == 6
    step = nnx.jit(counter)
    for _ in range(3):
        step()
    assert int(counter.calls[...]) == 9


def test_google_flax_4695_captured_model_and_optimizer_simply_work_in_nnx_jit():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    twin = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.1))
    other = nnx.Optimizer(twin, optax.adam(0.1))
    traces = []

    @nnx.jit
    def step(x: Any) -> Any:
        traces.append(1)
        value, grads = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(model)
        optimizer.update(model, grads)
        return value

    x = jnp.ones((3, 2))
    for _ in range(3):
        value = step(x)
        wanted, grads = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(twin)
        other.update(twin, grads)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert len(traces) == 1 and int(optimizer.step[...]) == 3
    np.testing.assert_allclose(model.kernel, twin.kernel, rtol=1e-5)


def test_google_flax_4695_under_plain_jit_the_change_raises_at_once():
    model = Counter()
    model.linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    before = snapshot(model)
    reached = []

    @jax.jit
    def step(x: Any) -> Any:
        y = model.linear(x)
        model.calls += 1
        reached.append("after the write")
        return y

    with pytest.raises(
        nnx.TraceContextError,
        match=r"'Counter\.calls' cannot be changed here: .*Use the nnxlite transform "
        r"of the same name \(nnx\.jit",
    ):
        step(jnp.ones(2))
    assert reached == []
    before.check()
    assert int(model()) == 1  # no tracer left behind


def test_google_flax_4695_nnx_jit_under_plain_jit_does_not_leak_either():
    model = Counter()
    before = snapshot(model)
    with pytest.raises(
        nnx.TraceContextError,
        match=r"'Counter\.calls' cannot be changed here: .*nnx\.jit",
    ):
        jax.jit(nnx.jit(lambda x: model.bump(1) + x))(1)
    before.check()


def test_google_flax_4695_an_optimizer_under_plain_jit_raises_at_once():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1))
    before = snapshot(model, optimizer)

    @jax.jit
    def step(x: Any) -> None:
        optimizer.update(model, nnx.grad(lambda m: (m(x) ** 2).mean())(model))

    with pytest.raises(
        nnx.TraceContextError,
        match=r"Param 'Linear\.\w+' cannot be changed here: .*nnx\.jit",
    ):
        step(jnp.ones((3, 2)))
    before.check()


def test_google_flax_4734_shapes_of_a_model_with_state():
    net = Net(2, nnx.Rngs(0))
    before = snapshot(net)
    spec = jax.ShapeDtypeStruct((3, 2), jnp.float32)
    assert nnx.eval_shape(lambda x: net(x), spec) == spec
    assert nnx.eval_shape(net, spec) == spec
    before.check()


# Attributes and Variables


def test_jax_ml_bonsai_47_plain_lists_tuples_and_dicts_of_modules_work():
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = [nnx.Linear(2, 2, rngs=rngs) for _ in range(2)]
            self.heads = {"a": nnx.Linear(2, 1, rngs=rngs)}
            self.pair = (nnx.Linear(2, 2, rngs=rngs), nnx.relu)
            self.sizes = [1, 2, 3]

        def __call__(self, x: Any) -> Any:
            for layer in [*self.layers, *self.pair]:
                x = layer(x)
            return self.heads["a"](x) * len(self.sizes)

    model, x = Model(nnx.Rngs(0)), jnp.ones((3, 2))
    assert len(nnx.to_flat_state(nnx.state(model, nnx.Param))) == 8
    model.layers.append(nnx.Linear(2, 2, rngs=nnx.Rngs(1)))
    model.heads["b"] = nnx.Linear(2, 1, rngs=nnx.Rngs(2))
    assert len(nnx.to_flat_state(nnx.state(model, nnx.Param))) == 12
    np.testing.assert_allclose(nnx.jit(model)(x), model(x), rtol=1e-6)
    optimizer = nnx.Optimizer(model, optax.sgd(0.001))
    losses = []
    for _ in range(3):
        value, grads = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(model)
        assert grads["layers"][2]["kernel"].shape == (2, 2)
        optimizer.update(model, grads)
        losses.append(float(value))
    assert losses[2] < losses[1] < losses[0]
    model.sizes.append(4)
    np.testing.assert_allclose(nnx.jit(model)(x), model(x), rtol=1e-6)


def test_climate_analytics_lab_jax_gcm_655_every_accessor_works_without_warning():
    p = nnx.Param(jnp.ones(2))
    p.value = jnp.zeros(2)
    p.value += 1
    p[...] += 1
    p += 1
    p[0] = 7.0
    p.set_value(p.get_value() * 2)
    p.raw_value = p.raw_value + 0
    for read in (p.value, p[...], p.get_value(), p.raw_value, p.get_raw_value()):
        np.testing.assert_array_equal(read, [14.0, 6.0])
    module = nnx.Dict(p=p)
    assert nnx.to_pure_dict(nnx.state(module))["p"] is p.value
    assert float(p[1]) == float(p.value[1]) == 6.0


def test_pyro_ppl_numpyro_2055_dropout_needs_no_stream_of_its_own():
    net = Net(1, nnx.Rngs(params=jax.random.key(0)))
    net.eval()
    assert net(jnp.ones((3, 2))).shape == (3, 2)
    net.train()
    before = snapshot(net)
    with pytest.raises(
        ValueError, match=r"no random stream 'dropout'.*rngs=nnx\.Rngs\(dropout=seed\)"
    ):
        net.dropout(jnp.ones(2))
    before.check()


def test_jax_ml_jax_24460_variables_act_as_arrays():
    p = nnx.Param(jnp.arange(1.0, 4.0))
    np.testing.assert_array_equal(p > 2, [False, False, True])
    np.testing.assert_array_equal(p != 2, [True, False, True])
    np.testing.assert_array_equal(divmod(p, 2)[0], [0.0, 1.0, 1.0])
    np.testing.assert_array_equal(jnp.dot(jnp.ones(3), p), 6.0)
    assert jnp.broadcast_to(p, (2, 3)).shape == (2, 3)
    same = p
    p += 1
    assert p is same and float(p.sum()) == 9.0
    np.testing.assert_array_equal(jnp.where(p > 2, p, 0), [0.0, 3.0, 4.0])
    np.testing.assert_array_equal(np.asarray(p), [2.0, 3.0, 4.0])


@pytest.mark.parametrize("transform", [nnx.jit, nnx.grad, nnx.value_and_grad])
def test_google_flax_4981_the_signature_is_kept(transform: Any):
    def documented(model: Mlp, x: float, *, scale: float = 1.0) -> float:
        """Tells."""
        return x

    wrapped = transform(documented)
    assert inspect.signature(wrapped) == inspect.signature(documented)
    assert wrapped.__name__ == "documented"
    assert wrapped.__qualname__ == documented.__qualname__
    assert wrapped.__module__ == __name__
    assert wrapped.__doc__ == "Tells."


# Memory


@pytest.mark.parametrize(
    "options", [{"donate": "state"}, {"donate_argnums": 0}], ids=["state", "argnums"]
)
def test_google_flax_5461_a_target_network_can_be_donated_with_its_source(options: Any):
    class Agent(nnx.Module):
        def __init__(self):
            self.online = Mlp(nnx.Rngs(0))
            self.target = nnx.clone(self.online)

    agent, twin = Agent(), Agent()

    def step(agent: Any) -> None:
        for path, p in nnx.to_flat_state(nnx.state(agent.online)):
            p.value = p * 0.5
            target = nnx.state(agent.target)[path[0]][path[1]]
            target.value = 0.9 * target + 0.1 * p

    compiled = nnx.jit(step, **options)
    for _ in range(3):
        step(twin)
        compiled(agent)
    for left, right in zip(
        jax.tree.leaves(nnx.state(agent)), jax.tree.leaves(nnx.state(twin)), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_google_flax_5026_a_donated_step_needs_no_more_memory_than_plain_jax():
    model = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
    x = jnp.ones((4, 64))

    def loss(m: Any, x: Any) -> Any:
        return (m(x) ** 2).mean()

    def step(m: Any, x: Any) -> None:
        grads = nnx.grad(loss)(m, x)
        m.kernel.value = m.kernel - 0.1 * grads["kernel"]
        m.bias.value = m.bias - 0.1 * grads["bias"]

    def plain(state: Any, x: Any) -> Any:
        def plain_loss(state: Any) -> Any:
            return ((x @ state["kernel"] + state["bias"]) ** 2).mean()

        return jax.tree.map(
            lambda p, g: p - 0.1 * g, state, jax.grad(plain_loss)(state)
        )

    def bytes_of(compiled: Any) -> int:
        analysis = compiled.memory_analysis()
        return (
            analysis.temp_size_in_bytes
            + analysis.argument_size_in_bytes
            + analysis.output_size_in_bytes
            - analysis.alias_size_in_bytes
        )

    state = nnx.to_pure_dict(nnx.state(model))
    wanted = bytes_of(jax.jit(plain, donate_argnums=0).lower(state, x).compile())
    ours = bytes_of(nnx.jit(step, donate="state").lower(model, x).compile())
    assert ours <= 1.05 * wanted


# Inspection, interoperation, sharing


def test_google_flax_4094_ahead_of_time_as_in_jax():
    counter = Counter()
    counter.linear = nnx.Linear(8, 8, rngs=nnx.Rngs(0))

    def step(m: Any, x: Any) -> Any:
        m.calls += 1
        return m.linear(x)

    compiled = nnx.jit(step).lower(counter, jnp.ones((4, 8))).compile()
    assert compiled.cost_analysis()["flops"] >= 2 * 4 * 8 * 8
    assert compiled.memory_analysis().argument_size_in_bytes >= 4 * (64 + 8 + 32)
    assert int(counter.calls[...]) == 0
    compiled(counter, jnp.ones((4, 8)))
    assert int(counter.calls[...]) == 1


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"a": {"kernel": jnp.ones((3, 2))}}, r"a\.kernel wants float32\[2, 3\], got"),
        ({"a": {"weight": jnp.ones((2, 3))}}, r"a\.weight is unknown .*'kernel'"),
        ({"c": {"kernel": jnp.ones((2, 3))}}, r"c is unknown .*'a', 'b'"),
    ],
    ids=["shape", "name", "layer"],
)
def test_jax_ml_jax_ai_stack_206_loading_names_the_wrong_path(state: Any, match: str):
    model = Mlp(nnx.Rngs(0))
    before = snapshot(model)
    with pytest.raises(ValueError, match=match):
        nnx.update(model, {"b": {"bias": jnp.ones(2)}, **state})
    before.check()
    nnx.update(model, {"b": {"bias": jnp.ones(2)}})  # a partial one is fine
    np.testing.assert_array_equal(model.b.bias, [1.0, 1.0])


class Tied(nnx.Module):
    def __init__(self):
        self.embed = nnx.Param(jnp.ones((2, 2)))
        self.head = nnx.Dict(kernel=self.embed)
        self.me = self


COPIES = {
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "cloudpickle": lambda m: pickle.loads(cloudpickle.dumps(m)),
    "deepcopy": copy.deepcopy,
    "clone": nnx.clone,
}


@pytest.mark.parametrize("name", COPIES)
def test_google_flax_3283_modules_can_be_pickled(name: str):
    model = Tied()
    other = COPIES[name](model)
    assert other.head.kernel is other.embed and other.me is other
    assert other.embed is not model.embed
    other.embed[...] = 5.0
    assert float(other.head.kernel[0, 0]) == 5.0
    assert float(model.embed[0, 0]) == 1.0
    nnx.jit(lambda m: m.embed.set_value(m.embed * 2))(other)
    assert float(other.head.kernel[0, 0]) == 10.0


def test_google_flax_3283_a_class_of_main_can_be_cloudpickled():
    namespace: dict[str, Any] = {"__name__": "__main__", "nnx": nnx, "jnp": jnp}
    exec(
        "class Local(nnx.Module):\n"
        "    def __init__(self):\n"
        "        self.w = nnx.Param(jnp.ones(2))\n"
        "    def __call__(self, x):\n"
        "        return x * self.w\n",
        namespace,
    )
    other = pickle.loads(cloudpickle.dumps(namespace["Local"]()))
    np.testing.assert_array_equal(other(jnp.full(2, 3.0)), [3.0, 3.0])
    np.testing.assert_array_equal(nnx.jit(other)(jnp.full(2, 3.0)), [3.0, 3.0])


@pytest.mark.parametrize(
    "use",
    [
        lambda m: jax.tree.map(lambda x: x, m),
        lambda m: jax.jit(lambda m: m.embed.sum())(m),
        lambda m: jax.grad(lambda m: m.embed.sum())(m),
    ],
    ids=["tree.map", "jit", "grad"],
)
def test_patrick_kidger_equinox_469_tying_holds_or_raises(use: Any):
    model = Tied()
    del model.me
    before = snapshot(model)
    with pytest.raises(
        ValueError,
        match=r"its Param at '(embed|head\.kernel)' is also at '(embed|head\.kernel)', "
        r".*nnx\.split\(model\)",
    ):
        use(model)
    before.check()
    grads = nnx.grad(lambda m: (m.embed * m.head["kernel"]).sum())(model)
    np.testing.assert_array_equal(grads["embed"], np.full((2, 2), 2.0))
    assert list(grads) == ["embed"]
    optimizer = nnx.Optimizer(model, optax.sgd(0.25))
    nnx.jit(lambda m, o, g: o.update(m, g))(model, optimizer, grads)
    assert model.head["kernel"] is model.embed
    np.testing.assert_array_equal(model.embed, np.full((2, 2), 0.5))


def test_google_flax_5284_graphdefs_hash():
    class Model(nnx.Module):
        def __init__(self):
            self.config = {"sizes": [1, 2], "names": ("a",)}
            self.table = np.arange(3)
            self.activation = functools.partial(nnx.gelu, approximate=True)
            self.w = nnx.Param(jnp.ones(2), axes=["x", None])

    one, two = nnx.graphdef(Model()), nnx.graphdef(Model())
    assert one == two and hash(one) == hash(two)
    assert {one: 1}[two] == 1
