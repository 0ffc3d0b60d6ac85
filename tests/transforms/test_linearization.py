"""vjp, jvp and remat."""

import inspect
import pickle
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x: Any, *, scale: Any = 1.0) -> Any:
        self.calls += 1
        return (self.dropout(jnp.tanh(self.linear(x))) + self.norm(x)) * scale


def _chained(layers: Any, x: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


def inputs() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (4, 3))


def assert_same(left: Any, right: Any) -> None:
    """Values, structure and metadata of two graphs are equal, up to rounding."""
    assert nnx.graphdef(left) == nnx.graphdef(right)
    leaves = (jax.tree.leaves(nnx.state(m)) for m in (left, right))
    for ours, theirs in zip(*leaves, strict=True):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


class TestVjp:
    def test_cotangents_equal_those_of_grad(self) -> None:
        model, twin = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
        y, pull_back = nnx.vjp(lambda m, x: m(x).sum(), model, inputs())
        grads, dx = pull_back(1.0)
        expected, dx_expected = nnx.grad(lambda m, x: m(x).sum(), argnums=(0, 1))(
            twin, inputs()
        )
        assert_same(nnx.filter_state(grads, nnx.Param), expected)
        np.testing.assert_allclose(dx, dx_expected, rtol=1e-5, atol=1e-6)
        assert_same(model, twin)  # what is written on the way is written once
        assert y.shape == ()

    def test_all_float_variables_and_no_others_have_cotangents(self) -> None:
        _, pull_back = nnx.vjp(lambda m: m.linear(inputs()), Net(nnx.Rngs(0)))
        (grads,) = pull_back(jnp.ones((4, 3)))
        paths = [path for path, _ in nnx.to_flat_state(grads)]
        assert ("norm", "mean") in paths
        assert ("calls",) not in paths
        assert ("dropout", "rngs", "key") not in paths
        assert not jnp.any(grads.norm.mean.value)

    def test_aux_may_hold_objects(self) -> None:
        model = Net(nnx.Rngs(0))
        y, pull_back, (same, new) = nnx.vjp(
            lambda m: (m(inputs()), (m, nnx.Param(m.linear.bias.value + 1))),
            model,
            has_aux=True,
        )
        assert same is model
        assert isinstance(new, nnx.Param)
        np.testing.assert_array_equal(new.value, jnp.ones(3))
        assert jax.tree.structure(pull_back(y)) is not None

    def test_bound_methods_and_modules(self) -> None:
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        y, pull_back = nnx.vjp(model, inputs())
        (dx,) = pull_back(jnp.ones_like(y))
        np.testing.assert_allclose(dx[0], model.kernel.value.sum(1), rtol=1e-6)

    def test_shared_variables_have_one_cotangent_with_the_sum(self) -> None:
        shared = nnx.Param(jnp.array(3.0))
        _, pull_back = nnx.vjp(lambda xs: xs[0] * xs[1], [shared, shared])
        ((first, second),) = pull_back(1.0)
        assert first.value == 6.0
        assert not jax.tree.leaves(second)

    def test_inside_jit(self) -> None:
        @nnx.jit
        def grads_of(model: Any) -> Any:
            y, pull_back = nnx.vjp(lambda m: m(inputs()).sum(), model)
            return pull_back(1.0)[0]

        model, twin = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
        expected = nnx.vjp(lambda m: m(inputs()).sum(), twin)[1](1.0)[0]
        assert_same(grads_of(model), expected)
        assert_same(model, twin)


class TestJvp:
    def test_equals_jax_on_the_arrays(self) -> None:
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        tangent = jax.tree.map(jnp.ones_like, nnx.state(model))
        primal_out, out = nnx.jvp(
            lambda m, x: m(x) ** 2, (model, inputs()), (tangent, inputs())
        )
        kernel, bias = model.kernel.value, model.bias.value
        expected = jax.jvp(
            lambda k, b, x: (x @ k + b) ** 2,
            (kernel, bias, inputs()),
            (jnp.ones_like(kernel), jnp.ones_like(bias), inputs()),
        )
        np.testing.assert_allclose(primal_out, expected[0], rtol=1e-6)
        np.testing.assert_allclose(out, expected[1], rtol=1e-6)

    @pytest.mark.parametrize("form", ["state", "dict", "module"])
    def test_forms_of_a_tangent(self, form: str) -> None:
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        tangent: Any = {"bias": jnp.ones(2), "kernel": jnp.zeros((3, 2))}
        if form == "state":
            tangent = nnx.State(tangent)
        if form == "module":
            values = tangent
            tangent = nnx.clone(model)
            nnx.update(tangent, values)
        _, out = nnx.jvp(lambda m: m(inputs()), (model,), (tangent,))
        np.testing.assert_array_equal(out, jnp.ones((4, 2)))

    def test_what_is_left_out_is_zero(self) -> None:
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        _, out = nnx.jvp(lambda m, x: m(x), (model, inputs()), ({}, None))
        assert not out.any()

    def test_a_tangent_that_does_not_fit_is_named(self) -> None:
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        f = lambda m: m(inputs())  # noqa: E731
        with pytest.raises(ValueError, match=r"tangents\[0\] has an entry 'weight'"):
            nnx.jvp(f, (model,), ({"weight": jnp.ones(2)},))
        with pytest.raises(ValueError, match=r"the shape \(3,\) at 'bias'.*\(2,\)"):
            nnx.jvp(f, (model,), ({"bias": jnp.ones(3)},))
        with pytest.raises(ValueError, match="1 primals and 2 tangents"):
            nnx.jvp(f, (model,), ({}, {}))

    def test_side_effects_happen_once(self) -> None:
        model, twin = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
        nnx.jvp(lambda m: m(inputs()), (model,), (None,))
        twin(inputs())
        assert_same(model, twin)


class TestRemat:
    @pytest.mark.parametrize("jitted", [False, True])
    def test_gradients_counters_and_masks_are_those_without(self, jitted: bool) -> None:
        def loss(model: Any, x: Any) -> Any:
            return (model(x, scale=2.0) ** 2).mean()

        results = []
        for function in (loss, nnx.remat(loss)):
            model = Net(nnx.Rngs(0))
            step = nnx.value_and_grad(function)
            value, grads = (nnx.jit(step) if jitted else step)(model, inputs())
            results.append((value, grads, model))
        (value, grads, model), (value_2, grads_2, model_2) = results
        np.testing.assert_allclose(value, value_2, rtol=1e-6)
        assert_same(grads, grads_2)
        assert_same(model, model_2)
        assert model_2.calls.value == model_2.dropout.rngs.count.value == 1

    def test_policies_are_honoured(self) -> None:
        everything = jax.checkpoint_policies.everything_saveable
        nothing = jax.checkpoint_policies.nothing_saveable
        counts = []
        for policy in (everything, nothing):
            f = nnx.remat(lambda m, x: jnp.sin(jnp.sin(m(x))).sum(), policy=policy)
            model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            lowered = nnx.jit(nnx.value_and_grad(f)).lower(model, inputs())
            counts.append(lowered.as_text().count("stablehlo.dot_general"))
        assert counts == [2, 3]  # the second computes the layer again

    def test_keyword_only_arguments_flags_and_numbers_stay_what_they_are(self) -> None:
        @nnx.remat(static_argnums=(1,))
        def f(x: Any, flag: Any, n: Any, *, name: str, double: bool = False) -> Any:
            assert flag is True and n == 2 and name == "f"
            y = sum(x for _ in range(n))
            return y * 2 if double else y

        grad = jax.grad(lambda x: f(x, True, 2, name="f", double=True))
        assert grad(1.0) == 4.0

    def test_a_class_becomes_a_subclass_and_stays_what_it_was(self) -> None:
        before = Net.__call__
        Remat = nnx.remat(Net)
        assert Net.__call__ is before and Remat is not Net
        assert issubclass(Remat, Net) and Remat.__name__ == "Net"
        model, twin = Remat(nnx.Rngs(0)), Net(nnx.Rngs(0))
        ours = nnx.grad(lambda m: m(inputs(), scale=3.0).sum())(model)
        theirs = nnx.grad(lambda m: m(inputs(), scale=3.0).sum())(twin)
        assert_same(ours, theirs)
        assert model.calls.value == 1

    def test_methods(self) -> None:
        class Layer(nnx.Module):
            def __init__(self) -> None:
                self.w = nnx.Param(jnp.array(2.0))

            @nnx.remat
            def __call__(self, x: Any) -> Any:
                """Squares."""
                return (self.w * x) ** 2

        grads = nnx.grad(lambda layer: layer(3.0))(Layer())
        assert grads.w.value == 36.0
        assert Layer.__call__.__doc__ == "Squares."
        assert list(inspect.signature(Layer.__call__).parameters) == ["self", "x"]

    def test_new_attributes_and_returned_objects(self) -> None:
        model = Net(nnx.Rngs(0))

        @nnx.remat
        def f(m: Any) -> Any:
            m.extra = nnx.Param(m.linear.bias.value + 1)
            del m.dropout
            return m, m.extra

        @nnx.jit
        def outer(m: Any) -> Any:
            return f(m)

        same, extra = outer(model)
        assert same is model and extra is model.extra
        assert not hasattr(model, "dropout")

    def test_an_exception_changes_nothing(self) -> None:
        model = Net(nnx.Rngs(0))
        before = pickle.dumps(jax.tree.map(np.asarray, nnx.state(model, nnx.Param)))

        @nnx.remat
        def f(m: Any) -> Any:
            m.linear.bias += 1
            m.extra = 1
            raise RuntimeError("half-way")

        for call in (f, nnx.grad(lambda m: f(m))):
            with pytest.raises(RuntimeError, match="half-way"):
                call(model)
        assert not hasattr(model, "extra")
        after = pickle.dumps(jax.tree.map(np.asarray, nnx.state(model, nnx.Param)))
        assert after == before

    def test_what_it_does_not_visibly_see_is_read_all_the_same(self) -> None:
        class Trainer:
            def __init__(self) -> None:
                self.models = {"a": [nnx.Linear(3, 3, rngs=nnx.Rngs(0))]}

        registry = types.SimpleNamespace(trainer=Trainer())
        f = nnx.remat(lambda x: registry.trainer.models["a"][0](x).sum())
        kernel = registry.trainer.models["a"][0].kernel.value
        grad = jax.grad(f)(jnp.ones(3))
        np.testing.assert_allclose(grad, kernel.sum(1), rtol=1e-6)

    def test_equal_layers_share_one_trace(self) -> None:
        traces = []

        @nnx.remat
        def call(layer: Any, x: Any) -> Any:
            traces.append(1)
            return layer(x)

        @nnx.jit
        def step(layers: Any, x: Any) -> Any:
            def loss(layers: Any) -> Any:
                y = x
                for layer in layers:
                    y = call(layer, y)
                return y.sum()

            return nnx.grad(loss)(layers)

        layers = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(n)) for n in range(6)])
        grads = step(layers, inputs())
        assert len(traces) == 1
        expected = nnx.grad(lambda layers: _chained(layers, inputs()).sum())(layers)
        assert_same(grads, expected)

    def test_under_plain_jax(self) -> None:
        model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        f = nnx.remat(lambda x: jnp.sin(model(x)).sum())
        expected = jax.grad(lambda x: jnp.sin(model(x)).sum())(inputs())
        for grad in (jax.grad(f), jax.jit(jax.grad(f))):
            np.testing.assert_allclose(grad(inputs()), expected, rtol=1e-5)
        each = jax.vmap(jax.grad(f))(inputs())
        np.testing.assert_allclose(each, expected, rtol=1e-5)


# Results that hold new Variables, as gradients do


def energy(model: Any) -> Any:
    return (model.kernel**3).sum() + (model.bias**2).sum()


@pytest.mark.parametrize("wrap", [lambda f: f, nnx.jit], ids=["top", "jit"])
def test_hessian_vector_products_of_a_model(wrap: Any):
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0), bias_init=nnx.initializers.ones)
    direction = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))

    def forward(model: Any) -> Any:
        return nnx.jvp(nnx.grad(energy), (model,), (direction,))

    def backward(model: Any) -> Any:
        grads, pull_back = nnx.vjp(nnx.grad(energy), model)
        return grads, pull_back(direction)[0]

    for product in (forward, backward):
        grads, curvature = wrap(product)(model)
        assert type(grads.bias) is type(curvature.bias) is nnx.Param
        np.testing.assert_allclose(grads.bias.value, [2.0, 2.0, 2.0])
        np.testing.assert_allclose(curvature.bias.value, [2.0, 2.0, 2.0])
        np.testing.assert_allclose(curvature.kernel, 6 * model.kernel, rtol=1e-6)


def test_a_variable_of_the_model_comes_out_as_its_value():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    value, _ = nnx.jvp(lambda model: model.bias, (model,), ({"bias": jnp.ones(3)},))
    assert isinstance(value, jax.Array)
