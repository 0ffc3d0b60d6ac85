"""Sequential: the order, how results become arguments, keywords, errors."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

X = jnp.ones((3, 4))


class Scale(nnx.Module):
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x, *, power=1):
        return x * self.factor**power


class Anything(nnx.Module):
    def __call__(self, x, **options):
        return x, options


def test_layers_are_called_in_order():
    rngs = nnx.Rngs(0)
    first, second = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)
    model = nnx.Sequential(first, nnx.relu, second)
    np.testing.assert_array_equal(model(X), second(nnx.relu(first(X))))
    assert list(nnx.state(model)["layers"]) == [0, 2]


def test_same_as_flax(oracle):
    def build(nnx):
        rngs = nnx.Rngs(0)
        return nnx.Sequential(
            nnx.Linear(4, 5, rngs=rngs),
            nnx.BatchNorm(5, rngs=rngs),
            nnx.relu,
            nnx.Dropout(0.5, rngs=rngs),
            nnx.Linear(5, 2, rngs=rngs),
        )

    flax_nnx = oracle("flax.nnx")
    ours, theirs = build(nnx), build(flax_nnx)
    for options in ({}, {"rngs": True}):
        given = [{k: f.Rngs(5) for k in options} for f in (nnx, flax_nnx)]
        y, expected = ours(X, **given[0]), theirs(X, **given[1])
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(ours))]
    assert paths == [p for p, _ in flax_nnx.to_flat_state(flax_nnx.state(theirs))]


def test_d31_results_become_arguments():
    model = nnx.Sequential(
        lambda x: (x, 2),
        lambda x, y: {"a": x, "b": y},
        lambda *, a, b: a * b,
        lambda x: [x, x],  # a list is one argument
        sum,
    )
    assert model(3) == 12


def test_d31_empty():
    assert nnx.Sequential()(X) is X
    assert nnx.Sequential()(1, 2) == (1, 2)
    assert nnx.Sequential()(X, rngs=nnx.Rngs(0)) is X


def test_a_tuple_given_is_one_argument():
    assert nnx.Sequential(len)((1, 2, 3)) == 3
    assert nnx.Sequential(lambda a, b: a - b)(5, 3) == 2
    assert nnx.Sequential(lambda a, b: a - b)(5, b=3) == 2


def test_d31_what_is_not_callable():
    wanted = r"^Sequential: layers\[1\] is not callable, a int.*`__call__`"
    with pytest.raises(TypeError, match=wanted):
        nnx.Sequential(nnx.relu, 3)
    calls = []
    model = nnx.Sequential(calls.append, nnx.relu)
    model.layers[1] = 3
    with pytest.raises(TypeError, match=wanted):
        model(X)
    assert not calls


def test_layers_may_be_changed():
    model = nnx.Sequential(Scale(2))
    model.layers.append(Scale(3))
    assert model(1) == 6
    model.layers = [Scale(5)]
    assert type(model.layers) is nnx.List and model(1) == 5
    del model.layers[0]
    assert model(1) == 1


def test_google_flax_3017_keywords_reach_the_layers_that_take_them():
    model = nnx.Sequential(Scale(2), nnx.Sequential(lambda x: x, Scale(3)), nnx.relu)
    assert model(1) == 6
    assert model(1, power=2) == 36
    assert nnx.Sequential(Scale(2), nnx.jit(Scale(3).__call__))(1, power=2) == 36


def test_modes_reach_dropout_and_batchnorm():
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(4, rngs=rngs)
    model = nnx.Sequential(norm, nnx.Sequential(nnx.Dropout(0.5, rngs=rngs)))
    model(X, deterministic=True, use_running_average=True)
    assert (norm.mean.value == 0).all()
    y = model(X, deterministic=True)
    assert (norm.mean.value != 0).all() and y.shape == X.shape


def test_what_a_layer_returns_wins_over_keywords():
    assert nnx.Sequential(lambda x, a: x + a, lambda a: a)(1, a=2) == 3
    assert nnx.Sequential(lambda x, m: (x, m), lambda x, m: (x, m))(1, m=2) == (1, 2)
    model = nnx.Sequential(lambda x: {"x": x, "m": 3}, lambda x, m: (x, m))
    assert model(1, m=2) == (1, 3)
    rngs = nnx.Rngs(0)
    linears = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs))
    np.testing.assert_array_equal(linears(inputs=X), linears(X))


@pytest.mark.parametrize(
    "layers", [[], [nnx.relu], [Scale(2), nnx.Sequential(nnx.relu)], [np.tanh, jnp.add]]
)
def test_a_keyword_that_no_layer_takes(layers):
    with pytest.raises(TypeError, match=r"^Sequential: no layer .*'powr'.*, \*, powr"):
        nnx.Sequential(*layers)(X, powr=2)


def test_nothing_is_called_before_a_keyword_is_refused():
    calls = []
    with pytest.raises(TypeError, match="no layer takes"):
        nnx.Sequential(calls.append)(1, powr=2)
    assert not calls


def test_a_clash_with_arguments_of_the_call():
    with pytest.raises(TypeError, match="multiple values for argument 'x'"):
        nnx.Sequential(Scale(2))(1, x=2)


def test_rngs_go_to_those_that_declare_them():
    seen = []

    def declares(x, rngs):
        seen.append(rngs)
        return x

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.relu, declares, nnx.Sequential(declares), Anything())
    assert model(X, rngs=rngs)[1] == {}
    assert seen == [rngs, rngs]
    assert nnx.Sequential(nnx.relu)(X, rngs=rngs).shape == X.shape
    assert nnx.Sequential(Anything())(1, power=2, rngs=rngs) == (1, {"power": 2})


def test_signatures_keep_no_function_alive():
    class Big:
        pass

    big = Big()
    model = nnx.Sequential(lambda x, k=0, big=big: x + k)
    assert model(1, k=2) == 3
    gone = weakref.ref(big)
    del model, big
    gc.collect()
    assert gone() is None


def test_a_callable_without_weak_references_or_hash():
    class Slots:
        __slots__ = ()
        __hash__ = None

        def __call__(self, x, k=0):
            return x + k

    assert nnx.Sequential(Slots())(1, k=2) == 3


def test_jit_and_grad():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs))
    twin = nnx.clone(model)
    call = nnx.jit(lambda model, x: model(x, use_running_average=False))
    np.testing.assert_allclose(call(model, X), twin(X), rtol=1e-5, atol=1e-6)
    grads = nnx.grad(lambda model: model(X).sum())(model)
    assert jax.tree.structure(grads) == jax.tree.structure(nnx.state(model, nnx.Param))
