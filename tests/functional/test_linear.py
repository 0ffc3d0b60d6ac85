"""linear, embed, attend against numpy and against Flax NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from nnxlite.functional import attend, embed, linear, linear_general

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    RNG.bit_generator.state = np.random.PCG64(0).state


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def close(actual, desired, tolerance=1e-5):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_linear(shape, use_bias):
    x, kernel, bias = normal(*shape), normal(4, 5), normal(5) if use_bias else None
    close(linear(x, kernel, bias), x @ kernel + (bias if use_bias else 0))


def test_linear_contracts_sorted_axes_and_batches_leading_ones():
    x, kernel, bias = normal(2, 3, 4, 5), normal(2, 3, 5, 6, 7), normal(2, 6, 7)
    y = linear_general(x, kernel, bias, axis=(-1, 1), batch_axes=(0,))
    expected = np.einsum("bijk,bikmn->bjmn", x, kernel) + bias[:, None]
    close(y, expected)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_linear_as_flax(oracle, dtype, param_dtype):
    nnx = oracle("flax.nnx")
    layer = nnx.Linear(
        4,
        5,
        dtype=dtype,
        param_dtype=param_dtype,
        bias_init=jax.nn.initializers.normal(),
        rngs=nnx.Rngs(0),
    )
    for x in (normal(3, 4), normal(2, 3, 4).astype(jnp.bfloat16)):
        y = linear(x, layer.kernel[...], layer.bias[...], dtype)
        assert y.dtype == layer(x).dtype
        close(y.astype(np.float32), layer(x).astype(np.float32))


def test_linear_general_as_flax(oracle):
    nnx = oracle("flax.nnx")
    layer = nnx.LinearGeneral(
        (3, 5),
        (6, 7),
        axis=(1, -1),
        batch_axis={0: 2},
        bias_init=jax.nn.initializers.normal(),
        rngs=nnx.Rngs(0),
    )
    x = normal(2, 3, 4, 5)
    y = linear_general(
        x, layer.kernel[...], layer.bias[...], axis=(1, -1), batch_axes=(0,)
    )
    close(y, layer(x))


def test_linear_gradients():
    arrays = normal(2, 3), normal(3, 4), normal(4)
    check_grads(linear, arrays, order=2, modes=["fwd", "rev"])


def test_linear_hands_on_what_is_given():
    seen = []

    def dot_general(lhs, rhs, dimension_numbers, **options):
        seen.append((dimension_numbers, options))
        return lax.dot_general(lhs, rhs, dimension_numbers)

    x, kernel = normal(2, 3), normal(3, 4)
    linear(x, kernel, None, dot_general=dot_general)
    linear(x, kernel, None, None, "highest", dot_general, preferred_element_type="f4")
    dims = (((1,), (0,)), ((), ()))
    assert seen == [
        (dims, {"precision": None}),
        (dims, {"precision": "highest", "preferred_element_type": "f4"}),
    ]


def test_linear_accumulates_in_the_preferred_type():
    x = jnp.ones((1, 4), jnp.bfloat16)
    y = linear(x, jnp.ones((4, 2), jnp.bfloat16), None, preferred_element_type="f4")
    assert y.dtype == jnp.float32


@pytest.mark.parametrize(
    ("x", "options", "match"),
    [
        (
            (2, 5),
            {},
            r"kernel of shape \(3, 4\) wants x to have sizes \(3,\) along its axes "
            r"\(1,\); got \(5,\) in x of shape \(2, 5\).*in_features=5\.",
        ),
        ((), {}, "axis: axis -1 is out of bounds for array of dimension 0"),
        ((3,), {"axis": (-2, -1)}, "axis: axis -2 is out of bounds"),
        ((3,), {"batch_axes": (1,)}, "batch_axes: axis 1 is out of bounds"),
    ],
)
def test_linear_explains_wrong_shapes(x, options, match):
    with pytest.raises(ValueError, match=match):
        function = linear_general if options else linear
        function(normal(*x) if x else 1.0, normal(3, 4), None, **options)


TABLE = normal(3, 2)


@pytest.mark.parametrize("indices", [1, [2, 0], [[0, 1, 2], [2, -1, -3]]])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int8])
def test_embed(indices, dtype):
    indices = np.array(indices)
    if np.issubdtype(dtype, np.unsignedinteger):
        indices = indices % 3
    np.testing.assert_array_equal(embed(indices.astype(dtype), TABLE), TABLE[indices])


def test_embed_out_of_range_is_nan():
    y = embed(np.array([3, -4, 0]), TABLE)
    np.testing.assert_array_equal(jnp.isnan(y).all(-1), [True, True, False])


def test_embed_refuses_other_than_integers():
    match = "must be an integer or unsigned integer.*got float32.*astype"
    with pytest.raises(ValueError, match=match):
        embed(np.ones(2, np.float32), TABLE)


def test_embed_types():
    indices = np.array([0, 1])
    assert embed(indices, TABLE.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert embed(indices, TABLE, jnp.float16).dtype == jnp.float16
    assert embed(indices, np.arange(6).reshape(3, 2)).dtype == jnp.int32


def test_embed_gradient_adds_up():
    gradient = jax.grad(lambda t: embed(np.array([1, 1, 2]), t).sum())(TABLE)
    np.testing.assert_array_equal(gradient, [[0, 0], [2, 2], [1, 1]])


def test_embed_and_attend_as_flax(oracle):
    nnx = oracle("flax.nnx")
    layer = nnx.Embed(3, 2, rngs=nnx.Rngs(0))
    indices, query = np.array([[0, 2], [-1, 7]]), normal(5, 4, 2)
    np.testing.assert_array_equal(
        embed(indices, layer.embedding[...]), layer(jnp.asarray(indices))
    )
    close(attend(query, layer.embedding[...]), layer.attend(jnp.asarray(query)))


@pytest.mark.parametrize("shape", [(2,), (4, 2), (5, 4, 2)])
def test_attend(shape):
    query = normal(*shape)
    close(attend(query, TABLE), query @ TABLE.T)
    check_grads(attend, (query, TABLE), order=1, modes=["rev"])


def test_attend_explains_wrong_shapes():
    match = r"embedding of shape \(3, 2\) wants .* \(\.\.\., 2\); got \(4,\).*Project"
    with pytest.raises(ValueError, match=match):
        attend(normal(4), TABLE)
