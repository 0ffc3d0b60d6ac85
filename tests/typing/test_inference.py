"""What a type checker knows of attributes, operators and methods made in loops."""

from collections.abc import Callable
from typing import Any, assert_type

import jax
import jax.numpy as jnp

import nnxlite as nnx


def test_random_numbers_and_initializers_are_methods_of_rngs_and_streams():
    rngs = nnx.Rngs(0)

    assert_type(rngs.params, nnx.RngStream)
    assert_type(rngs.normal((2,)), jax.Array)
    assert_type(rngs.params.uniform((2,), minval=1.0), jax.Array)
    assert_type(rngs.he_normal(), Callable[..., jax.Array])
    assert rngs.normal((2,)).shape == rngs.params.uniform((2,)).shape == (2,)
    assert rngs.he_normal()((2, 3)).shape == (2, 3)


def test_operators_of_variables_may_give_arrays():
    variable = nnx.Param(jnp.ones(2))

    assert_type(variable.value, jax.Array)
    for result in (variable + 1, 1 - variable, -variable, variable == 1, variable < 1):
        assert_type(result, Any)
        assert result.shape == (2,)
    assert_type(hash(variable), int)


def test_lists_and_dicts_have_the_types_of_pythons():
    numbers, by_name = nnx.List([1, 2]), nnx.Dict(one=1)

    assert_type(numbers.pop(), int)
    assert_type(by_name.pop("one"), int)
    numbers.reverse()
    assert (list(numbers), dict(by_name)) == ([1], {})


def test_the_attributes_of_layers():
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    attention = nnx.MultiHeadAttention(2, 4, rngs=nnx.Rngs(0))

    assert_type(linear.kernel, nnx.Param[jax.Array])
    assert_type(attention.query, nnx.LinearGeneral)
    assert_type(attention.head_dim, int)
    assert_type(nnx.relu(linear(jnp.ones(2))), jax.Array)
    assert attention.query.kernel.shape == (4, 2, attention.head_dim)
