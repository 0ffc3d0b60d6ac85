"""Decorated functions keep their types: pyright reads this file, pytest runs it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import ClosedJaxpr

import nnxlite as nnx

P = jax.sharding.PartitionSpec


def scale(x: jax.Array, factor: float = 2.0, /) -> jax.Array:
    """Multiplies."""
    return factor * x


WITHOUT_OPTIONS: list[Callable[..., Any]] = [
    nnx.jit,
    nnx.grad,
    nnx.value_and_grad,
    nnx.remat,
    nnx.vmap,
    nnx.pmap,
    nnx.custom_vjp,
    nnx.checkify,
    nnx.make_jaxpr,
]
WITH_OPTIONS: list[Callable[..., Any]] = [
    nnx.scan,
    functools.partial(
        nnx.shard_map, mesh=jax.make_mesh((1,), ("data",)), in_specs=P(), out_specs=P()
    ),
    functools.partial(nnx.transform_metadata, partition="layers"),
]


@pytest.mark.parametrize("transform", WITHOUT_OPTIONS + WITH_OPTIONS)
def test_a_decorated_function_looks_as_before(transform: Callable[..., Any]):
    transformed = transform(scale)

    assert transformed.__name__ == "scale"
    assert transformed.__doc__ == "Multiplies."
    assert inspect.signature(transformed) == inspect.signature(scale)


def test_the_types_of_results():
    x = jnp.ones(3)

    assert_type(nnx.jit(scale)(x, 3.0), jax.Array)
    assert_type(nnx.jit(inline=True)(scale)(x), jax.Array)
    assert_type(nnx.remat(scale)(x), jax.Array)
    assert_type(nnx.vmap(scale)(x), jax.Array)
    assert_type(nnx.vmap(in_axes=(0, None))(scale)(x, 3.0), jax.Array)
    assert_type(nnx.pmap(scale, axis_size=1)(x[:1]), jax.Array)
    assert_type(nnx.make_jaxpr(scale)(x), ClosedJaxpr)
    assert_type(nnx.checkify(scale)(x)[1], jax.Array)
    ruled: Callable[[jax.Array, float], jax.Array] = nnx.custom_vjp(scale)
    assert callable(ruled)


def test_wrong_arguments_are_seen_by_a_type_checker():
    with pytest.raises(TypeError):
        nnx.vmap(scale, in_axes=None, axis_size=2)(
            jnp.ones(3),
            3.0,
            4.0,  # pyright: ignore[reportCallIssue]
        )
    with pytest.raises(TypeError):
        nnx.remat(scale)()  # pyright: ignore[reportCallIssue]
