"""custom_vjp: JAX's contract, with objects everywhere."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx


class Foo(nnx.Module):
    def __init__(self) -> None:
        self.x = nnx.Param(jnp.array(1.0))
        self.y = nnx.Param(jnp.array(2.0))
        self.calls = nnx.Variable(jnp.array(0))


def make(backward: Any = None, **options: Any) -> Any:
    """sin(x) * y, whose rule gives 10 times the gradient of x and nothing for y."""

    @nnx.custom_vjp(**options)
    def f(m: Foo, scale: Any) -> Any:
        """The function."""
        m.calls += 1
        return jnp.sin(m.x) * m.y * scale

    def forward(m: Foo, scale: Any) -> Any:
        return f.function(m, scale), (jnp.cos(m.x.value), m, scale)

    def default(residuals: Any, g: Any) -> Any:
        cos, m, scale = residuals
        return {"x": 10 * g * cos * m.y * scale}, None

    f.defvjp(forward, backward or default)
    return f


EXPECTED = 10 * np.cos(1.0) * 2.0 * 3.0


def test_a_call_is_that_of_the_function() -> None:
    m = Foo()
    np.testing.assert_allclose(make()(m, 3.0), np.sin(1.0) * 6.0, rtol=1e-6)
    assert m.calls.value == 1


@pytest.mark.parametrize("wrap", ["eager", "jit outside", "jit inside", "remat"])
def test_the_rule_gives_the_gradient(wrap: str) -> None:
    f, m = make(), Foo()
    inner = {"jit inside": nnx.jit, "remat": nnx.remat}.get(wrap, lambda f: f)
    g = inner(lambda m, scale: f(m, scale))
    step = nnx.value_and_grad(g)
    value, grads = (nnx.jit(step) if wrap == "jit outside" else step)(m, 3.0)
    np.testing.assert_allclose(value, np.sin(1.0) * 6.0, rtol=1e-6)
    np.testing.assert_allclose(grads.x.value, EXPECTED, rtol=1e-6)
    assert grads.y.value == 0
    assert m.calls.value == 1


@pytest.mark.parametrize("form", ["dict", "state", "module", "none"])
def test_forms_of_a_cotangent(form: str) -> None:
    def backward(residuals: Any, g: Any) -> Any:
        value: Any = {"x": jnp.array(5.0), "y": jnp.array(6.0)}
        if form == "state":
            value = nnx.State(value)
        if form == "module":
            nnx.update(module := Foo(), value)
            value = module
        return (None if form == "none" else value), jnp.array(0.0)

    grads = nnx.grad(make(backward))(Foo(), 3.0)
    expected = (0, 0) if form == "none" else (5, 6)
    assert (grads.x.value, grads.y.value) == expected


def test_gradients_of_array_arguments() -> None:
    def backward(residuals: Any, g: Any) -> Any:
        return None, 7 * g

    assert nnx.grad(make(backward), argnums=1)(Foo(), jnp.array(3.0)) == 7.0


def test_constant_arguments_come_first() -> None:
    seen = []

    @nnx.custom_vjp(nondiff_argnums=(1,))
    def f(m: Foo, name: str, x: Any) -> Any:
        return m.x * x

    def forward(m: Foo, name: str, x: Any) -> Any:
        return f(m, name, x), x

    def backward(name: str, x: Any, g: Any) -> Any:
        seen.append(name)
        return {"x": 2 * g * x}, None

    f.defvjp(forward, backward)
    assert nnx.grad(f)(Foo(), "a name", 3.0).x.value == 6.0
    assert seen == ["a name"]


def test_a_diff_state_says_what_of_an_argument_has_a_cotangent() -> None:
    def backward(residuals: Any, g: Any) -> Any:
        return {"x": jnp.array(4.0)}, None

    only_x = nnx.DiffState(0, nnx.PathContains("x"))
    f = make(backward, nondiff_argnums=(only_x,))
    assert nnx.grad(f, argnums=only_x)(Foo(), 3.0).x.value == 4.0


def test_residual_objects_hold_the_values_of_then() -> None:
    @nnx.custom_vjp
    def f(m: Foo) -> Any:
        return m.x * 1

    def forward(m: Foo) -> Any:
        return f(m), m

    def backward(m: Foo, g: Any) -> Any:
        return ({"x": m.y.value},)

    f.defvjp(forward, backward)
    m = Foo()
    _, pull_back = nnx.vjp(f, m)
    m.y.value = jnp.array(100.0)
    assert pull_back(1.0)[0].x.value == 2.0


def test_vmap_over_the_function() -> None:
    f = make()
    m = Foo()
    each = nnx.vmap(lambda m, s: nnx.grad(f)(m, s).x.value, in_axes=(None, 0))
    out = each(m, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(out, EXPECTED / 3 * np.array([1.0, 2.0]), rtol=1e-6)


def test_errors_name_the_function_and_the_argument() -> None:
    no_rule = nnx.custom_vjp(lambda m: m.x * 1)
    with pytest.raises(ValueError, match=r"has no rule yet: call its defvjp"):
        no_rule(Foo())
    with pytest.raises(TypeError, match=r"'f' must return a tuple .* 2 arguments"):
        nnx.grad(make(lambda r, g: {"x": g}))(Foo(), 3.0)
    wrong = make(lambda r, g: ({"z": g}, None))
    with pytest.raises(ValueError, match=r"cotangent of args\[0\] has an entry 'z'"):
        nnx.grad(wrong)(Foo(), 3.0)
    wrong = make(lambda r, g: ({"x": jnp.ones(3)}, None))
    with pytest.raises(ValueError, match=r"args\[0\] has the shape \(3,\) at 'x'"):
        nnx.grad(wrong)(Foo(), 3.0)


def test_an_exception_changes_nothing() -> None:
    @nnx.custom_vjp
    def f(m: Foo) -> Any:
        m.x += 1
        m.new = 1
        raise RuntimeError("half-way")

    f.defvjp(lambda m: (f.function(m), None), lambda r, g: (None,))
    m = Foo()
    for call in (f, nnx.grad(f), nnx.jit(f)):
        with pytest.raises(RuntimeError, match="half-way"):
            call(m)
    assert m.x.value == 1.0 and not hasattr(m, "new")


def test_it_keeps_name_doc_and_signature_and_is_a_method() -> None:
    f = make()
    assert (f.__name__, f.__doc__) == ("f", "The function.")
    assert list(inspect.signature(f).parameters) == ["m", "scale"]

    class Layer(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.array(3.0))

        @nnx.custom_vjp
        def __call__(self, x: Any) -> Any:
            return self.w * x

    def backward(x: Any, g: Any) -> Any:
        return {"w": -g * x}, None

    Layer.__call__.defvjp(lambda self, x: (self.w * x, x), backward)
    assert nnx.grad(lambda layer: layer(2.0))(Layer()).w.value == -2.0


def test_results_may_be_objects() -> None:
    @nnx.custom_vjp
    def f(m: Foo) -> Any:
        return m, nnx.Param(m.x * 2)

    f.defvjp(lambda m: (f.function(m), None), lambda r, g: ({"x": g[1].value * 9},))

    def loss(m: Foo) -> Any:
        same, new = f(m)
        assert same is m
        return new.value

    assert nnx.grad(loss)(Foo()).x.value == 9.0


def test_equals_jax_on_arrays() -> None:
    def forward(x: Any) -> Any:
        return jnp.sin(x), jnp.cos(x)

    grads = []
    for module in (jax, nnx):
        f = module.custom_vjp(jnp.sin)
        f.defvjp(forward, lambda cos, g: (3 * cos * g,))
        grads.append(jax.grad(lambda x, f=f: f(x).sum())(jnp.arange(3.0)))
    np.testing.assert_array_equal(*grads)


def test_a_rule_with_the_contract_of_flax_is_told_that_of_jax() -> None:
    @nnx.custom_vjp
    def scaled(model, x):
        return model.w * x

    def backward(residuals, g):
        (updates, _), g = g
        return updates, g

    scaled.defvjp(lambda model, x: (scaled(model, x), x), backward)
    model = nnx.Dict(w=nnx.Param(2.0))
    with pytest.raises(TypeError, match="0-d array") as caught:
        nnx.grad(scaled)(model, 3.0)
    assert "bwd(residuals, g)" in caught.value.__notes__[0]
