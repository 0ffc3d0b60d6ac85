"""Capture, intercept, parametrize and freeze under every transform.

The cross product: a transform stands for a Python statement; with it, each feature must
do what it does in that statement.
"""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

Carry = nnx.Carry


class Net(nnx.Module):
    """Maps (..., 4) to (..., 4)."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.blocks = [nnx.Linear(4, 4, rngs=rngs)]

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.blocks[0](jnp.tanh(self.first(x))))


def each(f: Any, m: Any, x: Any) -> Any:
    return jnp.stack([f(m, row) for row in x])


def once(f: Any, m: Any, x: Any) -> Any:
    return f(m, x)


def twice(f: Any, m: Any, x: Any) -> Any:
    return f(m, f(m, x))


def total(f: Any, m: Any, x: Any) -> Any:
    return f(m, x).sum()


def shard_mapped(f: Any, m: Any, x: Any) -> Any:
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("d",))
    P = jax.sharding.PartitionSpec
    call = nnx.shard_map(f, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"))
    return call(m, x)


def with_custom_vjp(f: Any, m: Any, x: Any) -> Any:
    call = nnx.custom_vjp(f)
    call.defvjp(lambda m, x: (f(m, x), None), lambda res, g: (None, g))
    return call(m, x)


def scanned(f: Any, m: Any, x: Any) -> Any:
    call = nnx.scan(
        lambda m, row: (m, f(m, row)), in_axes=(Carry, 0), out_axes=(Carry, 0)
    )
    return call(m, x)[1]


def vmapped_model(f: Any, m: Any, x: Any) -> Any:
    return nnx.vmap(f)(nnx.stack([nnx.clone(m) for _ in range(3)]), x)


TRANSFORMS = {
    "jit": (lambda f, m, x: nnx.jit(f)(m, x), once),
    "jit captured": (lambda f, m, x: nnx.jit(lambda x: f(m, x))(x), once),
    "value_and_grad": (
        lambda f, m, x: nnx.value_and_grad(lambda m: f(m, x).sum())(m)[0],
        total,
    ),
    "jit of grad": (
        lambda f, m, x: nnx.jit(nnx.value_and_grad(lambda m: f(m, x).sum()))(m)[0],
        total,
    ),
    "vmap": (lambda f, m, x: nnx.vmap(f, in_axes=(None, 0))(m, x), each),
    "vmap captured": (lambda f, m, x: nnx.vmap(lambda x: f(m, x))(x), each),
    "vmap mapped": (vmapped_model, each),
    "pmap": (lambda f, m, x: nnx.pmap(f, in_axes=(None, 0))(m, x[:1]), None),
    "shard_map": (shard_mapped, once),
    "scan": (scanned, each),
    "scan captured": (
        lambda f, m, x: nnx.scan(lambda row: f(m, row), in_axes=0, out_axes=0)(x),
        each,
    ),
    "while_loop": (
        lambda f, m, x: nnx.while_loop(
            lambda c: c[0] < 2, lambda c: (c[0] + 1, f(m, c[1])), (jnp.array(0), x)
        )[1],
        twice,
    ),
    "fori_loop": (
        lambda f, m, x: nnx.fori_loop(0, 2, lambda i, x: f(m, x), x),
        twice,
    ),
    "cond": (lambda f, m, x: nnx.cond(True, f, lambda m, x: x, m, x), once),
    "switch": (lambda f, m, x: nnx.switch(1, [lambda m, x: x, f], m, x), once),
    "remat": (lambda f, m, x: nnx.remat(f)(m, x), once),
    "jit of remat": (lambda f, m, x: nnx.jit(nnx.remat(f))(m, x), once),
    "custom_vjp": (with_custom_vjp, once),
    "vjp": (lambda f, m, x: nnx.vjp(f, m, x)[0], once),
    "jvp": (lambda f, m, x: nnx.jvp(f, (m, x), (None, x))[0], once),
    "checkify": (lambda f, m, x: nnx.checkify(f)(m, x)[1], once),
    "jit of vmap": (
        lambda f, m, x: nnx.jit(nnx.vmap(f, in_axes=(None, 0)))(m, x),
        each,
    ),
    "plain vmap": (lambda f, m, x: jax.vmap(lambda x: f(m, x))(x), each),
    "plain jit": (lambda f, m, x: jax.jit(lambda x: f(m, x))(x), once),
}


@pytest.fixture(params=TRANSFORMS)
def both(request: Any) -> tuple[Any, Any]:
    """The transform, and the statement that it stands for."""
    transform, statement = TRANSFORMS[request.param]
    return transform, statement or (lambda f, m, x: each(f, m, x[:1]))


@pytest.fixture
def m() -> Net:
    return Net(nnx.Rngs(0))


@pytest.fixture
def x() -> Any:
    return jax.random.normal(jax.random.key(1), (3, 4))


def call(m: Any, x: Any) -> Any:
    return m(x)


assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def doubled(next: Any, args: Any, kwargs: Any, about: Any) -> Any:
    return 2 * next(*args, **kwargs)


def test_intercept_around_the_transform(both, m, x):
    transform, statement = both
    plain = statement(call, m, x)
    with nnx.intercept(doubled, only=nnx.Linear):
        expected = statement(call, m, x)
        assert_close(transform(call, m, x), expected)
    assert np.abs(expected - plain).max() > 1e-3
    assert_close(transform(call, m, x), plain)


def test_intercept_inside(both, m, x):
    transform, statement = both

    def f(m, x):
        with nnx.intercept(doubled, only=nnx.PathContains("blocks")):
            y = m(x)
        return y + m(x)

    assert_close(transform(f, m, x), statement(f, m, x))


def test_interceptors_nest(both, m, x):
    transform, statement = both

    def shifted(next, args, kwargs, about):
        return 1 + next(*args, **kwargs)

    results = []
    for contexts in ((doubled, shifted), (shifted, doubled)):
        with contextlib.ExitStack() as stack:
            for one in contexts:
                stack.enter_context(nnx.intercept(one, only=nnx.Linear))
            results.append(transform(call, m, x))
            assert_close(results[-1], statement(call, m, x))
    assert np.abs(results[0] - results[1]).max() > 1e-3


def test_interceptors_see_variables(both, m, x):
    """What an interceptor sees is seen as it is at each call, in compiled code too."""
    transform, statement = both
    scale = nnx.Variable(jnp.array(0.5))

    def scaled(next, args, kwargs, about):
        return scale * next(*args, **kwargs)

    for value in (0.5, 3.0):
        scale.value = jnp.array(value)
        with nnx.intercept(scaled, only=nnx.Linear):
            assert_close(transform(call, m, x), statement(call, m, x))


def test_an_exception_ends_an_interceptor(both, m, x):
    transform, statement = both

    def failing(next, args, kwargs, about):
        raise ZeroDivisionError

    with contextlib.suppress(ZeroDivisionError), nnx.intercept(failing):
        transform(call, m, x)
    assert_close(transform(call, m, x), statement(call, m, x))


def test_reads_are_intercepted(both, m, x):
    transform, statement = both
    plain = transform(call, m, x)
    with nnx.intercept_variables(get=lambda variable, value: value.round(1)):
        assert_close(transform(call, m, x), statement(call, m, x))
        assert np.abs(transform(call, m, x) - plain).max() > 1e-3
    assert_close(transform(call, m, x), plain)


def test_hooks(both, m, x):
    transform, statement = both
    plain = statement(call, m, x)
    remove = nnx.hook(m.first, doubled)
    is_copied = transform is vmapped_model  # a hook is on an object, not on its copies
    expected = plain if is_copied else statement(call, m, x)
    assert_close(transform(call, m, x), expected)
    remove()
    assert_close(transform(call, m, x), plain)


def test_capture_inside(both, m, x):
    transform, statement = both

    def f(m, x):
        y, state = nnx.capture(m, method_outputs=nnx.Intermediate)(x)
        return y + state["first"]["__call__"].value[0]

    expected = statement(f, m, x)
    if both in (TRANSFORMS["plain vmap"], TRANSFORMS["plain jit"]):
        with pytest.raises(nnx.TraceContextError, match="Use the nnxlite transform"):
            transform(f, m, x)

        def copying(m, x):
            return f(nnx.clone(m), x)

        assert_close(transform(copying, m, x), expected)
    else:
        assert_close(transform(f, m, x), expected)
    assert not nnx.to_flat_state(nnx.state(m, nnx.Intermediate)).paths


AROUND = ["jit", "jit captured", "value_and_grad", "jit of grad", "remat", "checkify"]
AROUND += ["jit of remat", "vjp", "jvp"]


@pytest.mark.parametrize("name", AROUND)
def test_capture_around(m, x, name):
    transform, _ = TRANSFORMS[name]

    def f(m, x):
        return transform(call, m, x)

    _, state = nnx.capture(f, method_outputs=nnx.Intermediate)(m, x)
    first = state["first"]["__call__"].value[0]
    assert_close(first, m.first(x))
    assert not nnx.to_flat_state(nnx.state(m, nnx.Intermediate)).paths
    m.first(x)


def test_capture_around_a_vmapped_model(m, x):
    models = nnx.stack([nnx.clone(m) for _ in range(3)])
    watched = nnx.capture(nnx.vmap(call), method_outputs=nnx.Intermediate)
    _, state = watched(models, x)
    assert_close(state["first"]["__call__"].value[0], m.first(x))


def test_parametrized(both, m, x):
    transform, statement = both
    plain = statement(call, m, x)
    nnx.parametrize(m, "first.kernel", jnp.abs)
    nnx.parametrize(m, "first.kernel", lambda w: 3 * w)
    expected = statement(call, m, x)
    assert_close(transform(call, m, x), expected)
    assert np.abs(expected - plain).max() > 1e-3
    m.first.kernel.raw_value *= -1  # the same weight
    assert_close(transform(call, m, x), expected)
    m.first.kernel.raw_value *= 2
    assert_close(transform(call, m, x), statement(call, m, x))


def test_frozen(both, m, x):
    transform, statement = both
    nnx.freeze(m)
    assert_close(transform(call, m, x), statement(call, m, x))

    def f(m, x):
        m.first.bias[...] += 1
        return m(x)

    before = m.first.bias[...]
    with pytest.raises(ValueError, match="is frozen and cannot be written"):
        transform(f, m, x)
    np.testing.assert_array_equal(m.first.bias[...], before)


def test_freezing_inside_a_compiled_function(m, x):
    @nnx.jit
    def freeze(m):
        nnx.unfreeze(m)
        m.first.bias[...] += 1
        nnx.freeze(m, nnx.PathContains("first"))

    freeze(m)
    assert m.first.bias.frozen and m.first.bias[0] == 1
    freeze(m)
    assert m.first.bias[0] == 2 and not m.blocks[0].bias.has_metadata("frozen")


def test_gradients_of_what_is_not_frozen(m, x):
    nnx.freeze(m, nnx.PathContains("first"))
    expected = (("blocks", 0, "bias"), ("blocks", 0, "kernel"))

    def loss(m):
        return (m(x) ** 2).sum()

    assert nnx.to_flat_state(nnx.grad(loss)(m)).paths == expected
    assert nnx.to_flat_state(nnx.jit(nnx.grad(loss))(m)).paths == expected
    _, pull = nnx.vjp(loss, m)
    assert nnx.to_flat_state(pull(jnp.ones(()))[0]).paths == expected
    grads = nnx.vmap(nnx.grad(loss))(nnx.stack([m, nnx.clone(m)]))
    assert nnx.to_flat_state(grads).paths == expected


def test_equal_interceptors_compile_once(m, x):
    step = nnx.assert_max_traces(nnx.jit(call), 2)
    for _ in range(3):
        step(m, x)
        with nnx.intercept(lambda next, args, kwargs, about: -next(*args, **kwargs)):
            negative = step(m, x)
    assert_close(-negative, m(x) * jnp.sign(-negative / m(x)))


def test_values_that_are_no_arrays(both, m, x):
    transform, statement = both
    m.meta = nnx.Variable({"version": "1.0"})
    m.title = nnx.Variable("net")

    def f(m, x):
        assert m.meta.value == {"version": "1.0"} and m.title.value == "net"
        return m(x)

    assert_close(transform(f, m, x), statement(f, m, x))
    assert m.meta.value == {"version": "1.0"} and m.title.value == "net"
