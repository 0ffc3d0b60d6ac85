"""make_jaxpr and checkify. (eval_shape has a file of its own.)"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify

import nnxlite as nnx


class Counter(nnx.Module):
    def __init__(self) -> None:
        self.linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.calls = nnx.Variable(jnp.array(0, jnp.int32))

    def __call__(self, x: Any, scale: Any = 1) -> Any:
        """Counts."""
        self.calls += 1
        return self.linear(x) * scale


class TestMakeJaxpr:
    def test_inputs_are_the_arrays_and_outputs_what_is_written_and_returned(
        self,
    ) -> None:
        model = Counter()
        jaxpr = nnx.make_jaxpr(lambda m, x: m(x))(model, jnp.ones(2))
        shapes = [aval.shape for aval in jaxpr.in_avals]
        assert shapes == [(), (3,), (2, 3), (2,)]
        assert [aval.shape for aval in jaxpr.out_avals] == [(), (3,)]
        out = jax.extend.core.jaxpr_as_fun(jaxpr)(
            model.calls.value,
            model.linear.bias.value,
            model.linear.kernel.value,
            jnp.ones(2),
        )
        assert out[0] == 1
        assert jnp.allclose(out[1], model.linear(jnp.ones(2)))

    def test_nothing_is_changed(self) -> None:
        model = Counter()
        nnx.make_jaxpr(model)(jnp.ones(2))
        assert model.calls.value == 0

        def fails(m: Any) -> Any:
            m.calls += 1
            m.new = 1
            raise RuntimeError("half-way")

        with pytest.raises(RuntimeError, match="half-way"):
            nnx.make_jaxpr(fails)(model)
        assert model.calls.value == 0 and not hasattr(model, "new")

    def test_static_arguments_keywords_and_decorators(self) -> None:
        @nnx.make_jaxpr(static_argnums=1)
        def f(x: Any, n: int, *, y: Any) -> Any:
            return sum(x for _ in range(n)) + y

        jaxpr = f(1.0, 3, y=2.0)
        assert len(jaxpr.in_avals) == 2
        assert f.__name__ == "f"

    def test_it_shows_an_inner_gradient(self) -> None:
        grad = nnx.grad(lambda m, x: m(x).sum())
        jaxpr = nnx.make_jaxpr(grad)(Counter(), jnp.ones(2))
        shapes = sorted(aval.shape for aval in jaxpr.out_avals)
        assert shapes == [(), (2, 3), (3,)]


class TestCheckify:
    @staticmethod
    def checked(model: Counter, x: Any) -> Any:
        checkify.check(x.sum() > 0, "the sum is {}", x.sum())
        return model(x)

    @pytest.mark.parametrize("jitted", [False, True])
    def test_the_error_says_which_check_failed(self, jitted: bool) -> None:
        f = nnx.checkify(self.checked)
        f = nnx.jit(f) if jitted else f
        model = Counter()
        error, out = f(model, jnp.ones(2))
        assert error.get() is None
        assert out.shape == (3,)
        error, _ = f(model, -jnp.ones(2))
        with pytest.raises(checkify.JaxRuntimeError, match=r"the sum is -2\.0"):
            error.throw()
        assert model.calls.value == 2

    def test_kinds_of_errors(self) -> None:
        scale = nnx.Param(jnp.array(0.0))
        f = nnx.checkify(lambda s: 1 / s.value, errors=checkify.float_checks)
        error, _ = f(scale)
        assert "division by zero" in error.get()

    def test_new_attributes_and_objects_come_out(self) -> None:
        def f(m: Any) -> Any:
            m.new = nnx.Param(m.calls + 1)
            return m, m.new

        model = Counter()
        _, (same, new) = nnx.checkify(f)(model)
        assert same is model and new is model.new and new.value == 1

    def test_an_exception_changes_nothing(self) -> None:
        def f(m: Any) -> Any:
            m.calls += 1
            raise RuntimeError("half-way")

        model = Counter()
        with pytest.raises(RuntimeError, match="half-way"):
            nnx.checkify(f)(model)
        assert model.calls.value == 0
