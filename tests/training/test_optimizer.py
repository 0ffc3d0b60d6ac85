"""Optimizer: D84-87, and what users of other optimizers stumble over."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnxlite as nnx


class Net(nnx.Module):
    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.body = nnx.Linear(4, 8, rngs=rngs)
        self.head = nnx.Linear(8, 1, rngs=rngs)
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x):
        self.calls += 1
        return self.head(jnp.tanh(self.body(x)))


X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32)
Y = X[:, :1] ** 2


def loss_fn(model):
    return jnp.mean((model(X) - Y) ** 2)


def values(node, *filters):
    return nnx.to_pure_dict(nnx.state(node, *filters))


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_trees_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6), a, b)


def reference(tx, steps):
    """The same training by hand: optax on a nested dict of arrays."""
    graphdef, parameters, rest = nnx.split(Net(), nnx.Param, ...)
    parameters = nnx.to_pure_dict(parameters)

    def loss(parameters):
        state = nnx.State(parameters)
        return loss_fn(nnx.merge(graphdef, state, rest, copy=True))

    state = tx.init(parameters)
    for _ in range(steps):
        grads = jax.grad(loss)(parameters)
        updates, state = tx.update(grads, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    return parameters


def step(model, optimizer):
    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(grads)
    return loss


TRANSFORMATIONS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(1e-2),
    "adamw with a schedule": lambda: optax.adamw(
        optax.cosine_decay_schedule(1e-2, 10), weight_decay=1e-2
    ),
    "chain": lambda: optax.chain(
        optax.clip_by_global_norm(0.1), optax.trace(0.9), optax.scale(-0.1)
    ),
    "masked by a function": lambda: optax.masked(
        optax.adam(1e-2), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2), 3),
    "EmptyState": lambda: optax.chain(optax.identity(), optax.sgd(0.1)),
    "adafactor": lambda: optax.adafactor(1e-2),
    "schedule-free": lambda: optax.contrib.schedule_free_adamw(1e-2),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(1e-2),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
    "partition by a function": lambda: optax.partition(
        {"w": optax.adam(1e-2), "b": optax.sgd(0.1)},
        lambda p: jax.tree.map(lambda x: "w" if x.ndim > 1 else "b", p),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("compiled", [False, True])
def test_d84_d87_equals_hand_written_optax(name, compiled):
    model = Net()
    optimizer = nnx.Optimizer(model, TRANSFORMATIONS[name]())
    run = nnx.jit(step) if compiled else step
    for _ in range(4):
        run(model, optimizer)
    assert_trees_close(values(model, nnx.Param), reference(TRANSFORMATIONS[name](), 4))
    assert optimizer.step.value == 4
    assert model.calls.value == 4


def test_d84_update_takes_the_model_too():
    bound, given = Net(), Net()
    a, b = (nnx.Optimizer(m, optax.adam(1e-2)) for m in (bound, given))
    a.update(nnx.grad(loss_fn)(bound))
    b.update(given, nnx.grad(loss_fn)(given))
    assert_trees_equal(values(bound, nnx.Param), values(given, nnx.Param))


def test_update_of_another_model_leaves_the_bound_one_alone():
    bound = Net()
    other = nnx.clone(bound)
    optimizer = nnx.Optimizer(bound, optax.sgd(0.1))
    before = values(bound)
    optimizer.update(other, nnx.grad(loss_fn)(nnx.clone(other)))
    assert_trees_equal(values(bound), before)
    assert not np.array_equal(other.head.kernel, bound.head.kernel)


def test_d84_returns_the_updates():
    model = Net()
    before = values(model, nnx.Param)
    updates = nnx.Optimizer(model, optax.sgd(0.5)).update(nnx.grad(loss_fn)(model))
    moved = jax.tree.map(jnp.add, before, nnx.to_pure_dict(updates))
    assert_trees_close(values(model, nnx.Param), moved)


def test_d85_outside_wrt_nothing_is_tracked_or_changed():
    model = Net()
    optimizer = nnx.Optimizer(
        model, optax.adam(1e-2), wrt=nnx.All(nnx.Param, nnx.PathContains("head"))
    )
    body = values(model.body)
    optimizer.update(nnx.grad(loss_fn)(model))
    assert_trees_equal(values(model.body), body)
    moments = nnx.state(optimizer, nnx.OptState)["opt_state"][0]["mu"]
    assert list(moments) == ["head"]


def test_d85_state_variables_carry_the_parameters_metadata():
    model = Net()
    model.head.kernel.set_metadata(group="a", optimizer_sharding=("x", None))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    moment = optimizer.opt_state[0].mu["head"]["kernel"]
    assert isinstance(moment, nnx.OptVariable)
    assert moment.group == "a"
    assert moment.out_sharding == ("x", None)
    assert isinstance(optimizer.opt_state[0].count, nnx.OptArray)
    assert isinstance(optimizer.step, nnx.OptState)
    assert optimizer.step.dtype == jnp.uint32


@pytest.mark.parametrize("compiled", [False, True])
def test_d86_standalone_variable_google_flax_4564(compiled):
    w = nnx.Param(jnp.array(0.0))
    optimizer = nnx.Optimizer(w, optax.adam(0.1))

    def run(w, optimizer):
        optimizer.update(nnx.grad(lambda w: (w - 3) ** 2)(w))

    run = nnx.jit(run) if compiled else run
    for _ in range(200):
        run(w, optimizer)
    assert abs(w.value - 3) < 1e-2
    assert isinstance(optimizer.opt_state[0].count, nnx.OptArray)


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: {"a": a, "b": b},
        lambda a, b: [a, b],
        lambda a, b: (a, [b]),
        lambda a, b: {"deep": [{"a": a}, b]},
    ],
)
def test_pytrees_of_variables(make):
    a, b = nnx.Param(jnp.ones(2)), nnx.Param(jnp.array(2.0))
    tree = make(a, b)
    optimizer = nnx.Optimizer(tree, optax.sgd(0.25))

    def loss(tree):
        return sum(jnp.sum(v**2) for v in jax.tree.leaves(tree))

    optimizer.update(nnx.grad(loss)(tree))
    np.testing.assert_array_equal(a, [0.5, 0.5])
    np.testing.assert_array_equal(b, 1.0)


def test_google_flax_5372_label_tree_from_state():
    def label(leaf):
        return "w" if leaf.ndim > 1 else "b"

    rules = {"w": optax.adam(1e-2), "b": optax.sgd(0.1)}
    by_tree, by_leaf, by_function = Net(), Net(), Net()
    tree = jax.tree.map(label, nnx.state(by_tree, nnx.Param))
    leaves = nnx.map_state(lambda _, leaf: label(leaf), nnx.state(by_leaf, nnx.Param))
    a = nnx.Optimizer(by_tree, optax.multi_transform(rules, tree))
    b = nnx.Optimizer(by_leaf, optax.multi_transform(rules, leaves))
    c = nnx.Optimizer(by_function, TRANSFORMATIONS["partition by a function"]())
    for _ in range(3):
        step(by_tree, a)
        step(by_leaf, b)
        nnx.jit(step)(by_function, c)
    expected = values(by_function, nnx.Param)
    assert_trees_close(values(by_tree, nnx.Param), expected)
    assert_trees_close(values(by_leaf, nnx.Param), expected)
    nnx.jit(step)(by_leaf, b)


def test_google_flax_5372_mask_tree_from_state():
    model = Net()
    mask = jax.tree.map(lambda x: x.ndim > 1, nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, optax.masked(optax.sgd(0.1), mask))
    step(model, optimizer)
    expected = optax.masked(
        optax.sgd(0.1), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    )
    assert_trees_close(values(model, nnx.Param), reference(expected, 1))


def test_mapping_from_filters_trains_parts_differently():
    model = Net()
    rules = {nnx.PathContains("kernel"): optax.sgd(0.1), ...: None}
    optimizer = nnx.Optimizer(model, rules)
    before = values(model, nnx.Param)
    step(model, optimizer)
    after = values(model, nnx.Param)
    assert_trees_equal(before["head"]["bias"], after["head"]["bias"])
    assert not np.array_equal(before["head"]["kernel"], after["head"]["kernel"])


def test_mapping_must_cover_everything():
    with pytest.raises(ValueError, match=r"'body.bias'.*add `\.\.\.: tx`"):
        nnx.Optimizer(Net(), {nnx.PathContains("kernel"): optax.sgd(0.1)})


def test_google_flax_4144_lbfgs():
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    target = X @ jnp.arange(4.0)[:, None] + 1

    def loss(model):
        return jnp.mean((model(X) - target) ** 2)

    optimizer = nnx.Optimizer(model, optax.lbfgs())

    @nnx.jit
    def run(model, optimizer):
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads, value=value, grad=grads, value_fn=loss)
        return value

    for _ in range(15):
        run(model, optimizer)
    assert loss(model) < 1e-6


def test_value_fn_has_no_side_effects():
    model = Net()
    optimizer = nnx.Optimizer(model, optax.lbfgs())
    value, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(grads, value=value, grad=grads, value_fn=loss_fn)
    assert model.calls.value == 1


def test_google_flax_4531_learning_rate_without_retrace():
    traces = []
    model = Net()
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    optimizer = nnx.Optimizer(model, tx)

    @nnx.jit
    def run(model, optimizer):
        traces.append(1)
        return step(model, optimizer)

    run(model, optimizer)
    optimizer.opt_state.hyperparams["learning_rate"][...] = 0.0
    before = values(model, nnx.Param)
    run(model, optimizer)
    assert_trees_equal(values(model, nnx.Param), before)
    optimizer.learning_rate = 0.5
    assert optimizer.learning_rate == 0.5
    run(model, optimizer)
    assert len(traces) == 1
    assert not np.array_equal(values(model.head)["bias"], before["head"]["bias"])


def test_learning_rate_without_inject_hyperparams():
    optimizer = nnx.Optimizer(Net(), optax.sgd(0.1))
    with pytest.raises(AttributeError, match="optax.inject_hyperparams"):
        _ = optimizer.learning_rate


def test_physical_intelligence_openpi_286_multi_steps_jitted():
    traces = []
    model = Net()
    optimizer = nnx.Optimizer(model, optax.MultiSteps(optax.sgd(0.1), 3))

    @nnx.jit
    def run(model, optimizer):
        traces.append(1)
        step(model, optimizer)

    moved = []
    for _ in range(6):
        before = values(model.head)
        run(model, optimizer)
        moved.append(not np.array_equal(before["bias"], model.head.bias))
    assert moved == [False, False, True, False, False, True]
    assert len(traces) == 1


def test_google_flax_5548_fresh_optimizers_do_not_retrace():
    traces = []

    @nnx.jit
    def run(model, optimizer):
        traces.append(1)
        optimizer.update(model, nnx.grad(lambda m: m(X).sum())(model))

    for seed in range(3):
        model = nnx.Linear(4, 2, rngs=nnx.Rngs(seed))
        run(model, nnx.Optimizer(model, optax.adam(1e-3)))
    assert len(traces) == 1


def test_shared_parameter_is_optimised_once():
    layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    model = nnx.List([layer, layer])
    optimizer = nnx.Optimizer(model, optax.sgd(1.0))

    def loss(model):
        return model[1](model[0](X)).sum()

    grads = nnx.grad(loss)(model)
    before = layer.bias.value
    optimizer.update(grads)
    np.testing.assert_allclose(layer.bias, before - grads[0]["bias"], rtol=1e-6)


def test_optimizer_alone_carries_its_model_through_jit():
    model = Net()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1))

    @nnx.jit
    def run(optimizer):
        return step(optimizer.model, optimizer)

    losses = [run(optimizer).item() for _ in range(5)]
    assert losses[-1] < losses[0]
    assert optimizer.model is model


def test_dropped_optimizer_and_model_are_collected():
    run = nnx.jit(step)
    model = Net()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    run(model, optimizer)
    references = [weakref.ref(model), weakref.ref(optimizer)]
    del model, optimizer
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert len(run._plans) == 0


# Bad input


def test_nothing_to_optimise():
    with pytest.raises(ValueError, match="no Variable of Linear matches wrt.*BatchS"):
        nnx.Optimizer(
            nnx.Linear(2, 2, rngs=nnx.Rngs(0)), optax.sgd(0.1), wrt=nnx.BatchStat
        )


@pytest.mark.parametrize("arguments", [(), (1, 2, 3)])
def test_wrong_number_of_arguments(arguments):
    optimizer = nnx.Optimizer(Net(), optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"use optimizer.update\(grads\) or"):
        optimizer.update(*arguments)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda g: g.pop("head"), r"missing head\.bias; missing head\.kernel"),
        (
            lambda g: g["head"].__setitem__("bias", jnp.zeros(3)),
            r"head\.bias has shape \(3,\), wants \(1,\)",
        ),
        (lambda g: g.__setitem__("tail", jnp.zeros(3)), r"unknown tail"),
    ],
)
def test_gradients_that_do_not_fit_change_nothing(spoil, message):
    model = Net()
    optimizer = nnx.Optimizer(model, optax.adam(0.1))
    grads = nnx.grad(loss_fn)(model)
    spoil(grads)
    before = values((model, optimizer))
    with pytest.raises(ValueError, match=message + ".*as nnx.grad gives it"):
        optimizer.update(grads)
    assert_trees_equal(values((model, optimizer)), before)


def test_a_model_that_has_grown_is_refused():
    model = Net()
    optimizer = nnx.Optimizer(model, optax.adam(0.1))
    model.tail = nnx.Param(jnp.zeros(()))
    grads = nnx.grad(lambda m: loss_fn(m) + m.tail)(model)
    with pytest.raises(ValueError, match="new are tail, gone are none. Make a new nnx"):
        optimizer.update(grads)


@pytest.mark.parametrize("tx", [0.1, None, "adam"])
def test_no_transformation(tx):
    with pytest.raises(TypeError, match=r"such as optax.adam\(1e-3\), not"):
        nnx.Optimizer(Net(), tx)


@pytest.mark.parametrize("grads", [None, (1.0, 2.0)])
def test_no_gradients(grads):
    with pytest.raises(ValueError, match="second part of what nnx.value_and_grad"):
        nnx.Optimizer(Net(), optax.sgd(0.1)).update(grads)


# What newcomers met


@pytest.mark.parametrize("form", ["Param", "list", "dict", "Dict", "frozen"])
@pytest.mark.parametrize("start", [1.0, jnp.array(1.0)], ids=["number", "array"])
def test_lbfgs_of_all_forms(form, start):
    w, target = nnx.Param(start), nnx.Param(3.0)
    p, read = {
        "Param": (w, lambda p: (p, 3)),
        "list": ([w], lambda p: (p[0], 3)),
        "dict": ({"a": w}, lambda p: (p["a"], 3)),
        "Dict": (nnx.Dict(a=w), lambda p: (p["a"], 3)),
        "frozen": ({"a": w, "b": target}, lambda p: (p["a"], p["b"])),
    }[form]
    nnx.freeze(target)

    def loss(p):
        a, b = read(p)
        return (a - b) ** 2

    optimizer = nnx.Optimizer(p, optax.lbfgs())
    for _ in range(8):
        value, grads = nnx.value_and_grad(loss)(p)
        optimizer.update(grads, value=value, grad=grads, value_fn=loss)
    assert abs(float(w.value) - 3) < 1e-4


@pytest.mark.parametrize(
    "start", [1.0, jnp.array(1.0), jnp.log(2.0), jnp.full(2, 0.5), np.ones(2)]
)
def test_weakly_typed_parameters_compile_once(start):
    traces, w = [], nnx.Param(start)
    optimizer = nnx.Optimizer(w, optax.adam(0.1))

    @nnx.jit
    def step():
        traces.append(1)
        optimizer.update(nnx.grad(lambda w: (w**2).sum())(w))

    for _ in range(4):
        step()
    assert len(traces) == 1 and not w.value.weak_type


def test_parameters_without_gradient_are_named():
    model = nnx.Dict(a=nnx.Param(1.0), b=[nnx.Param(3)])
    with pytest.raises(TypeError, match=r"'b\[0\]' has the dtype int32, which has no"):
        nnx.Optimizer(model, optax.sgd(0.1))
    nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.PathContains("a"))
    with pytest.raises(TypeError, match=r"make it one, nnx.Param\(array\)"):
        nnx.Optimizer(jnp.ones(3), optax.sgd(0.1))


def test_empty_gradients_say_how_to_get_others():
    v = nnx.Variable(1.0)
    optimizer = nnx.Optimizer(v, optax.sgd(0.1), wrt=nnx.Variable)
    with pytest.raises(ValueError, match=r"argnums=nnx.DiffState\(0, nnx.Variable\)"):
        optimizer.update(nnx.grad(lambda v: v**2)(v))
    of_variables = nnx.DiffState(0, nnx.Variable)
    optimizer.update(nnx.grad(lambda v: v**2, argnums=of_variables)(v))
    assert abs(float(v.value) - 0.8) < 1e-6
