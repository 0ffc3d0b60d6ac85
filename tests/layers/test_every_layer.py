"""What holds for every layer: the same as Flax NNX, copies, states, transforms."""

import copy
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

from .catalog import (
    BF16,
    LAYERS,
    OURS,
    assert_close,
    assert_same,
    call,
    inputs,
    make,
    variables,
)

every_layer = pytest.mark.parametrize("name", LAYERS)
# Those that Flax has, too; it cannot draw a carry from what a constructor is given.
flax_layer = pytest.mark.parametrize(
    "name",
    [
        name
        for name, (kind, *_) in LAYERS.items()
        if kind not in OURS and name not in ("attention rotary", "lstm carry")
    ],
)
# Here Flax overwrites what the wrapped layer stores; ours does not.
OVERWRITTEN = ("WeightNorm", "SpectralNorm")


@pytest.mark.parametrize(
    "seeds", [{"params": 0, "dropout": 1, "carry": 2}, {"default": 7}]
)
@flax_layer
def test_same_parameters_as_flax(oracle, name, seeds):
    flax_nnx = oracle("flax.nnx")
    (ours, our_rngs), (theirs, their_rngs) = (
        make(framework, name, **seeds) for framework in (nnx, flax_nnx)
    )
    assert_same(variables(nnx, ours), variables(flax_nnx, theirs))
    assert_same(variables(nnx, our_rngs), variables(flax_nnx, their_rngs))
    own = {"_pytree__state", "_pytree__nodes"}
    assert set(vars(theirs)) - own <= set(dir(ours)) | {"scale_init"}


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16, np.int32])
@flax_layer
def test_same_outputs_as_flax(oracle, name, dtype):
    flax_nnx = oracle("flax.nnx")
    if name.startswith("dropout") and LAYERS[name][1] != (0.0,) and dtype == np.int32:
        pytest.skip("dropout of integers is an error")
    if name.startswith("prelu") and dtype == np.int32:
        pytest.skip("Flax rounds the slope to an integer, ours promotes to float32")
    x = inputs(name, dtype)
    (ours, our_rngs), (theirs, their_rngs) = (
        make(framework, name) for framework in (nnx, flax_nnx)
    )
    kinds = dtype, *LAYERS[name][2].values()
    low = any(kind is t for kind in kinds for t in (BF16, np.float16))
    kind = LAYERS[name][0]
    times = 1 if kind in OVERWRITTEN else 2
    for _ in range(times):  # the second call sees what the first left behind
        y = call(ours, x, our_rngs)
        assert_close(y, call(theirs, x, their_rngs), 1e-2 if low else 1e-6)
    if times == 1:
        return
    left, wanted = variables(nnx, ours), variables(flax_nnx, theirs)
    assert list(left) == list(wanted)
    if kind in ("RNN", "Bidirectional"):  # Flax draws keys for carries of zeros
        del wanted["rngs", "count"]
    for path in wanted:
        assert_close(left[path], wanted[path], 1e-2 if low else 1e-6)


@pytest.mark.parametrize(
    "kind", sorted({kind for kind, *_ in LAYERS.values()} - {*OURS})
)
def test_same_signatures_as_flax(oracle, kind):
    ours, theirs = getattr(nnx, kind), getattr(oracle("flax.nnx"), kind)
    # Flax's SimpleCell computes in float32 by default, ours as all layers do.
    only_here = {
        "SpectralNorm": ("kwargs", "promote_dtype"),
        "SimpleCell": ("dtype",),
        "LoRA": ("axis",),
        "MultiHeadAttention": ("input_positions",),  # newer Flax has it too
    }.get(kind, ())

    def parameters(function):
        """What only we have is left out."""
        found = inspect.signature(function).parameters.values()
        return [p for p in found if p.name not in ("policy", "rotary_base", *only_here)]

    def arguments(function):
        return [(p.name, p.kind) for p in parameters(function)]

    def defaults(function):
        own = (
            "param_dtype",
            "lora_param_dtype",
            "decode",
        )  # here None is the policy's, and the other False
        values = {
            p.name: p.default
            for p in parameters(function)
            if not callable(p.default)
            and not p.name.endswith("promote_dtype")
            and p.name not in own
        }
        empty = ("_metadata", "batch_axis")
        return {k: {} if k.endswith(empty) else v for k, v in values.items()}

    for method in ("__init__", "__call__"):
        assert arguments(getattr(ours, method)) == arguments(getattr(theirs, method))
        assert defaults(getattr(ours, method)) == defaults(getattr(theirs, method))
    assert arguments(ours) == arguments(ours.__init__)[1:]


@flax_layer
def test_same_gradients_as_flax(oracle, name):
    flax_nnx = oracle("flax.nnx")
    x = inputs(name)
    if any(t is BF16 for t in LAYERS[name][2].values()) or "dropout" in name:
        pytest.skip("exact gradients are compared in float32, without chance")
    found = []
    for framework in (nnx, flax_nnx):
        layer, rngs = make(framework, name)
        if hasattr(layer, "deterministic"):
            layer.deterministic = True

        def loss(layer, rngs=rngs):
            return (call(layer, x, rngs) ** 2).sum()

        grads = framework.to_flat_state(framework.grad(loss)(layer))
        found.append({path: np.asarray(grad[...]) for path, grad in grads})
    ours, theirs = found
    if LAYERS[name][0] == "WeightNorm":  # in Flax its scales were no parameters once
        ours, theirs = (
            {path: grad for path, grad in grads.items() if path[0] != "scales"}
            for grads in found
        )
    assert list(ours) == list(theirs)
    size = max(np.abs(grad).max(initial=0) for grad in (1, *theirs.values()))
    for path in theirs:
        assert_close(ours[path] / size, theirs[path] / size, 1e-6)


def through_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


def through_split(layer):
    return nnx.merge(*nnx.split(layer), copy=True)


def through_jit(layer):
    return nnx.jit(nnx.clone)(layer)


def through_pure(layer):
    graphdef, state = nnx.split(layer)
    leaves, structure = jax.tree.flatten(state)
    return nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))


@pytest.mark.parametrize(
    "copied",
    [
        through_pickle,
        copy.deepcopy,
        nnx.clone,
        through_split,
        through_jit,
        through_pure,
    ],
)
@every_layer
def test_a_copy_computes_the_same_and_is_independent(name, copied):
    layer, x = make(nnx, name)[0], inputs(name)
    before = variables(nnx, layer)
    other = copied(layer)
    assert type(other) is type(layer) and other is not layer
    assert nnx.graphdef(other) == nnx.graphdef(layer)
    assert_same(variables(nnx, other), before)
    y = call(other, x)
    assert_same(variables(nnx, layer), before)
    np.testing.assert_array_equal(call(layer, x), y)
    assert_same(variables(nnx, layer), variables(nnx, other))


@every_layer
def test_repr_names_the_class(name):
    assert LAYERS[name][0] in repr(make(nnx, name)[0])


@every_layer
def test_as_an_argument_and_captured_by_jit(name):
    x = inputs(name)
    eager, passed, captured = (make(nnx, name)[0] for _ in range(3))
    tolerance = 1e-2 if any("bf16" in part for part in name.split()) else 1e-5
    call_passed = nnx.jit(lambda layer, x: call(layer, x))
    call_captured = nnx.jit(lambda x: call(captured, x))
    for _ in range(2):
        y = call(eager, x)
        assert_close(call_passed(passed, x), y, tolerance)
        assert_close(call_captured(x), y, tolerance)
    for layer in (passed, captured):
        values, wanted = variables(nnx, layer), variables(nnx, eager)
        assert list(values) == list(wanted)
        for path in wanted:
            assert_close(values[path], wanted[path], 1e-5)


@every_layer
def test_gradients_have_the_paths_of_the_parameters(name):
    layer, x = make(nnx, name)[0], inputs(name)
    twin = nnx.clone(layer)

    def loss(layer):
        return (call(layer, x).astype(jnp.float32) ** 2).sum()

    value, grads = nnx.value_and_grad(loss)(layer)
    np.testing.assert_allclose(value, loss(twin), rtol=1e-5)
    params = nnx.state(layer, nnx.Param)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    for grad, param in zip(
        jax.tree.leaves(grads), jax.tree.leaves(params), strict=True
    ):
        assert grad.shape == param.shape and grad.dtype == param.dtype
        assert np.isfinite(np.float32(grad)).all()
    assert_same(variables(nnx, layer), variables(nnx, twin))


@every_layer
def test_no_values_are_needed_to_make_one(name):
    abstract = nnx.eval_shape(lambda: make(nnx, name)[0])
    layer = make(nnx, name)[0]
    assert nnx.graphdef(abstract) == nnx.graphdef(layer)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), nnx.state(abstract))
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), nnx.state(layer))


@pytest.mark.parametrize("name", ["linear", "embed", "conv 2d", "batch norm"])
def test_parameters_may_be_arrays_and_inputs_variables(name):
    layer, x = make(nnx, name)[0], inputs(name)
    layer.eval()
    y = layer(x)
    np.testing.assert_array_equal(nnx.as_pure(layer)(x), y)
    np.testing.assert_array_equal(layer(nnx.Variable(x)), y)


@pytest.mark.parametrize("name", ["linear", "conv 2d", "embed", "layer norm"])
@pytest.mark.parametrize("rngs", [0, None, nnx.RngStream(0, tag="params")])
def test_only_an_rngs_gives_parameters(name, rngs):
    kind, args, options, _ = LAYERS[name]
    with pytest.raises(TypeError, match=r"rngs must be an nnx.Rngs.*nnx.Rngs\(seed\)"):
        getattr(nnx, kind)(*args, **options, rngs=rngs)


@pytest.mark.parametrize(
    "name, parameter",
    [
        ("linear", "kernel"),
        ("linear", "bias"),
        ("conv 2d", "kernel"),
        ("embed", "embedding"),
        ("batch norm", "scale"),
        ("layer norm", "bias"),
    ],
)
def test_metadata_from_the_argument_and_the_initializer(oracle, name, parameter):
    kind, args, _, _ = LAYERS[name]
    made = []
    for framework in (nnx, oracle("flax.nnx")):
        init = framework.with_metadata(framework.initializers.ones, by="initializer")
        layer = getattr(framework, kind)(
            *args,
            **{
                f"{parameter}_init": init,
                f"{parameter}_metadata": {"note": "argument"},
            },
            rngs=framework.Rngs(0),
        )
        made.append(getattr(layer, parameter))
    for variable in made:
        assert (variable.note, variable.by) == ("argument", "initializer")
        assert (np.asarray(variable[...]) == 1).all()


def test_what_a_user_changes_is_seen_by_the_next_call():
    layer, x = nnx.Linear(4, 5, rngs=nnx.Rngs(0)), jnp.ones((3, 4))
    layer.kernel = nnx.Param(jnp.ones((4, 2)))
    layer.bias = None
    np.testing.assert_array_equal(layer(x), np.full((3, 2), 4.0))
    layer.dtype = BF16
    assert layer(x).dtype == BF16
    layer.promote_dtype = lambda arrays, dtype: (arrays[0] * 2, *arrays[1:])
    np.testing.assert_array_equal(layer(x), np.full((3, 2), 8.0))


def test_a_function_of_the_users_may_read_and_write_variables():
    scale, calls = nnx.Variable(jnp.array(2.0)), nnx.Variable(jnp.array(0))

    def scaled(x, kernel, *args, **kwargs):
        calls.value += 1
        return jax.lax.dot_general(x, kernel * scale.value, *args, **kwargs)

    layer = nnx.Linear(4, 5, use_bias=False, dot_general=scaled, rngs=nnx.Rngs(0))
    x = jnp.ones((3, 4))
    y = x @ layer.kernel.value
    for factor in (2.0, 3.0):
        scale.value = jnp.array(factor)
        np.testing.assert_allclose(layer(x), factor * y, rtol=1e-6)
    assert calls.value == 2


def test_errors_of_subclasses_name_the_subclass():
    class Head(nnx.Linear):
        pass

    with pytest.raises(ValueError, match="^Head: A kernel of shape .* in_features="):
        Head(4, 5, rngs=nnx.Rngs(0))(jnp.ones((3, 3)))


@pytest.mark.parametrize("kind", [nnx.BatchNorm, nnx.Dropout])
def test_what_the_view_of_a_layer_can_change_has_one_line(kind):
    assert "\n" not in kind.set_view.__doc__
