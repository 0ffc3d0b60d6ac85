"""Linear and Embed: values, promotion, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

import nnxlite as nnx

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def close(actual, desired, tolerance=1e-6):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def test_linear_is_a_matrix_product():
    layer = nnx.Linear(4, 5, bias_init=initializers.normal(), rngs=nnx.Rngs(0))
    expected = X @ layer.kernel.value + layer.bias.value
    close(layer(X), expected)
    close(layer(X[0]), expected[0])
    close(layer(X[None, :, None]), expected[None, :, None])
    assert layer(X[:0]).shape == (0, 5)


def test_d43_keys_of_linear():
    key = jax.random.key(0)
    first, second = (jax.random.fold_in(key, jnp.uint32(i)) for i in range(2))
    rngs = nnx.Rngs(0)
    layer = nnx.Linear(4, 5, bias_init=initializers.normal(), rngs=rngs)
    kernel = initializers.lecun_normal()(first, (4, 5), jnp.float32)
    np.testing.assert_array_equal(layer.kernel.value, kernel)
    bias = initializers.normal()(second, (5,), jnp.float32)
    np.testing.assert_array_equal(layer.bias.value, bias)
    assert rngs.default.count.value == 2  # zeros take a key too
    nnx.Linear(4, 5, use_bias=False, rngs=rngs)
    assert rngs.default.count.value == 3


def test_the_stream_params_is_used():
    layer = nnx.Linear(4, 5, rngs=nnx.Rngs(0, params=1))
    other = nnx.Linear(4, 5, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(layer.kernel.value, other.kernel.value)
    with pytest.raises(AttributeError, match=r"nnx.Rngs\(params=seed\)"):
        nnx.Linear(4, 5, rngs=nnx.Rngs(dropout=0))


@pytest.mark.parametrize(
    "dtype, x, param, result",
    [
        (None, jnp.float32, jnp.float32, jnp.float32),
        (None, jnp.bfloat16, jnp.float32, jnp.float32),
        (None, jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
        (None, jnp.int32, jnp.float32, jnp.float32),
        (None, jnp.int32, jnp.bfloat16, jnp.bfloat16),
        (None, jnp.complex64, jnp.float32, jnp.complex64),
        (jnp.bfloat16, jnp.float32, jnp.float32, jnp.bfloat16),
        ("float16", jnp.int32, jnp.float32, jnp.float16),
    ],
)
def test_d52_promotion(dtype, x, param, result):
    layers = [
        nnx.Linear(4, 4, dtype=dtype, param_dtype=param, rngs=nnx.Rngs(0)),
        nnx.Conv(4, 4, 3, dtype=dtype, param_dtype=param, rngs=nnx.Rngs(0)),
        nnx.LayerNorm(4, dtype=dtype, param_dtype=param, rngs=nnx.Rngs(0)),
    ]
    for layer in layers:
        assert layer(X.astype(x)).dtype == result
        for variable in jax.tree.leaves(nnx.state(layer, nnx.Param)):
            assert variable.dtype == param


@pytest.mark.parametrize("kind", [nnx.Linear, nnx.LayerNorm, nnx.BatchNorm])
def test_d52_an_integer_dtype_is_an_error(kind):
    args = (4, 4) if kind is nnx.Linear else (4,)
    layer = kind(*args, dtype=jnp.int32, rngs=nnx.Rngs(0))
    wanted = rf"^{kind.__name__}: Dtype must be inexact.*dtype=jnp.float32"
    with pytest.raises(ValueError, match=wanted):
        layer(X)


@pytest.mark.parametrize("shape", [(3, 5), (5,), (0,)])
def test_wrong_number_of_features(shape):
    layer = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
    wanted = rf"^Linear: .*\(4, 5\) wants .*\(4,\).*got \({shape[-1]},\).*in_features="
    with pytest.raises(ValueError, match=wanted):
        layer(jnp.ones(shape))
    with pytest.raises(ValueError, match=wanted):
        nnx.jit(lambda x: layer(x))(jnp.ones(shape))


def test_dot_general_gets_what_lax_gets():
    seen = {}

    def dot_general(*args, **options):
        seen.update(options)
        return jax.lax.dot_general(*args, **options)

    layer = nnx.Linear(
        4,
        5,
        precision="highest",
        dtype=jnp.bfloat16,
        preferred_element_type=jnp.float32,
        dot_general=dot_general,
        rngs=nnx.Rngs(0),
    )
    assert layer(X).dtype == jnp.float32
    assert seen == {"precision": "highest", "preferred_element_type": jnp.float32}


def test_out_sharding():
    mesh = jax.make_mesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        layer = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
        y = layer(jnp.asarray(X), out_sharding=jax.P("a", None))
        assert jax.typeof(y).sharding.spec == jax.P("a", None)


def test_d55_embed():
    table = nnx.Embed(6, 4, rngs=nnx.Rngs(0))
    rows = np.asarray(table.embedding.value)
    indices = np.array([[0, 5], [-1, 2]])
    np.testing.assert_array_equal(table(indices), rows[indices])
    np.testing.assert_array_equal(table(3), rows[3])
    assert np.isnan(table(jnp.array([6, -7]))).all()
    close(table.attend(X), X @ rows.T)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("query", [np.float32, jnp.bfloat16])
def test_attend_as_flax(oracle, dtype, query):
    flax_nnx = oracle("flax.nnx")
    ours, theirs = (f.Embed(6, 4, dtype=dtype, rngs=f.Rngs(0)) for f in (nnx, flax_nnx))
    y, expected = (f.attend(jnp.asarray(X, query)) for f in (ours, theirs))
    assert y.dtype == expected.dtype
    close(np.float32(y), np.float32(expected), 1e-2 if dtype else 1e-6)


@pytest.mark.parametrize("indices", [X, np.ones(3, bool), jnp.ones(3, jnp.complex64)])
def test_d55_embed_wants_integers(indices):
    table = nnx.Embed(6, 4, rngs=nnx.Rngs(0))
    wanted = r"^Embed: Input type must be an integer.*astype\('int32'\)"
    with pytest.raises(ValueError, match=wanted):
        table(indices)


def test_attend_with_a_wrong_number_of_features():
    table = nnx.Embed(6, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"^Embed: .*\(\.\.\., 3\); got \(3, 4\)"):
        table.attend(X)


def test_tied_embedding_has_one_gradient():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.table = nnx.Embed(6, 4, rngs=rngs)

        def __call__(self, tokens):
            return self.table.attend(self.table(tokens))

    model, tokens = Model(nnx.Rngs(0)), jnp.array([1, 2])
    grads = nnx.grad(lambda model: (model(tokens) ** 2).sum())(model)

    def loss(table):
        return ((table[tokens] @ table.T) ** 2).sum()

    expected = jax.grad(loss)(model.table.embedding.value)
    close(grads["table"]["embedding"].value, expected, 1e-5)


def test_a_policy_gives_what_the_layer_is_not_given():
    half = nnx.Policy(dtype=jnp.bfloat16, param_dtype=jnp.float16, precision="highest")
    layer = nnx.Linear(2, 3, policy=half, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert layer.kernel.dtype == jnp.float32 and layer.precision == "highest"
    assert layer(jnp.ones(2)).dtype == jnp.bfloat16
    norm = nnx.LayerNorm(3, policy=half, rngs=nnx.Rngs(0))
    assert norm.scale.dtype == jnp.float16 and norm(jnp.ones(3)).dtype == jnp.bfloat16
    plain = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert plain.dtype is None and plain.param_dtype == jnp.float32
    assert hash(half) == hash(nnx.Policy(jnp.bfloat16, jnp.float16, "highest"))


def test_attributes_of_a_layer_configure_its_kernel():
    layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    layer.dtype = jnp.bfloat16
    assert layer(jnp.ones(2)).dtype == jnp.bfloat16
    layer.axis = 0  # no argument of the kernel of Linear
    assert layer(jnp.ones((5, 2))).shape == (5, 3)


def test_indices_of_a_small_type_reach_all_rows():
    layer = nnx.Embed(300, 4, rngs=nnx.Rngs(0))
    for dtype in (jnp.int8, jnp.uint8, jnp.int16):
        x = jnp.array([5], dtype)
        np.testing.assert_array_equal(layer(x)[0], layer.embedding[5])
