"""`nnx.cond` and `nnx.switch` are the `if`: item D99, errors, traces."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

from .cells import Cell, Trainer, snapshot


def by_cond(taken: Any, yes: Any, no: Any, *operands: Any) -> Any:
    return nnx.cond(taken, yes, no, *operands)


def by_switch(taken: Any, yes: Any, no: Any, *operands: Any) -> Any:
    index = jnp.asarray(taken, jnp.int32)
    return nnx.switch(index, [no, yes], *operands)


CHOICES = pytest.mark.parametrize(
    "choose", [by_cond, by_switch], ids=["cond", "switch"]
)
TAKEN = pytest.mark.parametrize("taken", [True, False])
LEVELS = pytest.mark.parametrize("wrap", [lambda f: f, nnx.jit], ids=["top", "jit"])


def nothing(*operands: Any) -> None:
    pass


# D99: what branches do


@LEVELS
@TAKEN
@CHOICES
@pytest.mark.parametrize("way", ["operand", "captured"])
def test_d99_what_the_branch_writes_is_written_if_it_is_taken(
    way: str, choose: Any, taken: bool, wrap: Any
):
    cell, number, text = Cell(), nnx.Variable(1), nnx.Variable("text")
    tree = nnx.Variable({"a": jnp.zeros(())})

    def yes(cell: Any) -> Any:
        assert text.value == "text" and cell.same is cell.part
        cell.count += 1
        cell.part.w *= 3
        cell.array = cell.array + 1
        number.value = 5
        return cell

    def no(cell: Any) -> Any:
        cell.part.w *= 5
        tree.value = {"a": tree["a"] + 1}
        return cell

    def run(taken: Any, *cells: Any) -> Any:
        if cells:
            return choose(taken, yes, no, *cells)
        return choose(taken, lambda: yes(cell), lambda: no(cell))

    got = wrap(run)(taken, *([cell] if way == "operand" else []))
    assert got is cell and cell.same is cell.part
    assert int(cell.count[...]) == (1 if taken else 0)
    np.testing.assert_array_equal(cell.part.w, [3.0, 3.0] if taken else [5.0, 5.0])
    np.testing.assert_array_equal(cell.array, [2.0, 2.0] if taken else [1.0, 1.0])
    assert int(number.value) == (5 if taken else 1)
    assert float(tree["a"]) == (0 if taken else 1)


@LEVELS
@TAKEN
@CHOICES
def test_equal_changes_of_structure_are_made(choose: Any, taken: bool, wrap: Any):
    def branch(factor: float) -> Any:
        def run(cell: Any) -> Any:
            cell.new = nnx.Param(jnp.full(2, factor), note="n")
            cell.note = "static"
            cell.count.set_metadata(mark=1)
            cell.parts = [nnx.Param(jnp.array(factor))]
            del cell.same
            return {"new": cell.new, "made": nnx.Dict(a=jnp.array(factor))}

        return run

    cell = Cell()
    got = wrap(lambda t, c: choose(t, branch(1.0), branch(2.0), c))(taken, cell)
    wanted = 1.0 if taken else 2.0
    np.testing.assert_array_equal(cell.new, [wanted, wanted])
    assert got["new"] is cell.new and float(got["made"].a) == wanted
    assert cell.note == "static" and cell.count.mark == 1 and cell.new.note == "n"
    assert float(cell.parts[0][...]) == wanted and not hasattr(cell, "same")


@TAKEN
@CHOICES
def test_only_the_taken_branch_draws(choose: Any, taken: bool):
    dropout, again = (nnx.Dropout(0.5, rngs=nnx.Rngs(0)) for _ in range(2))
    x = jnp.ones(16)
    got = choose(taken, dropout, lambda x: x, x)
    np.testing.assert_array_equal(got, again(x) if taken else x)
    assert int(dropout.rngs.count[...]) == int(taken)


@TAKEN
@CHOICES
@pytest.mark.parametrize(
    ("yes", "no"),
    [
        (1, 2),
        (1.0, 2.0),
        (True, False),
        (1.0, jnp.bfloat16(2)),
        (1, jnp.int8(2)),
        (jnp.float32(1), 2),
        (1, 2.5),
        ((1, [jnp.ones(2)]), (3, [jnp.zeros(2)])),
    ],
    ids=str,
)
def test_numbers_as_results(choose: Any, taken: bool, yes: Any, no: Any):
    got = choose(taken, lambda: yes, lambda: no)
    wanted = yes if taken else no
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    strong = {x.dtype for x in jax.tree.leaves((yes, no)) if isinstance(x, jax.Array)}
    if not isinstance(yes, tuple) and strong:
        assert got.dtype in strong


@CHOICES
def test_static_results(choose: Any):
    assert choose(True, lambda: ("a", None), lambda: ("a", None)) == ("a", None)
    key = jax.random.key(0)
    assert choose(True, lambda: key, lambda: jax.random.key(1)) == key


@pytest.mark.parametrize(("index", "branch"), [(-5, 0), (0, 0), (1, 1), (2, 2), (9, 2)])
def test_the_index_is_clamped(index: int, branch: int):
    count = nnx.Variable(jnp.zeros((), jnp.int32))

    def made(number: int) -> Any:
        def run() -> Any:
            count.value += 10**number
            return number

        return run

    assert int(nnx.switch(index, [made(n) for n in range(3)])) == branch
    assert int(count.value) == 10**branch


def test_one_branch_and_none():
    assert int(nnx.switch(3, [lambda: 1])) == 1
    with pytest.raises(ValueError, match=r"nnx\.switch needs at least one branch"):
        nnx.switch(0, [])


@pytest.mark.parametrize("pred", [True, 1, jnp.array(True), nnx.Variable(True)])
def test_the_predicate_may_be_a_variable_or_number(pred: Any):
    assert int(nnx.cond(pred, lambda: 1, lambda: 2)) == 1
    assert int(nnx.switch(nnx.Variable(1), [lambda: 1, lambda: 2])) == 2


@TAKEN
@CHOICES
def test_a_plain_object_is_seen_like_what_is_captured(choose: Any, taken: bool):
    trainer = Trainer()

    def branch(factor: float) -> Any:
        def run(trainer: Any) -> None:
            trainer.model.count += 1
            trainer.array = trainer.array * factor
            trainer.new = jnp.full(2, factor)

        return run

    choose(taken, branch(2.0), branch(3.0), trainer)
    wanted = [2.0, 2.0] if taken else [3.0, 3.0]
    np.testing.assert_array_equal(trainer.array, wanted)
    np.testing.assert_array_equal(trainer.new, wanted)
    assert int(trainer.model.count[...]) == 1


def test_d99_as_flax(oracle: Callable[[str], Any]):
    flax_nnx = oracle("flax.nnx")

    def run(lib: Any) -> list[float]:
        class Counter(lib.Module):
            def __init__(self):
                self.count = lib.Variable(jnp.zeros(()))

        def add(n: float) -> Any:
            def run(counter: Any) -> Any:
                counter.count[...] += n
                return counter.count[...] * 2

            return run

        counter, seen = Counter(), []
        for index in (0, 2, 1, 7):
            seen.append(
                float(lib.switch(index, [add(1.0), add(10.0), add(100.0)], counter))
            )
            seen.append(float(lib.cond(index > 1, add(3.0), add(5.0), counter)))
        return [*seen, float(counter.count[...])]

    assert run(nnx) == run(flax_nnx)


# What differs between branches, and changes nothing


def sets_new(cell: Any) -> None:
    cell.new = nnx.Param(jnp.ones(2))


def sets_other(cell: Any) -> None:
    cell.other = 1


def deletes(cell: Any) -> None:
    del cell.same


def sets_three(cell: Any) -> None:
    cell.size = 3


def sets_four(cell: Any) -> None:
    cell.size = 4


def marks(cell: Any) -> None:
    cell.count.set_metadata(note=1)


def sets_array_attribute(cell: Any) -> None:
    cell.array = "no array"


DIFFERENT = [
    (
        sets_new,
        nothing,
        r"Cell differs: sets 'new' in true_fun, left alone in false_fu",
    ),
    (
        nothing,
        sets_new,
        r"Cell differs: left alone in true_fun, sets 'new' in false_fu",
    ),
    (deletes, sets_other, r"deletes 'same' in true_fun, sets 'other' in false_fun"),
    (sets_three, sets_four, r"Cell\.size differs: 3 in true_fun, 4 in false_fun"),
    (
        marks,
        nothing,
        r"'Cell\.count' differs: \{'note': 1\} in true_fun, left alone in",
    ),
    (sets_array_attribute, nothing, r"Cell differs: sets 'array' in true_fun"),
    (lambda c: (1,), lambda c: {"a": 1}, r"result differs: a tuple .* a dict with"),
    (
        lambda c: 1,
        nothing,
        r"the result differs: an array in true_fun, None in false_f",
    ),
    (lambda c: "a", lambda c: "b", r"the result differs: 'a' in true_fun, 'b' in fals"),
    (lambda c: c, lambda c: c.part, r"the result differs: .*Cell.* in true_fun, Dict"),
    (
        lambda c: c.count.set_value(jnp.ones(())),
        nothing,
        r"'Cell\.count' different types: float32\[\] in true_fun, int32\[\] in false_f",
    ),
    (
        lambda c: c.count.set_value(jnp.ones(2, jnp.int32)),
        nothing,
        r"'Cell\.count' different types: int32\[2\] in true_fun.*cast with astype",
    ),
    (
        lambda c: c.count.set_value("text"),
        nothing,
        r"'Cell\.count' values of different structure: .*'text'",
    ),
    (
        lambda c: {"a": jnp.ones(2)},
        lambda c: {"a": jnp.ones(3)},
        r"give the result\.a different types: float32\[2\] .* float32\[3\]",
    ),
    (
        lambda c: nnx.Param(jnp.ones(2)),
        lambda c: nnx.Variable(jnp.ones(2)),
        r"the result differs: a Param .*, a Variable",
    ),
]


@LEVELS
@pytest.mark.parametrize(("yes", "no", "match"), DIFFERENT)
def test_d99_structure_that_differs_raises(yes: Any, no: Any, match: str, wrap: Any):
    cell, other = Cell(), nnx.Variable(0)
    before = snapshot(cell, other)

    def writing(branch: Any) -> Any:
        def run(cell: Any) -> Any:
            other.value += 1
            return branch(cell)

        return run

    def caught(cell: Any) -> Any:
        with pytest.raises(TypeError, match=match):
            nnx.cond(True, writing(yes), writing(no), cell)
        return cell.count * 1

    wrap(caught)(cell)
    before.check()


def test_switch_names_the_branches():
    with pytest.raises(
        TypeError, match=r"nnx\.switch.*left alone in branches\[0\], se"
    ):
        nnx.switch(0, [nothing, nothing, sets_new], Cell())


def test_fields_of_plain_objects_that_differ_raise():
    trainer = Trainer()
    before = dict(vars(trainer))

    def yes(trainer: Any) -> None:
        trainer.new = 1

    with pytest.raises(TypeError, match=r"Trainer differs: sets 'new' in true_fun, le"):
        nnx.cond(True, yes, nothing, trainer)
    assert vars(trainer) == before


@CHOICES
def test_a_branch_that_raises_changes_nothing(choose: Any):
    cell = Cell()
    before = snapshot(cell)

    def yes(cell: Any) -> None:
        cell.count += 1
        cell.new = 1
        cell.array = cell.array * 2
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        choose(True, nothing, yes, cell)
    before.check()


# Levels


@CHOICES
def test_branches_under_vmap_write_what_is_mapped(choose: Any):
    cells = nnx.Dict(v=nnx.Variable(jnp.arange(4.0)))

    def f(cell: Any, x: Any) -> Any:
        def yes(cell: Any) -> None:
            cell.v *= 10

        choose(cell.v > 1, yes, nothing, cell)
        return cell.v + x

    got = nnx.vmap(f)(cells, jnp.ones(4))
    np.testing.assert_array_equal(cells.v, [0.0, 1.0, 20.0, 30.0])
    np.testing.assert_array_equal(got, cells.v + 1)


@CHOICES
def test_nested_branches(choose: Any):
    count = nnx.Variable(jnp.zeros((), jnp.int32))

    def add(n: int) -> Any:
        def run() -> None:
            count.value += n

        return run

    def outer(x: Any) -> Any:
        return lambda: choose(x > 1, add(1), add(10))

    for x in range(3):
        choose(jnp.array(x > 0), outer(jnp.array(x)), add(100))
    assert int(count.value) == 100 + 10 + 1


@TAKEN
@CHOICES
def test_gradients_are_those_of_the_taken_branch(choose: Any, taken: bool):
    def loss(p: Any) -> Any:
        def yes() -> None:
            total.value = total + p**2

        total = nnx.Variable(jnp.ones(()))
        choose(taken, yes, lambda: total.set_value(total * p))
        return total * 1

    got = nnx.grad(loss)(nnx.Param(jnp.full((), 3.0)))
    assert float(got.value) == (6.0 if taken else 1.0)


@CHOICES
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
def test_google_flax_5025_plain_transforms_over_branches(plain: Any, choose: Any):
    factor, xs = nnx.Param(jnp.full((), 3.0)), jnp.arange(4.0)

    def f(x: Any) -> Any:
        local = nnx.Variable(x)

        def yes() -> Any:
            local.value = local * factor
            return local * 1

        return choose(x > 1, yes, lambda: x) + local

    np.testing.assert_allclose(plain(f, xs), [f(x) for x in xs], rtol=1e-6)
    got = jax.grad(jax.checkpoint(f))(xs[2])
    np.testing.assert_allclose(got, 6.0)


def test_a_write_under_a_plain_transform_raises():
    count = nnx.Variable(jnp.zeros(()))

    def f(x: Any) -> Any:
        nnx.cond(x > 0, lambda: count.set_value(x), nothing)
        return x

    with pytest.raises(nnx.TraceContextError, match=r"Use the nnxlite transform"):
        jax.vmap(f)(jnp.ones(2))
    assert float(count.value) == 0.0


# Traces


@CHOICES
def test_google_flax_5512_equal_calls_trace_once(choose: Any):
    traces: list[int] = []
    total = 0

    def yes(cell: Any) -> None:
        nonlocal total
        total += 1
        traces.append(1)
        cell.count += 1

    for number in range(6):
        cell = Cell()
        choose(number % 2 == 0, yes, nothing, cell)
        assert int(cell.count[...]) == (1 if number % 2 == 0 else 0)
    assert len(traces) == total == 1


@CHOICES
def test_fresh_but_equal_functions_trace_once(choose: Any):
    traces: list[int] = []

    def call(taken: bool, cell: Any) -> None:
        def yes() -> None:
            traces.append(1)
            cell.count += 1

        choose(taken, yes, lambda: None)

    for number in range(6):
        cell = Cell()
        call(number % 2 == 0, cell)
        assert int(cell.count[...]) == (1 if number % 2 == 0 else 0)
    assert len(traces) == 1


def test_branches_that_return_different_objects() -> None:
    one, two = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(
        TypeError, match=r"the result differs: Linear.* in true_fun, another Linear.* "
    ):
        nnx.cond(True, lambda a, b: a, lambda a, b: b, one, two)
