"""Every layer in several configurations, in nnxlite or in Flax, and its inputs.

An argument of a configuration that is a function `(framework, rngs)` is called for it.
"""

import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np

import nnxlite as nnx

NORMAL = jax.nn.initializers.normal(1.0)
BF16 = jnp.bfloat16

OURS = ("AlphaDropout", "ConvLSTMCell", "DropPath", "GatedMLP")  # not in Flax


def random_carry(key, shape, dtype):
    return jax.random.normal(key, shape, dtype)


def _rnn(framework, rngs):
    return framework.RNN(framework.LSTMCell(3, 4, rngs=rngs), rngs=rngs)


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
    "prelu": ("PReLU", (0.3,), {}, (3, 4)),
    "prelu bf16": ("PReLU", (), {"dtype": BF16}, (3, 4)),
    "gated mlp": ("GatedMLP", (4, 6), {}, (3, 4)),
    "gated mlp bf16": (
        "GatedMLP",
        (4, 6, 3),
        {"use_bias": True, "dtype": BF16, "activation_fn": jax.nn.gelu},
        (2, 3, 4),
    ),
    "lora": ("LoRA", (4, 2, 5), {"b_initializer": NORMAL}, (3, 4)),
    "lora base": (
        "LoRA",
        (4, 2, 5),
        {"base_module": lambda framework, rngs: framework.Linear(4, 5, rngs=rngs)},
        (3, 4),
    ),
    "lora linear": (
        "LoRALinear",
        (4, 5),
        {"lora_rank": 2, "b_initializer": NORMAL, "use_bias": False},
        (2, 3, 4),
    ),
    "lora linear bf16": (
        "LoRALinear",
        (4, 5),
        {"lora_rank": 2, "b_initializer": NORMAL, "lora_dtype": BF16},
        (3, 4),
    ),
    "weight norm": (
        "WeightNorm",
        (lambda framework, rngs: framework.Linear(4, 5, rngs=rngs),),
        {},
        (3, 4),
    ),
    "weight norm conv": (
        "WeightNorm",
        (lambda framework, rngs: framework.Conv(4, 6, (3,), rngs=rngs),),
        {"feature_axes": (0, -1), "use_scale": False},
        (2, 5, 4),
    ),
    "spectral norm": (
        "SpectralNorm",
        (lambda framework, rngs: framework.Linear(4, 5, rngs=rngs),),
        {},
        (3, 4),
    ),
    "spectral norm conv": (
        "SpectralNorm",
        (lambda framework, rngs: framework.Conv(4, 6, (3,), rngs=rngs),),
        {"n_steps": 3},
        (2, 5, 4),
    ),
    "lstm": ("LSTMCell", (3, 4), {"bias_init": NORMAL}, (2, 3)),
    "lstm bf16": ("LSTMCell", (3, 4), {"dtype": BF16, "param_dtype": BF16}, (2, 3)),
    "lstm carry": (
        "LSTMCell",
        (3, 4),
        {"carry_init": random_carry, "gate_fn": jax.nn.hard_sigmoid},
        (5, 2, 3),
    ),
    "optimized lstm": ("OptimizedLSTMCell", (3, 4), {"bias_init": NORMAL}, (2, 3)),
    "gru": ("GRUCell", (3, 4), {"bias_init": NORMAL}, (2, 3)),
    "gru bf16": ("GRUCell", (3, 4), {"dtype": BF16}, (3,)),
    "simple": ("SimpleCell", (3, 4), {"bias_init": NORMAL}, (2, 3)),
    "simple residual": (
        "SimpleCell",
        (3, 4),
        {"residual": True, "activation_fn": jax.nn.relu, "dtype": None},
        (2, 3),
    ),
    "conv lstm": ("ConvLSTMCell", (2, 3, (3, 3)), {}, (2, 5, 6, 2)),
    "rnn": (
        "RNN",
        (lambda framework, rngs: framework.GRUCell(3, 4, rngs=rngs),),
        {},
        (2, 5, 3),
    ),
    "rnn back": (
        "RNN",
        (lambda framework, rngs: framework.LSTMCell(3, 4, rngs=rngs),),
        {"reverse": True, "keep_order": True, "unroll": 2},
        (5, 3),
    ),
    "rnn time major": (
        "RNN",
        (lambda framework, rngs: framework.OptimizedLSTMCell(3, 4, rngs=rngs),),
        {"time_major": True, "reverse": True},
        (5, 2, 3),
    ),
    "bidirectional": (
        "Bidirectional",
        (_rnn, _rnn),
        {},
        (2, 5, 3),
    ),
    "alpha dropout": ("AlphaDropout", (0.5,), {}, (3, 40)),
    "drop path": ("DropPath", (0.5,), {}, (8, 3)),
    "dropout": ("Dropout", (0.5,), {}, (3, 40)),
    "dropout dims": ("Dropout", (0.3,), {"broadcast_dims": (0,)}, (3, 40)),
    "dropout 0": ("Dropout", (0.0,), {}, (3, 4)),
    "dropout 1": ("Dropout", (1.0,), {}, (3, 4)),
    "dropout off": ("Dropout", (0.5,), {"deterministic": True}, (3, 4)),
}


def make(framework, name, **rngs):
    """A layer, and the Rngs that it was made with."""
    kind, args, options, _ = LAYERS[name]
    rngs = framework.Rngs(**rngs or {"params": 0, "dropout": 1, "carry": 2})
    kind = getattr(framework, kind)

    def settled(value):
        return (
            value(framework, rngs) if isinstance(value, types.FunctionType) else value
        )

    options = {k: settled(x) if k == "base_module" else x for k, x in options.items()}
    if "rngs" in inspect.signature(kind.__init__).parameters:
        options["rngs"] = rngs
    return kind(*map(settled, args), **options), rngs


def call(layer, x, carry_rngs=None):
    """Calls a layer; a cell with its first carry."""
    if not hasattr(layer, "initialize_carry"):
        return layer(x)
    carry = layer.initialize_carry(x.shape, carry_rngs or nnx.Rngs(carry=3))
    return layer(carry, x)[1]


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
