"""What holds for every layer: the same as Flax NNX, copies, states, transforms."""

import copy
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

NORMAL = jax.nn.initializers.normal(1.0)
BF16 = jnp.bfloat16

# Name of the class, its arguments but `rngs`, the shape of an input.
LAYERS = {
    "linear": ("Linear", (4, 5), {"bias_init": NORMAL}, (3, 4)),
    "linear without bias": ("Linear", (4, 5), {"use_bias": False}, (2, 3, 4)),
    "linear bf16 weights": ("Linear", (4, 5), {"param_dtype": BF16}, (4,)),
    "linear bf16": ("Linear", (4, 5), {"dtype": BF16, "bias_init": NORMAL}, (3, 4)),
    "linear precision": (
        "Linear",
        (4, 5),
        {"precision": "highest", "preferred_element_type": jnp.float32},
        (3, 4),
    ),
    "linear he": ("Linear", (4, 5), {"kernel_init": NORMAL}, (3, 4)),
    "general": ("LinearGeneral", (4, 5), {"bias_init": NORMAL}, (3, 4)),
    "general axes": (
        "LinearGeneral",
        ((3, 4), (5, 2)),
        {"axis": (1, -1), "bias_init": NORMAL},
        (2, 3, 4),
    ),
    "general unsorted": ("LinearGeneral", ((3, 3), 2), {"axis": (2, 1)}, (2, 3, 3)),
    "general batch": (
        "LinearGeneral",
        (4, (5, 2)),
        {"batch_axis": {0: 2}, "bias_init": NORMAL},
        (2, 3, 4),
    ),
    "general without bias": ("LinearGeneral", (4, 5), {"use_bias": False}, (2, 4)),
    "general bf16": ("LinearGeneral", (4, 5), {"dtype": BF16}, (2, 4)),
    "einsum": ("Einsum", ("nta,hab->nthb", (2, 4, 5), (2, 5)), {}, (2, 3, 4)),
    "einsum ellipsis": (
        "Einsum",
        ("... a, a b -> ... b", (4, 5), (5,)),
        {"bias_init": NORMAL, "precision": "highest"},
        (2, 3, 4),
    ),
    "einsum order": (
        "Einsum",
        ("ab,cbd->dca", (2, 4, 3), (3, 2)),
        {"bias_init": NORMAL},
        (5, 4),
    ),
    "einsum without bias": ("Einsum", ("ab,bc->ac", (4, 5)), {}, (3, 4)),
    "embed": ("Embed", (6, 4), {}, "indices"),
    "embed bf16": ("Embed", (6, 4), {"dtype": BF16}, "indices"),
    "embed init": (
        "Embed",
        (6, 4),
        {"embedding_init": NORMAL, "param_dtype": BF16},
        "indices",
    ),
    "conv 1d": ("Conv", (3, 4, 3), {"bias_init": NORMAL}, (2, 8, 3)),
    "conv 2d": ("Conv", (3, 4, (3, 2)), {}, (2, 8, 7, 3)),
    "conv 3d": ("Conv", (2, 3, (2, 2, 2)), {"padding": "VALID"}, (2, 4, 4, 4, 2)),
    "conv without bias": ("Conv", (3, 4, (3,)), {"use_bias": False}, (8, 3)),
    "conv strides": ("Conv", (3, 4, (3, 3), 2), {"padding": 1}, (2, 8, 8, 3)),
    "conv stride list": ("Conv", (3, 4, [3, 3], [2, 1]), {}, (1, 2, 8, 8, 3)),
    "conv pads": ("Conv", (3, 4, (3, 3)), {"padding": [1, (0, 2)]}, (2, 8, 8, 3)),
    "conv circular": (
        "Conv",
        (3, 4, (3, 3)),
        {"padding": "CIRCULAR", "kernel_dilation": 2},
        (2, 8, 8, 3),
    ),
    "conv reflect": ("Conv", (3, 4, (4,)), {"padding": "REFLECT"}, (2, 8, 3)),
    "conv causal": ("Conv", (3, 4, (4,)), {"padding": "CAUSAL"}, (2, 8, 3)),
    "conv groups": ("Conv", (4, 6, (3, 3)), {"feature_group_count": 2}, (2, 8, 8, 4)),
    "conv transposed": (
        "Conv",
        (3, 4, (3, 3), None),
        {"input_dilation": 2, "kernel_dilation": None, "padding": 1},
        (2, 8, 8, 3),
    ),
    "conv mask": (
        "Conv",
        (2, 2, 3),
        {"mask": np.tri(6, 2, dtype="f4").reshape(3, 2, 2)},
        (8, 2),
    ),
    "conv bf16": ("Conv", (3, 4, (3,)), {"dtype": BF16}, (8, 3)),
    "transposed 1d": ("ConvTranspose", (3, 4, 3), {"bias_init": NORMAL}, (2, 8, 3)),
    "transposed 2d": ("ConvTranspose", (3, 4, (3, 2), 2), {}, (2, 4, 5, 3)),
    "transposed valid": (
        "ConvTranspose",
        (3, 4, (3,), (2,)),
        {"padding": "VALID", "kernel_dilation": 2, "use_bias": False},
        (8, 3),
    ),
    "transposed pads": ("ConvTranspose", (3, 4, 4), {"padding": [(1, 2)]}, (2, 8, 3)),
    "transposed circular": (
        "ConvTranspose",
        (3, 4, (4, 3), (2, 3)),
        {"padding": "CIRCULAR", "bias_init": NORMAL},
        (2, 5, 4, 3),
    ),
    "transposed flipped": (
        "ConvTranspose",
        (3, 4, (4, 5)),
        {"padding": "CIRCULAR", "transpose_kernel": True},
        (2, 5, 4, 3),
    ),
    "transposed mask": (
        "ConvTranspose",
        (2, 2, 3),
        {"mask": np.tri(6, 2, dtype="f4").reshape(3, 2, 2)},
        (8, 2),
    ),
    "transposed bf16": ("ConvTranspose", (3, 4, 3), {"dtype": BF16}, (2, 8, 3)),
    "batch norm": (
        "BatchNorm",
        (4,),
        {"scale_init": NORMAL, "bias_init": NORMAL},
        (3, 4),
    ),
    "batch norm running": (
        "BatchNorm",
        (4,),
        {"use_running_average": True, "scale_init": NORMAL, "bias_init": NORMAL},
        (3, 4),
    ),
    "batch norm scale only": (
        "BatchNorm",
        (4,),
        {"use_bias": False, "momentum": 0.5, "epsilon": 0.1, "axis": 1},
        (3, 4, 5),
    ),
    "batch norm bias only": (
        "BatchNorm",
        (4,),
        {"use_scale": False, "use_fast_variance": False, "bias_init": NORMAL},
        (3, 5, 4),
    ),
    "batch norm bare": ("BatchNorm", (4,), {"use_scale": False}, (3, 4)),
    "batch norm bf16": (
        "BatchNorm",
        (4,),
        {"dtype": BF16, "param_dtype": BF16},
        (3, 4),
    ),
    "layer norm": (
        "LayerNorm",
        (4,),
        {"scale_init": NORMAL, "bias_init": NORMAL},
        (3, 4),
    ),
    "layer norm scale only": (
        "LayerNorm",
        (4,),
        {"use_bias": False, "epsilon": 0.1},
        (4,),
    ),
    "layer norm bias only": (
        "LayerNorm",
        (4,),
        {"use_scale": False, "use_fast_variance": False},
        (2, 3, 4),
    ),
    "layer norm axes": (
        "LayerNorm",
        (4,),
        {"reduction_axes": [1, 2], "feature_axes": 1, "scale_init": NORMAL},
        (3, 4, 5),
    ),
    "layer norm bf16": ("LayerNorm", (4,), {"dtype": BF16}, (3, 4)),
    "rms norm": ("RMSNorm", (4,), {"scale_init": NORMAL}, (3, 4)),
    "rms norm axes": (
        "RMSNorm",
        (4,),
        {"reduction_axes": [1, 2], "feature_axes": 1, "epsilon": 0.1},
        (3, 4, 5),
    ),
    "rms norm bare": ("RMSNorm", (4,), {"use_scale": False, "dtype": BF16}, (3, 4)),
    "group norm": (
        "GroupNorm",
        (6, 3),
        {"scale_init": NORMAL, "bias_init": NORMAL},
        (2, 5, 4, 6),
    ),
    "group norm size": (
        "GroupNorm",
        (6, None, 2),
        {"use_bias": False, "use_fast_variance": False},
        (2, 5, 6),
    ),
    "group norm bare": (
        "GroupNorm",
        (6, 2),
        {"use_scale": False, "dtype": BF16},
        (2, 6),
    ),
    "instance norm": (
        "InstanceNorm",
        (4,),
        {"scale_init": NORMAL, "bias_init": NORMAL},
        (2, 5, 3, 4),
    ),
    "instance norm axes": (
        "InstanceNorm",
        (4,),
        {"feature_axes": 1, "use_bias": False},
        (2, 4, 5),
    ),
    "attention": (
        "MultiHeadAttention",
        (4, 8),
        {"decode": False, "bias_init": NORMAL},
        (2, 5, 8),
    ),
    "attention sizes": (
        "MultiHeadAttention",
        (4, 8, 16, 6),
        {"decode": False, "use_bias": False, "out_kernel_init": NORMAL},
        (2, 3, 5, 8),
    ),
    "attention groups": (
        "MultiHeadAttention",
        (4, 8, 8, 8, 2),
        {"decode": False, "normalize_qk": True},
        (5, 8),
    ),
    "attention bf16": (
        "MultiHeadAttention",
        (2, 4),
        {"decode": False, "dtype": BF16},
        (2, 3, 4),
    ),
    "attention dropout": (
        "MultiHeadAttention",
        (2, 4),
        {"decode": False, "dropout_rate": 0.5, "deterministic": False},
        (2, 3, 4),
    ),
    "dropout": ("Dropout", (0.5,), {}, (3, 40)),
    "dropout dims": ("Dropout", (0.3,), {"broadcast_dims": (0,)}, (3, 40)),
    "dropout 0": ("Dropout", (0.0,), {}, (3, 4)),
    "dropout 1": ("Dropout", (1.0,), {}, (3, 4)),
    "dropout off": ("Dropout", (0.5,), {"deterministic": True}, (3, 4)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(framework, name, **rngs):
    kind, args, options, _ = LAYERS[name]
    rngs = framework.Rngs(**rngs or {"params": 0, "dropout": 1})
    return getattr(framework, kind)(*args, **options, rngs=rngs), rngs


def inputs(name, dtype=np.float32):
    shape = LAYERS[name][3]
    if shape == "indices":
        return np.array([[0, 5, -1], [3, 3, 2]])
    return jnp.asarray(np.random.default_rng(0).normal(1, 2, shape), dtype)


def variables(framework, layer):
    """The raw values of a layer's Variables by path, random keys as their data."""
    values = {}
    for path, variable in framework.to_flat_state(framework.state(layer)):
        value = variable[...] if isinstance(variable, framework.Variable) else variable
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        values[path] = np.asarray(value)
    return values


def assert_same(actual, desired):
    assert list(actual) == list(desired)
    for path in desired:
        assert actual[path].dtype == desired[path].dtype, path
        np.testing.assert_array_equal(actual[path], desired[path], str(path))


def assert_close(actual, desired, tolerance=1e-6):
    assert actual.dtype == desired.dtype
    actual, desired = np.float64(actual), np.float64(desired)
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("seeds", [{"params": 0, "dropout": 1}, {"default": 7}])
@every_layer
def test_same_parameters_as_flax(oracle, name, seeds):
    flax_nnx = oracle("flax.nnx")
    (ours, our_rngs), (theirs, their_rngs) = (
        make(framework, name, **seeds) for framework in (nnx, flax_nnx)
    )
    assert_same(variables(nnx, ours), variables(flax_nnx, theirs))
    assert_same(variables(nnx, our_rngs), variables(flax_nnx, their_rngs))
    own = {"_pytree__state", "_pytree__nodes"}
    assert set(vars(theirs)) - own <= set(vars(ours))


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.int32])
@every_layer
def test_same_outputs_as_flax(oracle, name, dtype):
    flax_nnx = oracle("flax.nnx")
    if name.startswith("dropout") and LAYERS[name][1] != (0.0,) and dtype == np.int32:
        pytest.skip("dropout of integers is an error")
    x = inputs(name, dtype)
    ours, theirs = make(nnx, name)[0], make(flax_nnx, name)[0]
    low = any(t is BF16 for t in (dtype, *LAYERS[name][2].values()))
    for _ in range(2):  # the second call sees what the first left behind
        assert_close(ours(x), theirs(x), 1e-2 if low else 1e-6)
    left, wanted = variables(nnx, ours), variables(flax_nnx, theirs)
    assert list(left) == list(wanted)
    for path in wanted:
        assert_close(left[path], wanted[path], 1e-2 if low else 1e-6)


@pytest.mark.parametrize("kind", sorted({kind for kind, *_ in LAYERS.values()}))
def test_same_signatures_as_flax(oracle, kind):
    ours, theirs = getattr(nnx, kind), getattr(oracle("flax.nnx"), kind)

    def parameters(function):
        """What only we have is left out: a policy."""
        found = inspect.signature(function).parameters.values()
        return [p for p in found if p.name != "policy"]

    def arguments(function):
        return [(p.name, p.kind) for p in parameters(function)]

    def defaults(function):
        own = "param_dtype", "decode"  # here None is the policy's, and the other False
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
    y = other(x)
    assert_same(variables(nnx, layer), before)
    np.testing.assert_array_equal(layer(x), y)
    assert_same(variables(nnx, layer), variables(nnx, other))


@every_layer
def test_repr_names_the_class(name):
    assert LAYERS[name][0] in repr(make(nnx, name)[0])


@every_layer
def test_as_an_argument_and_captured_by_jit(name):
    x = inputs(name)
    eager, passed, captured = (make(nnx, name)[0] for _ in range(3))
    call = nnx.jit(lambda layer, x: layer(x))
    call_captured = nnx.jit(lambda x: captured(x))
    for _ in range(2):
        y = eager(x)
        assert_close(call(passed, x), y, 1e-5)
        assert_close(call_captured(x), y, 1e-5)
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
        return (layer(x).astype(jnp.float32) ** 2).sum()

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
