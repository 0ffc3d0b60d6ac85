"""Mistakes that a newcomer makes: each error says what, where, and what to do."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import nnxlite as nnx

X = jnp.ones((3, 2))


def linear() -> Any:
    return nnx.Linear(2, 4, rngs=nnx.Rngs(0))


def without_a_pair() -> Any:
    f = nnx.custom_vjp(lambda x: x * 2)
    f.defvjp(lambda x: x * 2, lambda residuals, g: (g,))
    return nnx.grad(f)(1.0)


def without_a_tuple() -> Any:
    f = nnx.custom_vjp(lambda x: x * 2)
    f.defvjp(lambda x: (x * 2, x), lambda residuals, g: g * jnp.ones(()))
    return nnx.grad(f)(1.0)


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "two out_axes for one result": (
        lambda: nnx.vmap(lambda x: x, out_axes=(0, 0))(X),
        ValueError,
        r"out_axes has 2 entries, \(0, 0\), for one array: give a single one",
    ),
    "an out_axis that is not there": (
        lambda: nnx.vmap(lambda x: x, out_axes=5)(X),
        ValueError,
        r"the result cannot be stacked along axis 5, since it has 2 .* in out_axes",
    ),
    "two in_axes for a module": (
        lambda: nnx.vmap(lambda m, x: m(x), in_axes=((0, None), 0))(linear(), X),
        ValueError,
        r"in_axes has nothing for 'bias': \(0, None\) must have an entry for each part",
    ),
    "a module that is not stacked": (
        lambda: nnx.vmap(lambda m, x: m(x))(linear(), X),
        ValueError,
        r"different sizes: 4 for args\[0\]\.bias.* the same for all, give None in i",
    ),
    "streams that are not stacked": (
        lambda: nnx.vmap(lambda rngs: nnx.Linear(2, 3, rngs=rngs))(nnx.Rngs(0)),
        ValueError,
        r"args\[0\]\.default\.count over axis 0.* or None for what is the same for all",
    ),
    "a tangent that is no tuple": (
        lambda: nnx.jvp(lambda m: m(X), (linear(),), {"bias": jnp.ones(4)}),
        TypeError,
        r"tangents as a tuple, one for each argument, and got a dict: .*\(tangent,\)",
    ),
    "a primal that is no tuple": (
        lambda: nnx.jvp(lambda m: m(X), linear(), ({},)),
        TypeError,
        r"primals as a tuple.* got a Linear: put it in one, \(primal,\)",
    ),
    "an array for a tangent of a module": (
        lambda: nnx.jvp(lambda m: m(X), (linear(),), (jnp.ones(4),)),
        TypeError,
        r"tangents\[0\] must be a State, .* like its Linear, and is a",
    ),
    "a rule without residuals": (
        without_a_pair,
        TypeError,
        r"forward rule of nnx\.custom_vjp of '<lambda>' must return a pair.* not a",
    ),
    "a rule without a tuple": (
        without_a_tuple,
        TypeError,
        r"backward rule of .* must return a tuple with a cotangent for each of 1 arg",
    ),
    "values for branches": (
        lambda: nnx.cond(True, 1, 2),
        TypeError,
        r"true_fun of nnx\.cond must be a function of the operands, .* lambda: \.\.\.",
    ),
    "an array for a branch": (
        lambda: nnx.jit(lambda x: nnx.cond(True, lambda: x, x))(X),
        TypeError,
        r"false_fun of nnx\.cond must be a function of the operands",
    ),
    "index and branches swapped": (
        lambda: nnx.switch([lambda: 1, lambda: 2], 0),
        TypeError,
        r"nnx\.switch\(index, branches, \.\.\.\) takes a list of functions",
    ),
    "body and value swapped": (
        lambda: nnx.fori_loop(0, 3, X, lambda i, x: x),
        TypeError,
        r"nnx\.fori_loop\(lower, upper, body_fun, init_val\) needs a function",
    ),
    "a layer beyond the last": (
        lambda: nnx.Stack(lambda rngs: linear(), 3, rngs=nnx.Rngs(0))[3],
        IndexError,
        "there is no layer 3 in a Stack of 3",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake(name: str):
    make, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        make()


def test_jax_itself_is_still_content():
    """The table's functions are right but for the one mistake."""
    stacked = nnx.stack([linear() for _ in range(3)])
    assert nnx.vmap(lambda m, x: m(x))(stacked, X).shape == (3, 4)
    assert nnx.vmap(lambda x: x, out_axes=1)(X).shape == (2, 3)
    _, tangent = nnx.jvp(lambda m: m(X), (linear(),), ({"bias": jnp.ones(4)},))
    assert isinstance(tangent, jax.Array) and float(tangent.sum()) == 12.0


def test_lines_named_by_jax_are_the_users() -> None:
    leaked = []
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    @nnx.jit
    def leaking(model, x):
        leaked.append(model(x))  # the line to be named
        return leaked[0]

    text = leaking.lower(model, jnp.ones((1, 2))).compile().as_text()
    assert "test_mistakes.py" in text and "shell.py" not in text
    with pytest.raises(jax.errors.UnexpectedTracerError) as caught:
        leaked[0] + 1
    line = leaking.__wrapped__.__code__.co_firstlineno + 2
    assert re.search(rf"created on line .*test_mistakes\.py:{line}", str(caught.value))
