"""`nnx.grad`, `nnx.value_and_grad`, `nnx.DiffState`: items D76-D83."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

from ..properties.comparison import Correspondence, Snapshot
from ..properties.programs import reachable

MODEL: Any = None


class Inner(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.full(2, 3.0), note="inner")


class Net(nnx.Module):
    """Params on two levels, a statistic, a counter, a bare array."""

    def __init__(self):
        self.w = nnx.Param(jnp.arange(1.0, 3.0), note="w")
        self.inner = Inner()
        self.parts = [nnx.Param(jnp.ones(2)), "static"]
        self.stat = nnx.BatchStat(jnp.ones(2))
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))
        self.array = jnp.full(2, 2.0)
        self.size = 3


def loss(m: Any) -> Any:
    """Has the gradients 2w, 3, 1 for w, inner.w, parts[0]."""
    return (m.w[...] ** 2 + 3 * m.inner.w + m.parts[0]).sum()


def snapshot(*roots: Any) -> Snapshot:
    return Snapshot(reachable(roots))


def pure(tree: Any) -> Any:
    return nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree


def assert_equal(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


WANTED = {
    "inner": {"w": np.full(2, 3.0)},
    "parts": {0: np.ones(2)},
    "w": np.array([2.0, 4.0]),
}
EITHER = pytest.mark.parametrize("wrap", [lambda f: f, nnx.jit], ids=["eager", "jit"])


# D76, D77: what comes out


@EITHER
def test_d76_the_gradient_of_a_module_is_a_state_of_its_params(wrap: Any):
    model = Net()
    before = snapshot(model)
    grads = wrap(nnx.grad(loss))(model)
    before.check()
    assert type(grads) is nnx.State
    assert nnx.to_flat_state(grads).paths == (("inner", "w"), ("parts", 0), ("w",))
    assert_equal(pure(grads), WANTED)
    assert type(grads["w"]) is nnx.Param and grads["w"].note == "w"
    assert grads["w"] is not model.w
    assert pure(nnx.state(grads)).keys() == WANTED.keys()


@EITHER
@pytest.mark.parametrize(
    ("make", "unwrap"),
    [
        (lambda v: v, lambda g: g),
        (lambda v: [v, "s"], lambda g: g[0]),
        (lambda v: {"a": (v,)}, lambda g: g["a"][0]),
    ],
    ids=["bare", "list", "dict"],
)
def test_d76_a_variable_gives_a_variable(make: Any, unwrap: Any, wrap: Any):
    def f(x: Any) -> Any:
        return (unwrap(x)[...] ** 3).sum()

    grad = unwrap(wrap(nnx.grad(f))(make(nnx.Param(jnp.full(2, 2.0), note="n"))))
    assert type(grad) is nnx.Param and grad.note == "n"
    np.testing.assert_array_equal(grad, [12.0, 12.0])


@EITHER
def test_d76_arrays_give_arrays_and_containers_containers(wrap: Any):
    def f(x: Any) -> Any:
        return (x["a"] * x["b"][0]).sum() + x["m"].w.sum()

    argument = {"a": jnp.full(2, 2.0), "b": (jnp.full(2, 5.0),), "m": Inner()}
    grads = wrap(nnx.grad(f))(argument)
    assert isinstance(grads["a"], jax.Array) and type(grads["b"]) is tuple
    np.testing.assert_array_equal(grads["a"], [5.0, 5.0])
    np.testing.assert_array_equal(grads["b"][0], [2.0, 2.0])
    assert_equal(pure(grads["m"]), {"w": np.ones(2)})


@pytest.mark.parametrize("x", [3.0, jnp.float32(3), np.float32(3), jnp.bfloat16(3)])
def test_d76_scalars(x: Any):
    grad = nnx.grad(lambda x: x**2)(x)
    assert float(grad) == 6.0
    assert grad.dtype == jnp.asarray(x).dtype


def test_d76_equals_jax_grad_of_the_pure_function():
    model = Net()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    wanted = jax.grad(lambda p: loss(nnx.merge(graphdef, p, rest)))(params)
    grads = nnx.grad(loss)(model)
    assert jax.tree.structure(grads) == jax.tree.structure(wanted)
    assert_equal(pure(grads), pure(wanted))


FILTERS = {
    "Param": (nnx.Param, ["inner.w", "parts.0", "w"]),
    "BatchStat": (nnx.BatchStat, ["stat"]),
    "path": (nnx.PathContains("inner"), ["inner.w"]),
    "callable": (lambda path, value: path == ("parts", 0), ["parts.0"]),
    "All": (nnx.All(nnx.Param, nnx.Not(nnx.PathContains("inner"))), ["parts.0", "w"]),
    "list": ([nnx.BatchStat, nnx.PathContains("inner")], ["inner.w", "stat"]),
    "array": (nnx.PathContains("array"), ["array"]),
    "Nothing": (None, []),
}


@EITHER
@pytest.mark.parametrize("name", FILTERS)
def test_d77_a_diff_state_selects(name: str, wrap: Any):
    def f(m: Any) -> Any:
        return loss(m) + (m.stat * 5).sum() + (m.array * 7).sum()

    every = WANTED | {"stat": np.full(2, 5.0), "array": np.full(2, 7.0)}
    literal, paths = FILTERS[name]
    model = Net()
    before = snapshot(model)
    grads = wrap(nnx.grad(f, argnums=nnx.DiffState(0, literal)))(model)
    before.check()
    flat = nnx.to_flat_state(grads)
    assert [".".join(map(str, path)) for path in flat.paths] == paths
    wanted = nnx.to_flat_state(nnx.State(every))
    for path, leaf in flat:
        np.testing.assert_array_equal(leaf, dict(wanted)[path])


def test_d77_other_variables_get_no_gradient():
    grads = nnx.grad(lambda m: (m.stat * m.w).sum())(Net())
    assert "stat" not in grads and "array" not in grads and "count" not in grads
    np.testing.assert_array_equal(grads["w"], [1.0, 1.0])
    np.testing.assert_array_equal(grads["inner"]["w"], [0.0, 0.0])


def test_d77_a_subclass_of_param_is_a_param():
    class LoRAParam(nnx.Param):
        pass

    model = Net()
    model.lora = LoRAParam(jnp.ones(2))
    grads = nnx.grad(lambda m: (m.lora * m.w).sum())(model)
    assert type(grads["lora"]) is LoRAParam
    only = nnx.grad(lambda m: (m.lora * m.w).sum(), argnums=nnx.DiffState(0, LoRAParam))
    assert list(only(model)) == ["lora"]


def test_d77_gradients_are_with_respect_to_the_raw_value():
    class Squared(nnx.Param):
        def get_value(self, **kwargs: Any) -> Any:
            return self.raw_value**2

    v = Squared(jnp.array(3.0))
    grad = nnx.grad(lambda v: v.value * 5)(v)
    assert type(grad) is Squared and float(grad.raw_value) == 30.0


def test_d77_an_array_in_a_plain_tuple():
    class Inner(nnx.Module):
        def __init__(self):
            self.w = jnp.full(2, 3.0)

    model = nnx.Module()
    model.parts = (jnp.array([1.0, 2.0]), "s", {"inner": Inner()}, jnp.arange(2))
    before = snapshot(model)

    def energy(model: Any) -> Any:
        first, _, named, steps = model.parts
        assert steps.dtype == jnp.int32
        return (first**2).sum() + (first * named["inner"].w).sum()

    floats = nnx.DiffState(0, lambda path, x: path != ("parts", 3))
    grads = nnx.grad(energy, argnums=floats)(model)
    pulled = nnx.vjp(energy, model)[1](1.0)[0]

    for gradient in (grads, pulled):
        np.testing.assert_array_equal(gradient["parts"][0], [5.0, 7.0])
        inner = gradient["parts"][2]["inner"]["w"]
        np.testing.assert_array_equal(inner, [1.0, 2.0])
        assert list(gradient["parts"]) == [0, 2]
    before.check()


def test_d77_a_filter_sees_the_path_below_the_argument():
    models = {"left": nnx.Param(jnp.array(2.0)), "right": [nnx.Param(jnp.array(3.0))]}

    def product(models: Any) -> Any:
        return models["left"] * models["right"][0]

    only = nnx.DiffState(0, lambda path, x: path == ("right", 0))
    grads = nnx.grad(product, argnums=only)(models)
    assert float(grads["right"][0]) == 2.0 and len(grads["left"]) == 0

    state = nnx.State(models)
    grads = nnx.grad(lambda s: s.left * s.right[0], argnums=only)(state)
    assert float(grads["right"][0]) == 2.0 and len(grads["left"]) == 0


def test_d77_a_constant_loss_has_zero_gradients():
    grads = nnx.grad(lambda m: 1.0)(Net())
    np.testing.assert_array_equal(grads["w"], [0.0, 0.0])


def test_diff_state_is_a_value():
    assert nnx.DiffState(0, nnx.Param) == nnx.DiffState(argnum=0, filter=nnx.Param)
    assert hash(nnx.DiffState(1, "tag")) == hash(nnx.DiffState(1, "tag"))
    assert nnx.DiffState(0, nnx.Param) != nnx.DiffState(1, nnx.Param)


# D78: argnums, has_aux


@EITHER
def test_d78_a_tuple_of_argnums_gives_a_tuple(wrap: Any):
    def f(a: Any, x: Any, b: Any) -> Any:
        return (a.w * x * b.w).sum()

    one, two = Inner(), Inner()
    two.w[...] = 5.0
    grads = wrap(nnx.grad(f, argnums=(0, 2)))(one, 2.0, two)
    assert type(grads) is tuple
    assert_equal([pure(g) for g in grads], [{"w": np.full(2, v)} for v in (10.0, 6.0)])
    (only,) = wrap(nnx.grad(f, argnums=(2,)))(one, 2.0, two)
    assert_equal(pure(only), {"w": np.full(2, 6.0)})
    both = wrap(nnx.grad(f, argnums=[1, nnx.DiffState(0, nnx.Param)]))(one, 2.0, two)
    assert float(both[0]) == 30.0 and list(both[1]) == ["w"]


def test_d78_negative_argnums_count_from_the_end():
    grad = nnx.grad(lambda x, m: (m.w * x).sum(), argnums=-1)(2.0, Inner())
    assert_equal(pure(grad), {"w": np.full(2, 2.0)})


@EITHER
@pytest.mark.parametrize("has_aux", [False, True])
def test_d78_value_and_aux(has_aux: bool, wrap: Any):
    def f(m: Any) -> Any:
        value = loss(m)
        return (
            (value, {"m": m, "v": m.w, "x": value * 2, "s": "text"})
            if has_aux
            else value
        )

    model = Net()
    expected = float(loss(model))
    grads = wrap(nnx.grad(f, has_aux=has_aux))(model)
    value = wrap(nnx.value_and_grad(f, has_aux=has_aux))(model)
    if has_aux:
        (grads, first), ((loss_value, second), more) = grads, value
        for aux in (first, second):
            assert aux["m"] is model and aux["v"] is model.w
            assert float(aux["x"]) == 2 * expected and aux["s"] == "text"
    else:
        loss_value, more = value
    assert float(loss_value) == expected
    assert_equal(pure(grads), WANTED)
    assert_equal(pure(more), WANTED)


def test_d78_aux_may_hold_new_objects():
    def f(m: Any) -> Any:
        new = Inner()
        new.w[...] = m.w * 2
        new.shared = m.inner
        return loss(m), [new, new.w]

    model = Net()
    _, (new, variable) = nnx.grad(f, has_aux=True)(model)
    assert new.w is variable and new.shared is model.inner
    np.testing.assert_array_equal(new.w, [2.0, 4.0])
    new.w[...] = 1.0  # no tracer, usable


@pytest.mark.parametrize(
    "result",
    [1.0, (1.0,), (1.0, 2.0, 3.0), [1.0, 2.0]],
    ids=["number", "1", "3", "list"],
)
def test_d78_has_aux_needs_a_pair(result: Any):
    model = Net()
    before = snapshot(model)
    with pytest.raises(
        TypeError,
        match=r"'<lambda>' with has_aux=True needs a function that returns \(value, ",
    ):
        nnx.grad(lambda m: result, has_aux=True)(model)
    before.check()


@pytest.mark.parametrize("argnums", [(0, 0), (0, nnx.DiffState(0, nnx.BatchStat))])
def test_d78_repeated_argnums_are_refused(argnums: Any):
    with pytest.raises(
        ValueError,
        match=r"argnums names an argument twice: \[0, 0\]; combine the filter",
    ):
        nnx.grad(loss, argnums=argnums)


def test_d78_negative_argnums_that_repeat_are_refused():
    model = Inner()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"argnums names an argument twice"):
        nnx.grad(lambda x, m: (m.w * x).sum(), argnums=(1, -1))(2.0, model)
    before.check()


@pytest.mark.parametrize("argnums", [1, 5, -3, (0, 2)])
def test_d78_an_argnum_out_of_range(argnums: Any):
    model = Net()
    before = snapshot(model)
    with pytest.raises(
        TypeError, match=r"nnx\.grad of 'loss' differentiates argument .* 1 positional"
    ):
        nnx.grad(loss, argnums=argnums)(model)
    before.check()


def test_d78_reduce_axes_is_refused():
    with pytest.raises(ValueError, match=r"reduce_axes is not supported.*leave it out"):
        nnx.grad(loss, reduce_axes=("i",))


@EITHER
def test_d78_keyword_arguments(wrap: Any):
    def f(m: Any, x: Any, *, scale: Any = 1.0) -> Any:
        return (m.w * x * scale).sum()

    wanted = {"w": np.full(2, 6.0)}
    grad = wrap(nnx.grad(f))
    assert_equal(pure(grad(Inner(), 2.0, scale=3.0)), wanted)
    assert_equal(pure(grad(Inner(), x=2.0, scale=3.0)), wanted)
    assert_equal(pure(grad(m=Inner(), x=2.0, scale=3.0)), wanted)
    assert_equal(pure(grad(scale=3.0, x=2.0, m=Inner())), wanted)
    by_x = wrap(nnx.grad(f, argnums=1))(Inner(), x=2.0)
    assert float(by_x) == 6.0


@EITHER
def test_d78_objects_in_keyword_arguments_are_updated(wrap: Any):
    def f(x: Any, *, m: Any) -> Any:
        m.count += 1
        m.new = nnx.Param(x * 1.0)
        return (m.w * x).sum()

    model = Net()
    grad = wrap(nnx.grad(f))(2.0, m=model)
    assert float(grad) == 3.0 and int(model.count[...]) == 1
    assert float(model.new[...]) == 2.0


def test_d78_keyword_only_arguments_cannot_be_differentiated():
    model = Net()
    before = snapshot(model)
    with pytest.raises(
        TypeError, match=r"differentiates argument 0, but the call has 0 positional"
    ):
        nnx.grad(lambda *, m: loss(m))(m=model)
    before.check()


# D79, D80: side effects


def write(m: Any) -> None:
    m.count += 1
    m.stat[...] = m.stat * 0.5 + m.w * 2
    m.array = m.array + m.w


def add(m: Any) -> None:
    m.new = nnx.Intermediate(m.w * 2)
    m.bare = m.w * 3
    m.flag = "set"
    m.module = Inner()
    m.size += 1


def delete(m: Any) -> None:
    if hasattr(m, "stat"):
        del m.stat
    m.parts.append(nnx.BatchStat(m.w * 2))


def write_params(m: Any) -> None:
    m.w[...] = m.w * 2
    m.parts[0].value = m.parts[0] + 1


def rebind(m: Any) -> None:
    m.w, m.parts[0] = m.parts[0], m.w
    m.me = m


def annotate(m: Any) -> None:
    m.stat.set_metadata(note="seen")
    m.w.set_metadata(seen=True)


EFFECTS = {f.__name__: f for f in (write, add, delete, write_params, rebind, annotate)}


def by_argument(f: Any, model: Any) -> Any:
    return functools.partial(nnx.grad(f), model)


def by_keyword(f: Any, model: Any) -> Any:
    grad = nnx.grad(lambda x, *, m: f(m) * x)
    return functools.partial(grad, 1.0, m=model)


def by_closure(f: Any, model: Any) -> Any:
    return functools.partial(nnx.grad(lambda x: f(model) * x), 1.0)


def by_global(f: Any, model: Any) -> Any:
    global MODEL
    MODEL = model
    return functools.partial(nnx.grad(lambda x: f(MODEL) * x), 1.0)


def by_registry(f: Any, model: Any) -> Any:
    """Outside jit everything around may be reached."""
    registry = {"deep": [type("Plain", (), {"model": model})]}
    return functools.partial(nnx.grad(lambda x: f(registry["deep"][0].model) * x), 1.0)


def by_other_argument(f: Any, model: Any) -> Any:
    return functools.partial(nnx.grad(lambda x, m: f(m) * x), 1.0, model)


WAYS = {
    f.__name__: f
    for f in (
        by_argument,
        by_keyword,
        by_closure,
        by_global,
        by_registry,
        by_other_argument,
    )
}


@EITHER
@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("way", sorted(set(WAYS) - {"by_registry"}))
def test_d79_side_effects_are_applied(way: str, effect: str, wrap: Any):
    check_effects(way, effect, wrap)


@pytest.mark.parametrize("effect", EFFECTS)
def test_d79_side_effects_reach_what_is_only_found_at_run_time(effect: str):
    check_effects("by_registry", effect, lambda f: f)


def check_effects(way: str, effect: str, wrap: Any) -> None:
    """The graph afterwards is that of a plain call of the loss."""

    def f(m: Any) -> Any:
        value = loss(m)
        EFFECTS[effect](m)
        return value

    plain_model, model = Net(), Net()
    known = Correspondence(reachable([plain_model]), reachable([model]))
    step = wrap(WAYS[way](f, model))
    for _ in range(2):
        f(plain_model)
        step()
        known.check(None, None)


@EITHER
@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("way", sorted(set(WAYS) - {"by_registry"}))
def test_d79_an_exception_changes_nothing(way: str, effect: str, wrap: Any):
    def f(m: Any) -> Any:
        EFFECTS[effect](m)
        raise RuntimeError("on purpose")

    model = Net()
    before = snapshot(model)
    step = wrap(WAYS[way](f, model))
    with pytest.raises(RuntimeError, match="on purpose"):
        step()
    before.check()
    assert_equal(pure(nnx.grad(loss)(model)), WANTED)


def test_d79_the_gradient_sees_what_was_written():
    def f(m: Any) -> Any:
        m.w[...] = m.w * 3
        return (m.w[...] ** 2).sum()

    model = Net()
    grads = nnx.grad(f)(model)
    np.testing.assert_array_equal(grads["w"], [18.0, 36.0])
    np.testing.assert_array_equal(model.w, [3.0, 6.0])


def test_d79_a_captured_variable_that_is_written_carries_the_gradient():
    """What the loss writes and reads again is part of the differentiated path."""
    buffer = nnx.Variable(jnp.zeros(2))

    def f(m: Any) -> Any:
        buffer.value = m.w * 5
        return buffer.value.sum()

    model = Net()
    grads = nnx.grad(f)(model)
    np.testing.assert_array_equal(grads["w"], [5.0, 5.0])
    np.testing.assert_array_equal(buffer, [5.0, 10.0])
    assert not isinstance(buffer.value, jax.core.Tracer)


@EITHER
def test_d80_batch_norm_statistics_are_updated_exactly_once(wrap: Any):
    model, twin = (nnx.BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2))
    x = jnp.arange(12.0).reshape(4, 3)

    def f(m: Any) -> Any:
        return (m(x) ** 2).sum()

    step = wrap(nnx.value_and_grad(f))
    for _ in range(3):
        f(twin)
        step(model)
    np.testing.assert_allclose(model.mean, twin.mean, rtol=1e-6)
    np.testing.assert_allclose(model.var, twin.var, rtol=1e-6)
    assert not np.allclose(model.mean, 0)


@EITHER
def test_d80_a_random_stream_advances_exactly_once(wrap: Any):
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    step = wrap(nnx.grad(lambda w, d: (d(w * jnp.ones(8))).sum()))
    masks = [float(step(1.0, dropout)) for _ in range(3)]
    assert int(dropout.rngs.count[...]) == 3
    twin = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    assert masks == [float(twin(jnp.ones(8)).sum()) for _ in range(3)]


# D81, D82: aliasing


@EITHER
def test_d81_a_tied_variable_has_one_entry_with_the_sum(wrap: Any):
    model = Net()
    model.inner.w = model.w
    model.parts[0] = model.w
    grads = wrap(nnx.grad(loss))(model)
    assert_equal(pure(grads), {"inner": {"w": np.array([6.0, 8.0])}})


@EITHER
@pytest.mark.parametrize(
    "make", [lambda v: (v, v), lambda v: [v, [v]], lambda v: {"a": v, "b": v}]
)
def test_d81_a_variable_twice_in_a_container(make: Any, wrap: Any):
    """The first place has the whole gradient; a second one holds none."""
    v = nnx.Param(jnp.array(2.0))
    grads = wrap(
        nnx.grad(
            lambda x: sum(
                y[...] ** 2
                for y in jax.tree.leaves(
                    x, is_leaf=lambda y: isinstance(y, nnx.Variable)
                )
            )
        )
    )(make(v))
    first, second = jax.tree.leaves(
        grads, is_leaf=lambda x: isinstance(x, (nnx.Variable, nnx.State))
    )
    assert float(first[...]) == 8.0
    assert isinstance(second, nnx.State) and len(second) == 0


@EITHER
def test_d81_one_object_as_two_differentiated_arguments(wrap: Any):
    """The full gradient stands in the first, as in Flax; the second is empty."""
    model = Inner()
    grads = wrap(nnx.grad(lambda a, b: (a.w * b.w).sum(), argnums=(0, 1)))(model, model)
    assert_equal(pure(grads[0]), {"w": np.full(2, 6.0)})
    assert len(grads[1]) == 0


ALIASED: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "same Module": (lambda m: (m, m), r"args\[0\].*inner\.w", r"args\[1\].*inner\.w"),
    "a part": (lambda m: (m, m.inner), r"args\[0\].*inner\.w", r"args\[1\].*w"),
    "a Variable": (lambda m: (m, m.w), r"args\[0\].*w", r"args\[1\]"),
    "in a list": (lambda m: (m, [1, m.w]), r"args\[0\].*w", r"args\[1\].*\[1\]"),
    "in a dict": (
        lambda m: (m, {"k": m.parts}),
        r"args\[0\].*parts\[0\]",
        r"args\[1\].*k.*\[0\]",
    ),
    "keyword": (lambda m: (m, {"key": m}), r"args\[0\].*w", r"key"),
}


@EITHER
@pytest.mark.parametrize("name", ALIASED)
def test_d82_differentiated_and_not_is_an_error_with_both_paths(name: str, wrap: Any):
    make, first, second = ALIASED[name]
    model = Net()
    args = make(model)
    before = snapshot(model)
    with pytest.raises(
        ValueError,
        match=rf"Inconsistent aliasing detected: the Param at {first}.* is "
        rf"differentiated, but it is also at {second}.*, which is not\. Pass the "
        r"object once, or name both arguments in argnums",
    ):
        if name == "keyword":
            wrap(nnx.grad(lambda m, **kw: loss(m)))(args[0], **args[1])
        else:
            wrap(nnx.grad(lambda m, other: loss(m)))(*args)
    before.check()


def test_d82_equal_but_distinct_objects_are_no_aliases():
    grads = nnx.grad(lambda a, b: (a.w * b.w).sum())(Inner(), Inner())
    assert_equal(pure(grads), {"w": np.full(2, 3.0)})


def test_d82_sharing_of_what_is_not_differentiated_is_no_error():
    one, two = Net(), Net()
    two.stat = one.stat
    grads = nnx.grad(lambda a, b: loss(a) + (a.stat * b.stat).sum())(one, two)
    assert_equal(pure(grads), WANTED)


def test_d82_a_filter_may_take_the_aliased_variable_out():
    one, two = Net(), Inner()
    two.w = one.inner.w
    only = nnx.DiffState(0, nnx.All(nnx.Param, nnx.Not(nnx.PathContains("inner"))))
    grads = nnx.grad(lambda a, b: loss(a) + b.w.sum(), argnums=only)(one, two)
    assert "inner" not in grads


# D83: what cannot be differentiated


@EITHER
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.uint8])
def test_d83_integer_params_raise(dtype: Any, wrap: Any):
    model = Net()
    model.inner.table = nnx.Param(jnp.ones(2, dtype))
    before = snapshot(model)
    with pytest.raises(
        TypeError,
        match=rf"with respect to args\[0\]\.inner\.table: its dtype is "
        rf"{jnp.dtype(dtype)}, and gradients need a float\. Select other Variables "
        r"with nnx\.DiffState",
    ):
        wrap(nnx.grad(loss))(model)
    before.check()


def test_d83_random_keys_among_the_params_raise():
    model = Net()
    model.key = nnx.Param(jax.random.key(0))
    before = snapshot(model)
    with pytest.raises(
        TypeError, match=r"args\[0\]\.key: its dtype is key<fry>.*DiffState"
    ):
        nnx.grad(loss)(model)
    before.check()


def test_d83_a_param_that_holds_no_array_raises():
    model = Net()
    model.inner.name = nnx.Param("text")
    before = snapshot(model)
    with pytest.raises(TypeError, match=r"args\[0\]\.inner\.name: .*DiffState"):
        nnx.grad(loss)(model)
    before.check()


def test_d83_allow_int():
    model = Net()
    model.table = nnx.Param(jnp.ones(2, jnp.int32))
    grads = nnx.grad(loss, allow_int=True)(model)
    assert grads["table"].dtype == jax.dtypes.float0
    np.testing.assert_array_equal(grads["w"], [2.0, 4.0])


@EITHER
@pytest.mark.parametrize(
    "result",
    [lambda m: m.w[...], lambda m: m.count[...], lambda m: None, lambda m: (1.0, 2.0)],
    ids=["vector", "integer", "None", "tuple"],
)
def test_d83_the_loss_must_be_a_float_scalar(result: Any, wrap: Any):
    def f(m: Any) -> Any:
        m.stat[...] = 5.0
        return result(m)

    model = Net()
    before = snapshot(model)
    with pytest.raises(TypeError, match=r"[Gg]rad.*(scalar|real|float|requires)"):
        wrap(nnx.grad(f))(model)
    before.check()


@EITHER
def test_d83_a_loss_that_is_a_variable_is_its_value(wrap: Any):
    """Operators and jnp functions take a Variable as its value; so does grad."""
    value, grad = wrap(nnx.value_and_grad(lambda v: v))(nnx.Param(jnp.array(3.0)))
    assert float(value) == 3.0 and float(grad[...]) == 1.0


@EITHER
@pytest.mark.parametrize("make", [nnx.Module, nnx.List, lambda: nnx.BatchStat(1.0)])
def test_d83_nothing_to_differentiate_gives_an_empty_state(make: Any, wrap: Any):
    grads = wrap(nnx.grad(lambda m, x: x * 2.0))(make(), 1.0)
    assert type(grads) is nnx.State and len(grads) == 0


def test_d83_complex_needs_holomorphic():
    v = nnx.Param(jnp.array(1 + 1j))
    grad = nnx.grad(lambda v: v[...] ** 2, holomorphic=True)(v)
    assert complex(grad[...]) == 2 + 2j
    before = snapshot(v)
    with pytest.raises(TypeError, match="holomorphic"):
        nnx.grad(lambda v: v[...] ** 2)(v)
    before.check()


def test_not_a_callable():
    with pytest.raises(TypeError, match=r"nnx\.(grad|value_and_grad) needs a callable"):
        nnx.grad(3)


# Forms of the function


def test_bound_methods_modules_and_partials():
    class Layer(nnx.Module):
        def __init__(self):
            self.w, self.count = nnx.Param(jnp.full(2, 3.0)), nnx.Variable(0)

        def __call__(self, x: Any) -> Any:
            self.count += 1
            return (self.w * x).sum()

        def method(self, x: Any, y: Any) -> Any:
            return self(x) * y

    layer = Layer()
    np.testing.assert_array_equal(nnx.grad(layer)(jnp.ones(2)), [3.0, 3.0])
    by_method = nnx.grad(layer.method, argnums=1)(jnp.ones(2), 2.0)
    assert float(by_method) == 6.0
    partial = nnx.grad(functools.partial(Layer.method, layer, y=5.0))
    np.testing.assert_array_equal(partial(jnp.ones(2)), [15.0, 15.0])
    assert int(layer.count[...]) == 3
    assert layer.count.value == 3


@pytest.mark.parametrize("transform", [nnx.grad, nnx.value_and_grad])
def test_decorator_forms_and_metadata(transform: Any):
    @transform
    def plain(x: Any) -> Any:
        """Tells."""
        return x**2

    @transform(argnums=1, has_aux=True)
    def with_options(x: Any, y: Any) -> Any:
        return x * y, x

    result = plain(3.0)
    assert float(result[1] if transform is nnx.value_and_grad else result) == 6.0
    assert plain.__name__ == "plain" and plain.__doc__ == "Tells."
    assert list(inspect.signature(plain).parameters) == ["x"]
    result = with_options(3.0, 4.0)
    assert float(result[1] if transform is nnx.value_and_grad else result[0]) == 3.0


# Nesting


def test_nested_jit_of_grad_traces_once():
    traces = []

    @nnx.jit
    def step(m: Any) -> Any:
        traces.append(1)
        grads = nnx.grad(loss)(m)
        m.count += 1
        nnx.update(
            m, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(m, nnx.Param), grads)
        )
        return grads

    model = Net()
    for _ in range(3):
        step(model)
    assert len(traces) == 1 and int(model.count[...]) == 3
    np.testing.assert_allclose(model.w, jnp.arange(1.0, 3.0) * 0.8**3, rtol=1e-6)


def test_nested_grad_of_jit():
    inner = nnx.jit(lambda m: (write(m), loss(m))[1])
    model, twin = Net(), Net()
    grads = nnx.grad(inner)(model)
    write(twin)
    assert_equal(pure(grads), WANTED)
    known = Correspondence(reachable([twin]), reachable([model]))
    known.check(None, None)


def test_nested_grad_of_grad():
    model = Net()

    def slope(m: Any) -> Any:
        m.count += 1
        return nnx.grad(lambda m: (m.w[...] ** 3).sum())(m)["w"].value.sum()

    grads = nnx.grad(slope)(model)
    np.testing.assert_allclose(grads["w"], 6 * jnp.arange(1.0, 3.0), rtol=1e-6)
    assert int(model.count[...]) == 1


def test_inner_grad_over_an_argument_of_the_outer():
    """Reading what is differentiated around: mixed second derivative."""
    a, b = nnx.Param(jnp.array(2.0)), nnx.Param(jnp.array(3.0))

    def outer(a: Any) -> Any:
        return nnx.grad(lambda b: a[...] ** 2 * b[...] ** 2)(b)[...]

    assert float(nnx.grad(outer)(a)[...]) == 2 * 2.0 * 2 * 3.0


@pytest.mark.parametrize("eager_first", [False, True])
@pytest.mark.parametrize("transform", ["jit", "scan", "cond", "checkpoint"])
def test_functions_that_jax_caches_are_differentiated(
    transform: str, eager_first: bool
):
    """A cached trace of the function must not stand for the present Variables."""
    model = Inner()

    def f(x: Any) -> Any:
        return (x * model.w).sum()

    def body(carry: Any, x: Any) -> Any:
        return carry + f(x), None

    use = {
        "jit": jax.jit(f),
        "scan": lambda x: jax.lax.scan(body, 0.0, x[None])[0],
        "cond": lambda x: jax.lax.cond(x.sum() > 0, f, f, x),
        "checkpoint": jax.checkpoint(f),
    }[transform]
    x = jnp.full(2, 5.0)
    if eager_first:
        assert float(use(x)) == 30.0
    for _ in range(2):
        assert_equal(pure(nnx.grad(lambda m: use(x))(model)), {"w": np.full(2, 5.0)})
        assert_equal(
            pure(nnx.jit(nnx.grad(lambda m: use(x)))(model)), {"w": np.full(2, 5.0)}
        )


@pytest.mark.parametrize("transform", ["scan", "checkpoint", "vmap"])
def test_a_compiled_function_inside_an_eager_grad_traces_once(transform: str):
    traces = []

    @nnx.jit
    def forward(m: Any, x: Any) -> Any:
        traces.append(1)
        use = {
            "scan": lambda x: jax.lax.scan(lambda c, x: (c, x * m.w), 0, x)[1],
            "checkpoint": jax.checkpoint(lambda x: x * m.w),
            "vmap": jax.vmap(lambda x: x * m.w),
        }[transform]
        return use(x).sum()

    model, x = Inner(), jnp.ones((3, 2))
    for _ in range(4):
        assert_equal(
            pure(nnx.grad(lambda m: forward(m, x))(model)), {"w": np.full(2, 3.0)}
        )
    assert len(traces) == 1


def test_pure_helpers_beside_a_capturing_vmap_are_traced_once():
    traces = []

    @jax.jit
    def helper(x: Any) -> Any:
        traces.append(1)
        return x * 2

    model, x = Inner(), jnp.ones((3, 2))
    for _ in range(4):
        nnx.grad(lambda m: helper(jax.vmap(lambda x: x * m.w)(x)).sum())(model)
    assert len(traces) == 1


def test_nested_jax_grad_inside_nnx_grad_reads_the_model():
    model = Net()

    def f(m: Any) -> Any:
        return jax.grad(lambda x: (x * m.w * m.w).sum())(1.0)

    grads = nnx.grad(f)(model)
    np.testing.assert_array_equal(grads["w"], [2.0, 4.0])


def test_nnx_grad_inside_jax_jit():
    @jax.jit
    def step(state: Any) -> Any:
        model = nnx.merge(graphdef, state)
        return nnx.grad(loss)(model)

    graphdef, state = nnx.split(Net())
    assert_equal(pure(step(state)), WANTED)


def test_nnx_grad_inside_jax_jit_may_not_write_an_outer_model():
    model = Net()
    before = snapshot(model)

    @jax.jit
    def step(x: Any) -> Any:
        return nnx.grad(lambda x: (model.count.set_value(x), x * 2.0)[1])(x)

    with pytest.raises(
        nnx.TraceContextError, match=r"'Net\.count' cannot be changed here: .*nnx\.jit"
    ):
        step(1.0)
    before.check()


def test_a_tracer_of_grad_cannot_be_kept_in_an_outer_object_through_jax_grad():
    model = Net()
    before = snapshot(model)
    with pytest.raises(
        nnx.TraceContextError, match=r"'Net\.w' cannot be changed here: .*nnx\.grad"
    ):
        jax.grad(lambda x: (model.w.set_value(x * 2), x)[1])(1.0)
    before.check()


@pytest.mark.parametrize("steps", [3])
def test_training_by_hand_eager_and_jitted_agree(steps: int):
    def step(m: Any, x: Any) -> Any:
        value, grads = nnx.value_and_grad(lambda m: loss(m) * x)(m)
        for path, grad in nnx.to_flat_state(grads):
            variable = functools.reduce(lambda o, k: o[k], path, nnx.state(m))
            variable.value = variable - 0.1 * grad
        m.count += 1
        return value

    eager, jitted, compiled = Net(), Net(), nnx.jit(step)
    for x in range(steps):
        a, b = step(eager, float(x)), compiled(jitted, float(x))
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for left, right in zip(
        jax.tree.leaves(nnx.state(eager)),
        jax.tree.leaves(nnx.state(jitted)),
        strict=True,
    ):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_a_variable_as_argument_of_a_jitted_function_traces_it_once() -> None:
    traces = []

    @jax.jit
    def double(x: Any) -> Any:
        traces.append(1)
        return x * 2

    w = nnx.Param(jnp.ones(3))
    for _ in range(4):
        grads = nnx.grad(lambda w: double(w).sum())(w)
        np.testing.assert_array_equal(grads.value, 2 * jnp.ones(3))
    assert len(traces) == 1


@pytest.mark.parametrize("transform", [nnx.grad, nnx.value_and_grad])
def test_a_loss_beside_other_results_wants_has_aux(transform: Any) -> None:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"a tuple of 2: a loss .* has_aux=True"):
        transform(lambda model: (model(jnp.ones(2)).sum(), 1))(model)
