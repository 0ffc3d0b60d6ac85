"""What newcomers tried first, and the answers that they get."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import treescope

import nnxlite as nnx


def linear(*sizes, **options):
    return nnx.Linear(*(sizes or (4, 8)), rngs=nnx.Rngs(0), **options)


def ensemble():
    def make(rngs):
        return nnx.Linear(4, 8, rngs=rngs)

    return nnx.vmap(make, in_axes=None, axis_size=3, split_rngs=True)(nnx.Rngs(0))


def swapped():
    model = linear()
    nnx.Optimizer(optax.sgd(0.1), model)


def loss_for_gradients():
    model = linear()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1))
    optimizer.update(nnx.value_and_grad(lambda m: m(jnp.ones(4)).sum())(model)[0])


def exchanged_head():
    model = nnx.Dict(a=linear(), b=linear(8, 3))
    optimizer = nnx.Optimizer(model, optax.adam(0.1))
    model["b"] = linear(8, 5)

    def loss(m):
        return m["b"](m["a"](jnp.ones(4))).sum()

    optimizer.update(nnx.grad(loss)(model))


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda: linear()(jnp.ones((2, 3))), ValueError, r"in_features=3\."),
        (lambda: linear()(jnp.ones((2, 8))), ValueError, r"in_features=8\.(?! If)"),
        (lambda: ensemble()(jnp.ones((2, 4))), ValueError, "call it under nnx.vmap"),
        (lambda: nnx.save(linear(), "x"), TypeError, "file comes first, nnx.save"),
        (lambda: nnx.load(linear(), like=1), TypeError, "file comes first, nnx.load"),
        (lambda: nnx.freeze(linear(), "a"), ValueError, r"nnx.PathContains\('a'\)"),
        (lambda: nnx.freeze(linear(), nnx.Linear), ValueError, "filters see Variables"),
        (lambda: nnx.Dict(a={linear()}), TypeError, "a set would hide its Linear from"),
        (lambda: nnx.Dict(a=[deque([linear()])]), TypeError, "deque would hide its Li"),
        (swapped, TypeError, r"the model comes first: nnx.Optimizer\(model, tx\)"),
        (loss_for_gradients, ValueError, "is that the loss?"),
        (exchanged_head, ValueError, r"'b.bias' had the shape \(3,\).*has \(5,\)"),
        (
            lambda: linear(kernel_init=nnx.initializers.lecun_normal),
            TypeError,
            r"such as kernel_init=nnx.initializers.lecun_normal\(\)",
        ),
        (
            lambda: nnx.update(linear(), linear()),
            ValueError,
            r"gets a model: pass its State, nnx.state\(other\)",
        ),
    ],
)
def test_errors_say_what_to_do(act, error, text):
    with pytest.raises(error, match=text):
        act()


def test_train_and_eval_return_the_module():
    model = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    assert model.eval() is model and model.deterministic
    assert model.train() is model and not model.deterministic


def test_one_curve_needs_no_name():
    (axis,) = nnx.plot.history([jnp.array(2.0), 1.0, 0.5]).axes
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), [2, 1, 0.5])


def test_keys_that_are_no_names_are_shown():
    assert repr(nnx.Dict({"a": 1})) == "Dict(a=1)"
    assert repr(nnx.Dict({(0, 1): 2, 3: 4})) == "Dict((0, 1): 2, 3: 4)"
    assert repr(nnx.List([nnx.Param(1.0)])) == "List(Param(value=1.0))"


def test_training_goes_on_from_one_file(tmp_path):
    model = linear()
    optimizer = nnx.Optimizer(model, optax.adam(0.1))

    def step(model, optimizer):
        grads = nnx.grad(lambda m: (m(jnp.ones(4)) ** 2).sum())(model)
        optimizer.update(grads)

    step(model, optimizer)
    file = tmp_path / "both.nnx"
    nnx.save(file, [model, optimizer])
    like = linear()
    again = nnx.load(file, like=[like, nnx.Optimizer(like, optax.adam(0.1))])
    assert again[1].model is again[0]
    for pair in ((model, optimizer), again):
        step(*pair)
    assert not nnx.diff(model, again[0])
    assert int(again[1].step[...]) == 2


def test_autovisualize_leaves_other_pictures_alone(monkeypatch):
    from types import SimpleNamespace

    from nnxlite.display import trees

    kinds = {}
    formatter = SimpleNamespace(for_type=kinds.__setitem__)
    shell = SimpleNamespace(
        kernel=1, display_formatter=SimpleNamespace(formatters={"text/html": formatter})
    )
    module = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(trees.sys.modules, "IPython", module)
    nnx.autovisualize()
    assert nnx.Pytree in kinds and jax.Array in kinds
    assert not any(issubclass(x, (str, dict, type(None))) for x in kinds)
    html = kinds[nnx.Pytree](linear())
    assert html.strip().startswith("<") and len(html) > 1000
    assert treescope.render_to_text(linear()).startswith("Linear(")
