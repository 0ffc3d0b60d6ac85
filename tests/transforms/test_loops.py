"""`nnx.while_loop` and `nnx.fori_loop` are Python's loops: item D99, errors, traces."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

from .cells import Cell, Trainer, snapshot


def fori(steps: int, body: Any, value: Any) -> Any:
    return nnx.fori_loop(0, steps, lambda i, value: body(value), value)


def unrolled(steps: int, body: Any, value: Any) -> Any:
    return nnx.fori_loop(0, steps, lambda i, value: body(value), value, unroll=steps)


def whiled(steps: int, body: Any, value: Any) -> Any:
    def step(carry: Any) -> Any:
        return carry[0] + 1, body(carry[1])

    return nnx.while_loop(lambda carry: carry[0] < steps, step, (0, value))[1]


def scanned(steps: int, body: Any, value: Any) -> Any:
    return nnx.scan(body, in_axes=nnx.Carry, out_axes=nnx.Carry, length=steps)(value)


def python(steps: int, body: Any, value: Any) -> Any:
    for _ in range(steps):
        value = body(value)
    return value


LOOPS = {"fori": fori, "unrolled": unrolled, "while": whiled, "scan": scanned}
each_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
each_level = pytest.mark.parametrize("wrap", [lambda f: f, nnx.jit], ids=["top", "jit"])


# D99: what loops do


@each_level
@each_loop
def test_d99_the_module_is_updated_and_stays_the_same(loop: Any, wrap: Any):
    ours, wanted = Cell(), Cell()

    def body(cell: Any) -> Any:
        assert cell.same is cell.part
        cell.count += 2
        cell.part.w *= cell.count
        cell.array = cell.array + cell.part.w
        return cell

    got = wrap(lambda cell: loop(3, body, cell))(ours)
    python(3, body, wanted)
    assert got is ours and ours.same is ours.part
    assert int(ours.count[...]) == int(wanted.count[...]) == 6
    np.testing.assert_array_equal(ours.part.w, wanted.part.w)
    np.testing.assert_array_equal(ours.array, wanted.array)


@each_level
@each_loop
def test_captured_objects_are_written(loop: Any, wrap: Any):
    cell, text = Cell(), nnx.Variable("text")
    tree = nnx.Variable({"a": jnp.zeros(()), "s": "text"})
    untouched = nnx.Variable(jnp.full((), 3.0))
    value = untouched.value

    def body(x: Any) -> Any:
        assert text.value == "text"
        cell.count += 1
        cell.array = cell.array * 2
        tree.value = {"a": tree["a"] + untouched, "s": "text"}
        return x + cell.count

    got = wrap(lambda: loop(3, body, 0))()
    assert int(got) == 6 and int(cell.count[...]) == 3
    np.testing.assert_array_equal(cell.array, [8.0, 8.0])
    assert float(tree["a"]) == 9.0 and tree["s"] == "text"
    assert untouched.value is value


@each_loop
def test_google_flax_4436_two_modules_and_a_number(loop: Any):
    one, other = Cell(), Cell()

    def body(carry: Any) -> Any:
        one, parts, x = carry
        one.count += 1
        parts["other"].count -= one.count
        return one, parts, x * 2

    got = loop(3, body, (one, {"other": other}, 1.0))
    assert got[0] is one and got[1]["other"] is other and float(got[2]) == 8.0
    assert int(one.count[...]) == 3 and int(other.count[...]) == -6


@each_loop
def test_google_flax_4522_bodies_that_only_read(loop: Any):
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    before = snapshot(linear)
    x = jnp.ones(2)
    got = loop(3, lambda c: (c[0], c[0](c[1])), (linear, x))
    before.check()
    assert got[0] is linear
    np.testing.assert_allclose(got[1], linear(linear(linear(x))), rtol=1e-5)
    np.testing.assert_allclose(loop(3, linear, x), got[1], rtol=1e-6)


@each_loop
def test_random_streams_advance(loop: Any):
    dropout, again = (nnx.Dropout(0.5, rngs=nnx.Rngs(0)) for _ in range(2))
    got = loop(3, lambda x: x + dropout(jnp.ones(8)), jnp.zeros(8))
    np.testing.assert_array_equal(got, sum(again(jnp.ones(8)) for _ in range(3)))
    assert int(dropout.rngs.count[...]) == 3


@each_loop
def test_keys_and_empty_values(loop: Any):
    got = loop(2, lambda key: jax.random.fold_in(key, 1), jax.random.key(0))
    assert got == python(2, lambda k: jax.random.fold_in(k, 1), jax.random.key(0))
    assert loop(2, lambda value: value, {"a": [], "b": None, "c": "text"}) == {
        "a": [],
        "b": None,
        "c": "text",
    }


@each_loop
def test_numbers_take_the_type_that_they_get(loop: Any):
    count = nnx.Variable(0)

    def body(x: Any) -> Any:
        count.value = count.value + 0.5
        return x + jnp.ones((), jnp.bfloat16)

    got = loop(2, body, 0.0)
    assert got.dtype == jnp.bfloat16 and float(got) == 2.0
    assert float(count.value) == 1.0


@each_loop
def test_a_plain_object_is_seen_like_what_is_captured(loop: Any):
    trainer = Trainer()

    def body(trainer: Any) -> Any:
        trainer.model.count += 1
        trainer.array = trainer.array * 2
        return trainer

    assert loop(3, body, trainer) is trainer
    assert int(trainer.model.count[...]) == 3
    np.testing.assert_array_equal(trainer.array, [8.0, 8.0])


@pytest.mark.parametrize("unroll", [None, 1, 2, True])
@pytest.mark.parametrize("bounds", [(1, 5), (jnp.array(1), 5), (5, 1)])
def test_fori_loop_counts(bounds: Any, unroll: Any):
    if unroll is not None and not isinstance(bounds[0], int):
        unroll = None
    cell = Cell()

    def body(i: Any, total: Any) -> Any:
        cell.count += i
        return total + i

    total = nnx.fori_loop(*bounds, body, 0, unroll=unroll)
    assert int(total) == int(cell.count[...]) == sum(range(int(bounds[0]), bounds[1]))


def test_fori_loop_takes_variables_as_bounds():
    assert int(nnx.fori_loop(nnx.Variable(1), nnx.Variable(4), lambda i, c: c + i, 0))


def test_the_condition_sees_what_the_body_wrote():
    count = nnx.Variable(jnp.zeros((), jnp.int32))

    def body(x: Any) -> Any:
        count.value += 1
        return x * 2

    assert float(nnx.while_loop(lambda x: count < 3, body, 1.0)) == 8.0
    assert int(count.value) == 3


def test_no_step_writes_nothing():
    cell = Cell()

    def body(cell: Any) -> Any:
        cell.count += 1
        cell.array = cell.array * 2
        return cell

    assert nnx.while_loop(lambda cell: False, body, cell) is cell
    assert nnx.fori_loop(0, 0, lambda i, cell: body(cell), cell) is cell
    assert int(cell.count[...]) == 0
    np.testing.assert_array_equal(cell.array, [1.0, 1.0])


def test_d99_as_flax(oracle: Callable[[str], Any]):
    flax_nnx = oracle("flax.nnx")

    def run(lib: Any) -> Any:
        class Counter(lib.Module):
            def __init__(self):
                self.count = lib.Variable(jnp.zeros(()))

        def body(i: Any, counter: Any) -> Any:
            counter.count[...] += i
            return counter

        def step(counter: Any) -> Any:
            counter.count[...] *= 2
            return counter

        counter = Counter()
        lib.fori_loop(0, 4, body, counter)
        lib.while_loop(lambda counter: counter.count[...] < 50, step, counter)
        return float(counter.count[...])

    assert run(nnx) == run(flax_nnx) == 96.0


# What raises, and changes nothing


def new_attribute(cell: Any) -> Any:
    cell.part.new = nnx.Param(1.0)
    return cell


def deleted_attribute(cell: Any) -> Any:
    del cell.same
    return cell


def new_metadata(cell: Any) -> Any:
    cell.count.set_metadata(note=1)
    return cell


def other_object(cell: Any) -> Any:
    return Cell()


def other_structure(cell: Any) -> Any:
    return cell, cell


def other_dtype(cell: Any) -> Any:
    cell.count.value = cell.count * 0.5
    return cell


def other_shape(cell: Any) -> Any:
    cell.array = jnp.ones(3)
    return cell


def other_value(cell: Any) -> Any:
    cell.count.value = "text"
    return cell


WRONG = {
    new_attribute: (ValueError, r"'Cell\.(part|same)': it sets 'new'.*before the loop"),
    deleted_attribute: (ValueError, r"Cell: it deletes 'same'.*before the loop"),
    new_metadata: (ValueError, r"'Cell\.count': it changes its metadata"),
    other_object: (ValueError, r"the carry.*, Cell, but it returned another Cell"),
    other_structure: (ValueError, r"value of the structure that it got"),
    other_dtype: (TypeError, r"'Cell\.count' is int32\[\] .* float32\[\] after .*cast"),
    other_shape: (TypeError, r"'array' of Cell is float32\[2\] before .*float32\[3\]"),
    other_value: (TypeError, r"'Cell\.count' has another structure after a step"),
}


@each_level
@each_loop
@pytest.mark.parametrize("body", WRONG, ids=lambda body: body.__name__)
def test_d99_what_must_stay(body: Any, loop: Any, wrap: Any):
    cell, other = Cell(), nnx.Variable(0)
    before = snapshot(cell, other)
    error, match = WRONG[body]

    def f(cell: Any) -> Any:
        other.value += 1
        return body(cell)

    def caught(cell: Any) -> Any:
        with pytest.raises(error, match=match):
            loop(3, f, cell)
        return cell.count * 1

    wrap(caught)(cell)
    before.check()


@each_loop
def test_a_body_that_raises_changes_nothing(loop: Any):
    cell = Cell()
    before = snapshot(cell)

    def body(cell: Any) -> Any:
        cell.count += 1
        cell.new = 1
        cell.array = cell.array * 2
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        loop(3, body, cell)
    before.check()


@each_loop
def test_a_new_field_of_a_plain_object_raises(loop: Any):
    trainer = Trainer()
    before = dict(vars(trainer))

    def body(trainer: Any) -> Any:
        trainer.new = trainer.array * 2
        return trainer

    with pytest.raises(ValueError, match=r"structure of Trainer: it sets 'new'"):
        loop(3, body, trainer)
    assert vars(trainer) == before


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda cell: cell.count.set_value(1), r"changes Variable 'Cell\.count'"),
        (lambda cell: setattr(cell, "new", 1), r"changes Cell: change it in the body"),
        (lambda cell: cell.count.set_metadata(a=1), r"changes Variable 'Cell\.count'"),
    ],
    ids=["value", "attribute", "metadata"],
)
def test_the_condition_changes_nothing(change: Any, match: str):
    cell = Cell()
    before = snapshot(cell)

    def condition(cell: Any) -> Any:
        change(cell)
        return cell.count < 3

    with pytest.raises(ValueError, match=match):
        nnx.while_loop(condition, lambda cell: cell, cell)
    before.check()


# Levels


def test_google_flax_4709_a_loop_in_cond_in_vmap():
    total = nnx.Variable(jnp.zeros((), jnp.int32))

    def f(x: Any) -> Any:
        local = nnx.Dict(v=nnx.Variable(x))

        def double(i: Any, local: Any) -> Any:
            local.v *= 2
            return local

        def yes(local: Any) -> None:
            nnx.fori_loop(0, 3, double, local)

        nnx.cond(x > 1, yes, lambda local: None, local)
        total.value += 1
        return local.v * 1

    np.testing.assert_array_equal(nnx.vmap(f)(jnp.arange(4.0)), [0.0, 1.0, 16.0, 24.0])
    assert int(total.value) == 1


def test_gradients_flow_through_what_is_carried():
    param = nnx.Param(jnp.full((), 2.0))

    def loss(param: Any) -> Any:
        product = nnx.Variable(jnp.ones(()))

        def body(i: Any, x: Any) -> Any:
            product.value = product * param
            return x + product

        return nnx.fori_loop(0, 3, body, 0.0)

    assert float(nnx.grad(loss)(param).value) == 1 + 2 * 2 + 3 * 2**2


@each_loop
@pytest.mark.parametrize(
    "plain",
    [
        lambda f, xs: jax.vmap(f)(xs),
        lambda f, xs: jax.lax.map(f, xs, batch_size=2),
        lambda f, xs: jax.lax.scan(lambda c, x: (c, f(x)), 0, xs)[1],
        lambda f, xs: jax.jit(jax.vmap(jax.checkpoint(f)))(xs),
    ],
    ids=["vmap", "map", "scan", "checkpoint"],
)
def test_google_flax_5025_plain_transforms_over_loops(plain: Any, loop: Any):
    factor, xs = nnx.Param(jnp.full((), 3.0)), jnp.arange(4.0)

    def f(x: Any) -> Any:
        local = nnx.Variable(x)

        def body(y: Any) -> Any:
            local.value = local + y
            return y * factor

        return loop(2, body, x) + local

    np.testing.assert_allclose(plain(f, xs), [f(x) for x in xs], rtol=1e-6)


@each_loop
def test_a_write_under_a_plain_transform_raises(loop: Any):
    count = nnx.Variable(jnp.zeros(()))

    def body(x: Any) -> Any:
        count.value += x
        return x

    with pytest.raises(nnx.TraceContextError, match=r"Use the nnxlite transform"):
        jax.vmap(lambda x: loop(2, body, x))(jnp.ones(2))
    assert float(count.value) == 0.0


# Traces


@each_loop
def test_google_flax_5512_equal_calls_trace_once(loop: Any):
    traces: list[int] = []
    total = 0

    def body(cell: Any) -> Any:
        nonlocal total
        total += 1
        traces.append(1)
        return cell

    for _ in range(3):
        cell = Cell()
        loop(3, body, cell)
        cell.count += 1
        loop(3, body, cell)
    assert len(traces) == total == 1


@each_loop
def test_a_body_that_writes_is_traced_twice_and_then_never(loop: Any):
    traces: list[int] = []

    def call(cell: Any) -> None:
        def body(cell: Any) -> Any:
            traces.append(1)
            cell.count += 1
            return cell

        loop(3, body, cell)

    for _ in range(3):
        cell = Cell()
        call(cell)
        assert int(cell.count[...]) == 3
    assert len(traces) == 2


# Variables that each step makes anew


def gradients(model: Any, x: Any) -> Any:
    return nnx.grad(lambda model: (model(x) ** 2).mean())(model)


@each_level
@each_loop
def test_gradients_add_up(loop: Any, wrap: Any):
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    xs = jnp.arange(15.0).reshape(5, 3)
    zero = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    before = snapshot(model, zero)

    def add(carry: Any) -> Any:
        i, total = carry
        return i + 1, jax.tree.map(jnp.add, total, gradients(model, xs[i]))

    expected = python(5, add, (0, zero))[1]
    total = wrap(lambda zero: loop(5, add, (0, zero))[1])(zero)
    assert type(total) is nnx.State and type(total.kernel) is nnx.Param
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(total[name], expected[name], rtol=1e-6)
        assert total[name] is not zero[name]
    before.check()


class Squared(nnx.Param):
    """What it shows is not what it stores."""

    def get_value(self, **kwargs: Any) -> Any:
        return self.raw_value**2


@each_loop
def test_new_variables_keep_kind_and_metadata(loop: Any):
    parts = [Squared(jnp.array(2.0), note="a"), nnx.Variable(jnp.array(3.0))]

    def step(parts: Any) -> Any:
        first, second = parts
        return [first.replace(first.raw_value + 1), second.replace(second * first)]

    expected, got = python(2, step, parts), loop(2, step, parts)
    assert [type(x) for x in got] == [Squared, nnx.Variable] and got[0].note == "a"
    for one, other in zip(expected, got, strict=True):
        assert float(one.raw_value) == float(other.raw_value)
    assert float(parts[0].raw_value) == 2.0 and float(parts[1].value) == 3.0


OTHER: dict[str, Callable[[Any], Any]] = {
    "kind": lambda v: nnx.Param(v + 1),
    "metadata": lambda v: v.copy(v + 1, note="b"),
    "writes and renews": lambda v: [v.set_value(v + 1), v.copy()][1],
}


@each_loop
@pytest.mark.parametrize("name", OTHER)
def test_a_new_variable_must_be_of_the_same_kind(name: str, loop: Any):
    v = nnx.Variable(jnp.array(2.0), note="a")
    before = snapshot(v)
    with pytest.raises(ValueError, match="must return the object that it got as"):
        loop(2, OTHER[name], v)
    before.check()


@each_loop
def test_the_shape_of_a_new_variable_must_stay(loop: Any):
    v = nnx.Variable(jnp.ones(2))
    with pytest.raises(TypeError, match=r"float32\[2\] before .* and float32\[4\]"):
        loop(2, lambda v: v.copy(jnp.concatenate([v.value, v.value])), v)


@each_loop
def test_a_tuple_beside_an_array_that_a_branch_replaces(loop: Any):
    module = nnx.Module()
    module.array = jnp.ones(2)
    module.pair = (nnx.Variable(jnp.ones(2)), "text", {"b": nnx.Variable(jnp.ones(2))})
    pair = module.pair

    def add(x: Any) -> Any:
        module.array = module.array + x
        return x

    def step(x: Any) -> Any:
        return nnx.cond(x > 0, add, lambda x: x, x)

    loop(3, step, jnp.ones(()))
    np.testing.assert_array_equal(module.array, [4.0, 4.0])
    assert module.pair is pair


def test_a_program_stays_valid_beside_a_tuple():
    module = nnx.Module()
    module.array, module.pair = jnp.ones(2), (nnx.Variable(jnp.ones(2)), 2.5)
    stamp = module._nnx_stamp

    @nnx.jit
    def step(module: Any) -> None:
        module.array = module.array + 1

    step(module)
    step(module)
    assert module._nnx_stamp is stamp and module.array.tolist() == [3.0, 3.0]
