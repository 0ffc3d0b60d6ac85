"""`nnx.jit`: items D56-D75 and D117-D120, and all of its options."""

import contextlib
import copy
import dataclasses
import functools
import gc
import inspect
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import nnxlite as nnx

from ..properties.comparison import Correspondence, Snapshot
from ..properties.programs import reachable

MODEL: Any = None
FACTOR: Any = None
BODY: Any = None


class Inner(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))


class Net(nnx.Module):
    """Something of every kind: Variables, an array, statics, containers, a method."""

    def __init__(self, seed: int = 0):
        self.w = nnx.Param(jnp.arange(2.0) + seed)
        self.v = nnx.Param(jnp.zeros(2))
        self.count = nnx.Variable(jnp.zeros((), jnp.int32), note="n")
        self.array = jnp.ones(2)
        self.size = 3
        self.extra = nnx.BatchStat(jnp.ones(1))
        self.inner = Inner()
        self.parts = [nnx.Param(jnp.ones(1)), "static"]
        self.table = {"k": nnx.Param(jnp.ones(1))}

    def __call__(self, x: Any) -> Any:
        self.count += 1
        return x * self.w

    def bump(self, by: Any) -> Any:
        self.count += by
        return self

    @nnx.jit
    def step(self, x: Any, *, scale: Any = 1.0) -> Any:
        """Documented."""
        self.count += 1
        return x * self.w * scale


class Trainer:
    """A plain object that holds a model, as training scripts have them."""

    def __init__(self, model: Any, body: Any = None):
        self.model = model
        self.body = body
        self.name = "trainer"

    @nnx.jit
    def run(self) -> Any:
        return self.body(self.model)


def plain(value: Any) -> str:
    """What a static value is, the same for tracked and plain containers."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {plain(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(plain, value))},)"
    return repr(value)


def snapshot(*roots: Any) -> Snapshot:
    return Snapshot(reachable(roots))


def counted(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """The function, and a list that grows whenever its Python runs."""
    runs: list[int] = []

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        return function(*args, **kwargs)

    return wrapper, runs


def jitted(function: Callable[..., Any], **options: Any) -> tuple[Any, list[int]]:
    """The compiled function, and a list that grows with each trace."""
    wrapper, traces = counted(function)
    return nnx.jit(wrapper, **options), traces


# Ways to reach an object, and effects on it


def by_closure(body: Any, model: Any) -> Any:
    return nnx.jit(lambda: body(model))


def by_global(body: Any, model: Any) -> Any:
    global MODEL
    MODEL = model
    return nnx.jit(lambda: body(MODEL))


def by_default(body: Any, model: Any) -> Any:
    def function(model: Any = model) -> Any:
        return body(model)

    return nnx.jit(function)


def by_keyword_default(body: Any, model: Any) -> Any:
    def function(*, model: Any = model) -> Any:
        return body(model)

    return nnx.jit(function)


def by_helper(body: Any, model: Any) -> Any:
    def helper() -> Any:
        return body(model)

    return nnx.jit(lambda: helper())


def by_partial_helper(body: Any, model: Any) -> Any:
    helper = functools.partial(body, model)
    return nnx.jit(lambda: helper())


def by_container(make: Any) -> Any:
    def way(body: Any, model: Any) -> Any:
        container = make(model)
        return nnx.jit(
            lambda: body(
                container["k"] if isinstance(container, dict) else container[0]
            )
        )

    return way


def by_method_helper(body: Any, model: Any) -> Any:
    method = functools.partial(body, model)
    bound = model.bump
    return nnx.jit(lambda: (method(), bound(0))[0])


def by_self(body: Any, model: Any) -> Any:
    class Caller(nnx.Module):
        def __init__(self):
            self.model = model

        def __call__(self) -> Any:
            return body(self.model)

    return nnx.jit(Caller())


def by_bound_method(body: Any, model: Any) -> Any:
    class Caller(nnx.Module):
        def __init__(self):
            self.model = model

        def method(self) -> Any:
            return body(self.model)

    return nnx.jit(Caller().method)


def by_trainer(body: Any, model: Any) -> Any:
    return Trainer(model, body).run


def by_trainer_argument(body: Any, model: Any) -> Any:
    compiled, trainer = nnx.jit(lambda trainer: body(trainer.model)), Trainer(model)
    return functools.partial(compiled, trainer)


def by_trainer_list(body: Any, model: Any) -> Any:
    compiled = nnx.jit(lambda trainer: body(trainer.model["m"][0]))
    return functools.partial(compiled, Trainer({"m": [model]}))


def passed(wrap: Any, unwrap: Any) -> Any:
    def way(body: Any, model: Any) -> Any:
        compiled = nnx.jit(lambda argument: body(unwrap(argument)))
        return functools.partial(compiled, wrap(model))

    return way


PASSED = {
    "argument": passed(lambda m: m, lambda a: a),
    "keyword": lambda body, m: functools.partial(nnx.jit(lambda *, k: body(k)), k=m),
    "list": passed(lambda m: [1, m], lambda a: a[1]),
    "dict": passed(lambda m: {"k": m}, lambda a: a["k"]),
    "deep": passed(lambda m: ({"k": [m, "s"]},), lambda a: a[0]["k"][0]),
    "twice": passed(lambda m: (m, m), lambda a: a[1]),
    "partial": lambda body, m: nnx.jit(functools.partial(body, m)),
    "partial keyword": lambda body, m: nnx.jit(
        functools.partial(lambda *, k: body(k), k=m)
    ),
    "self of a Module": by_self,
    "bound method": by_bound_method,
    "self of a Trainer": by_trainer,
    "Trainer": by_trainer_argument,
    "list in a Trainer": by_trainer_list,
    "jit_partial": lambda body, m: nnx.jit_partial(body, m),
    "cached_partial": lambda body, m: nnx.cached_partial(nnx.jit(body), m),
}
CAPTURED = {
    "closure": by_closure,
    "global": by_global,
    "default": by_default,
    "keyword default": by_keyword_default,
    "helper": by_helper,
    "partial helper": by_partial_helper,
    "method helper": by_method_helper,
    "list in closure": by_container(lambda m: [m]),
    "tuple in closure": by_container(lambda m: (m, 1)),
    "dict in closure": by_container(lambda m: {"k": m}),
}
WAYS = {**PASSED, **CAPTURED}


def write(m: Any) -> Any:
    m.count += 1
    m.w[...] = m.w * 2
    m.v[1] = m.w[1]
    return m.w.sum()


def write_array(m: Any) -> Any:
    m.array = m.array + 1
    return m.array


def write_below(m: Any) -> Any:
    m.inner.count += 1
    m.parts[0].value = m.parts[0] + 1
    m.table["k"][...] = 5.0


def add(m: Any) -> Any:
    m.new = nnx.Param(m.w + 1)
    m.module = Inner()
    m.bare = m.w * 2
    m.flag = "set"
    m.size += 1


def delete(m: Any) -> Any:
    if hasattr(m, "extra"):
        del m.extra, m.size, m.array


def swap(m: Any) -> Any:
    m.w, m.v = m.v, m.w
    m.parts[0], m.table["k"] = m.table["k"], m.parts[0]


def rebind(m: Any) -> Any:
    m.w = nnx.Param(m.w + 1)
    m.inner = Inner()
    return m.w, m.inner


def tie(m: Any) -> Any:
    m.v = m.w
    m.cycle = m
    m.inner.up = (m, 1)


def grow(m: Any) -> Any:
    m.parts.append(nnx.Param(m.w * 3))
    m.parts.insert(0, m.parts.pop(1))
    m.table["new"] = [m.w]
    m.table.pop("k", None)


def annotate(m: Any) -> Any:
    m.count.set_metadata(note="seen", more=1)
    m.w.set_metadata(axes=("a",))
    m.count += 1


def give_back(m: Any) -> Any:
    return {"same": m, "part": [m.inner, m.w], "new": nnx.Param(m.w + 1), "n": 3}


def do_nothing(m: Any) -> Any:
    return None


EFFECTS = {
    f.__name__: f
    for f in (
        write,
        write_array,
        write_below,
        add,
        delete,
        swap,
        rebind,
        tie,
        grow,
        annotate,
        give_back,
        do_nothing,
    )
}


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("way", WAYS)
def test_d56_d59_d60_d62_a_call_does_what_the_plain_call_does(way: str, effect: str):
    """Values, structure, sharing, metadata and identity agree, on each of 3 calls."""
    body, plain_model, model = EFFECTS[effect], Net(), Net()
    compiled = WAYS[way](body, model)
    known = Correspondence(reachable([plain_model]), reachable([model]))
    for _ in range(3):
        known.check(body(plain_model), compiled())


@pytest.mark.parametrize(
    ("way", "effect"),
    [(way, effect) for way in WAYS for effect in ("write", "add")]
    + [(way, effect) for way in ("argument", "closure") for effect in EFFECTS],
)
def test_d61_an_exception_changes_nothing(way: str, effect: str):
    def failing(m: Any) -> Any:
        EFFECTS[effect](m)
        raise RuntimeError("on purpose")

    model = Net()
    compiled = WAYS[way](failing, model)
    before = snapshot(model)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="on purpose"):
            compiled()
        before.check()
    np.testing.assert_array_equal(nnx.jit(lambda m: m.w + m.array)(model), [1.0, 2.0])


@pytest.mark.parametrize(
    ("effect", "count"),
    [(write, 1), (write_array, 1), (write_below, 1), (do_nothing, 1), (give_back, 1)]
    + [(swap, 1), (delete, 2), (annotate, 2), (tie, 2)],
)
@pytest.mark.parametrize("way", WAYS)
def test_d56_traces(way: str, effect: Any, count: int):
    """Writing values never retraces; a new structure is traced once."""
    body, traces = counted(effect)
    compiled = WAYS[way](body, Net())
    for _ in range(4):
        compiled()
    assert len(traces) == count


# D56: the cache


def test_d56_equal_structures_share_a_program():
    step, traces = jitted(write)
    models = [Net(seed) for seed in range(3)]
    for _ in range(2):
        for model in models:
            step(model)
    assert len(traces) == 1
    assert [int(model.count[...]) for model in models] == [2, 2, 2]
    np.testing.assert_array_equal(models[1].w, [4.0, 8.0])


def test_d56_fresh_models_do_not_retrace_when_captured_by_a_rebound_name():
    step, traces = counted(write)
    compiled = by_global(step, Net())
    global MODEL
    for seed in range(3):
        MODEL = Net(seed)
        compiled()
        assert int(MODEL.count[...]) == 1
    assert len(traces) == 1


def test_d56_shapes_and_dtypes_retrace():
    step, traces = jitted(lambda m: m.w * 2)
    model = Net()
    step(model)
    model.w.value = jnp.ones(3)
    assert step(model).shape == (3,)
    model.w.value = jnp.ones(3, jnp.bfloat16)
    assert step(model).dtype == jnp.bfloat16
    assert len(traces) == 3
    model.w.value = jnp.zeros(3)
    step(model)
    assert len(traces) == 3


def test_d56_eager_writes_between_calls_are_seen():
    step, traces = jitted(lambda m: m.w + m.array)
    model = Net()
    for value in (1.0, 2.0):
        model.w[...] = value
        model.array = jnp.full(2, value)
        np.testing.assert_array_equal(step(model), [2 * value] * 2)
    assert len(traces) == 1


# D57: statics


def test_d57_changing_a_static_attribute_retraces_and_changing_back_does_not():
    step, traces = jitted(lambda m: m.w * m.size)
    model = Net()
    results, counts = [], []
    for size in (3, 4, 3, 4, 5):
        model.size = size
        results.append(float(step(model)[1]))
        counts.append(len(traces))
    assert results == [3.0, 4.0, 3.0, 4.0, 5.0]
    assert counts == [1, 2, 2, 2, 3]


@pytest.mark.parametrize(
    "values",
    [(1, 1.0), (1, True), (0, False), ("a", b"a"), ((1,), [1]), (0.0, -0.0), (1, "1")],
)
def test_d57_equal_looking_statics_are_told_apart(values: tuple[Any, Any]):
    """`==` alone would take one for the other."""
    step, traces = jitted(lambda m: plain(m.size))
    model = Net()
    for value in values:
        model.size = value
        assert step(model) == plain(value)
    assert len(traces) == 2


def test_d57_a_change_below_retraces():
    step, traces = jitted(lambda m: (m.inner.count, len(m.parts)))
    model = Net()
    step(model)
    model.inner.flag = 1
    step(model)
    model.parts.append("more")
    assert step(model)[1] == 3
    assert len(traces) == 3


def test_d57_unrelated_structural_changes_do_not_retrace():
    step, traces = jitted(write)
    model, other = Net(), Net()
    step(model)
    nnx.jit(write)(other)
    for number in range(3):
        other.size = number
        step(model)
    assert len(traces) == 1 and int(model.count[...]) == 4


# D58: aliasing


@pytest.mark.parametrize(
    "call",
    [
        lambda f, v: f(v, v),
        lambda f, v: f(a=v, b=v),
        lambda f, v: f(v, b=v),
    ],
    ids=["positions", "keywords", "both"],
)
def test_d58_one_variable_as_two_arguments_is_one(call: Any):
    def add_to_both(a: Any, b: Any) -> Any:
        assert a is b
        a += 1
        b += 1
        return a + b

    variable = nnx.Variable(jnp.zeros(()))
    step, traces = jitted(add_to_both)
    assert [float(call(step, variable)) for _ in range(2)] == [4.0, 8.0]
    assert float(variable[...]) == 4.0
    assert len(traces) == 1


def test_d58_one_variable_inside_two_objects():
    def shift(a: Any, b: Any) -> None:
        assert a.w is b.w
        a.w[...] = a.w + 1

    one, two = Net(), Net()
    two.w = one.w
    step, traces = jitted(shift)
    for _ in range(2):
        step(one, two)
    np.testing.assert_array_equal(two.w, [2.0, 3.0])
    assert one.w is two.w and len(traces) == 1


def test_d58_sharing_between_arguments_is_part_of_the_structure():
    """The program for two Variables must not be used for one and vice versa."""

    def both(a: Any, b: Any) -> Any:
        a += 1
        b += 10
        return a + b

    step, traces = jitted(both)
    a, b = nnx.Variable(jnp.zeros(())), nnx.Variable(jnp.zeros(()))
    assert float(step(a, b)) == 11.0
    assert float(step(a, a)) == 24.0
    assert float(step(a, b)) == 33.0
    assert float(step(b, b)) == 62.0
    assert (float(a[...]), float(b[...])) == (13.0, 31.0)
    assert len(traces) == 2


def test_d58_a_variable_passed_and_inside_an_object():
    def both(m: Any, v: Any) -> Any:
        m.w[...] += 1
        v[...] += 10
        return m.w

    step, traces = jitted(both)
    model, other = Net(), nnx.Param(jnp.zeros(2))
    for argument, wanted in ((model.w, 11.0), (other, 12.0), (model.w, 23.0)):
        assert step(model, argument) is model.w
        assert float(model.w[0]) == wanted
    assert float(other[0]) == 10.0 and len(traces) == 2


def test_d58_passed_and_captured_is_one_object():
    model = Net()

    def both(m: Any) -> None:
        assert m is model
        m.count += 1
        model.count += 1

    step, traces = jitted(both)
    for _ in range(2):
        step(model)
    assert int(model.count[...]) == 4 and len(traces) == 1


# D60: what is returned


def test_d60_new_objects_keep_their_sharing():
    def make(x: Any) -> Any:
        inner = Inner()
        inner.count.value = x
        one, two = Net(), Net()
        one.inner = two.inner = inner
        one.other = two
        two.other = one
        return [one, two, inner.count]

    step, traces = jitted(make)
    for x in (3.0, 4.0):
        one, two, count = step(jnp.asarray(x))
        assert one.inner is two.inner and one.inner.count is count
        assert one.other is two and two.other is one
        assert float(count[...]) == x
        one.inner.count += 1
        assert float(two.inner.count[...]) == x + 1
    assert len(traces) == 1


def test_d60_a_returned_state_holds_the_very_variables():
    model = Net()
    state = nnx.jit(lambda m: nnx.state(m, nnx.Param))(model)
    assert state["w"] is model.w and state["parts"][0] is model.parts[0]


def test_d60_a_new_object_may_refer_to_an_argument():
    def wrap(m: Any) -> Any:
        new = Net()
        new.inner = m
        new.v = m.w
        return new

    model = Net()
    new = nnx.jit(wrap)(model)
    assert new.inner is model and new.v is model.w


@pytest.mark.parametrize(
    "value",
    [3, 2.5, True, "text", None, ("a", 1), {"k": ["b", 2]}, nnx.relu, jnp.bfloat16],
    ids=lambda value: type(value).__name__,
)
def test_d60_plain_values_are_returned_as_they_are(value: Any):
    step, _ = jitted(lambda x: (x, value))
    for _ in range(2):
        result = step(1.0)[1]
        assert result == value and type(result) is type(value)


def test_d60_containers_come_back_as_they_are():
    @dataclasses.dataclass
    class Plain:
        x: Any

    def make(x: Any) -> Any:
        return {"b": (x, [x + 1]), "a": None, "p": Plain(3)}

    result = nnx.jit(make)(1)
    assert list(result) == ["b", "a", "p"]
    assert type(result["b"]) is tuple and type(result["b"][1]) is list
    assert result["a"] is None and result["p"].x == 3


# D62, D64: captured objects


def test_d62_a_rebound_global_is_picked_up():
    global MODEL
    body, traces = counted(lambda m: m.w * 2)
    compiled = by_global(body, Net(1))
    assert float(compiled()[0]) == 2.0
    MODEL = Net(5)
    assert float(compiled()[0]) == 10.0
    assert len(traces) == 1
    MODEL = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'w'"):
        compiled()
    MODEL = Net(1)
    assert float(compiled()[0]) == 2.0


def test_d62_a_rebound_closure_is_picked_up():
    model = Net(1)
    step, traces = jitted(lambda: (model.bump(1), model.w * 2)[1])
    assert float(step()[0]) == 2.0
    first, model = model, Net(5)
    assert float(step()[0]) == 10.0
    assert len(traces) == 1
    assert (int(first.count[...]), int(model.count[...])) == (1, 1)


def test_d62_a_container_in_the_closure_may_change():
    models = [Net(1)]
    step, traces = jitted(lambda: sum(m.w for m in models))
    assert float(step()[0]) == 1.0
    models.append(Net(5))
    assert float(step()[0]) == 6.0
    models[0] = Net(7)
    assert float(step()[0]) == 12.0
    assert len(traces) == 2


def test_d62_an_object_seen_only_after_a_rebinding():
    helper = None
    model = Net(3)

    def step(x: Any) -> Any:
        return x if helper is None else helper(x)

    compiled = nnx.jit(step)
    assert float(compiled(1.0)) == 1.0
    helper = lambda x: x * model.w[0]  # noqa: E731
    assert float(compiled(1.0)) == 3.0
    model.w[...] = 7.0
    assert float(compiled(1.0)) == 7.0


@pytest.mark.parametrize("way", CAPTURED)
def test_d64_a_captured_variable_has_its_current_value(way: str):
    model = Net()
    body, traces = counted(lambda m: m.w + m.array)
    compiled = CAPTURED[way](body, model)
    for value in (1.0, 2.0, 3.0):
        model.w[...] = value
        model.array = jnp.full(2, value)
        np.testing.assert_array_equal(compiled(), [2 * value] * 2)
    assert len(traces) == 1


def test_d62_bare_variables_are_captured():
    variable = nnx.Param(jnp.ones(2))
    pair = (nnx.Variable(0), "s")
    step, traces = jitted(lambda: (pair[0].set_value(pair[0] + 1), variable * 2)[1])
    for value in (1.0, 4.0):
        variable[...] = value
        assert float(step()[0]) == 2 * value
    assert int(pair[0].value) == 2 and len(traces) == 1


def test_captured_constants_that_are_rebound_retrace():
    global FACTOR
    FACTOR, factor = 2.0, 3.0
    step, traces = jitted(lambda x: x * FACTOR * factor)
    results = [float(step(1.0))]
    FACTOR = 5.0
    results.append(float(step(1.0)))
    factor = 7.0
    results.append(float(step(1.0)))
    FACTOR, factor = 2.0, 3.0
    results.append(float(step(1.0)))
    assert results == [6.0, 15.0, 35.0, 6.0]
    assert len(traces) == 3


@pytest.mark.parametrize("kind", ["jax array", "numpy array"])
def test_captured_arrays_that_are_rebound_are_seen(kind: str):
    make = jnp.full if kind == "jax array" else np.full
    array = make(2, 1.0, jnp.float32)
    step, _ = jitted(lambda x: x * array)
    assert float(step(1.0)[0]) == 1.0
    array = make(2, 3.0, jnp.float32)
    assert float(step(1.0)[0]) == 3.0


def test_captured_numpy_arrays_and_dicts_that_change_in_place_are_seen():
    array, config = np.ones(2, np.float32), {"scale": 2.0, "names": ["a"]}
    step, traces = jitted(lambda x: x * array * config["scale"] * len(config["names"]))
    assert float(step(1.0)[0]) == 2.0
    array[:] = 3.0
    assert float(step(1.0)[0]) == 6.0
    config["scale"] = 5.0
    assert float(step(1.0)[0]) == 15.0
    config["names"].append("b")
    assert float(step(1.0)[0]) == 30.0
    assert len(traces) == 4


def test_captured_functions_that_are_rebound_retrace():
    def activation(x: Any) -> Any:
        return x + 1

    step, traces = jitted(lambda x: activation(x))
    assert float(step(1.0)) == 2.0

    def activation(x: Any) -> Any:  # noqa: F811
        return x + 5

    assert float(step(1.0)) == 6.0
    assert len(traces) == 2


def test_a_captured_mock_of_a_helper_sees_what_the_helper_sees():
    scale = nnx.Param(jnp.ones(()))

    @functools.wraps(abs)
    def helper(x: Any) -> Any:
        return x * scale

    step, traces = jitted(lambda x: helper(x))
    for value in (2.0, 3.0):
        scale[...] = value
        assert float(step(1.0)) == value
    assert len(traces) == 1


# D63: hidden objects


class Registry:
    """A plain object in front of a model, out of sight."""

    def __init__(self, **fields: Any):
        self.__dict__.update(fields)


REGISTRY = Registry()
HIDDEN = {
    "global object": lambda: REGISTRY.model,
    "two levels": lambda trainer: trainer.model.inner_model,
    "a call": lambda: lookup("model"),
}


def lookup(name: str) -> Any:
    return getattr(sys.modules[__name__].REGISTRY, name)


USES = {
    "read": lambda m: m.w * 2,
    "written": lambda m: m.w.set_value(m.array),
    "changed": lambda m: setattr(m, "size", 5),
    "returned": lambda m: m,
    "deleted": lambda m: delattr(m, "extra"),
    "annotated": lambda m: m.w.set_metadata(note=1),
}


@pytest.mark.parametrize(
    ("place", "use"),
    [("global object", use) for use in USES]
    + [(place, use) for place in HIDDEN for use in ("read", "changed")],
)
def test_d63_a_hidden_object_raises_and_is_named(place: str, use: str):
    model, find = Net(), HIDDEN[place]
    REGISTRY.model = model
    args = (Trainer(Registry(inner_model=model)),) if place == "two levels" else ()
    before = snapshot(model)
    step = nnx.jit(lambda *args: USES[use](find(*args)))
    for _ in range(2):
        with pytest.raises(
            nnx.TraceContextError,
            match=r"(Param 'Net\.w'|Net).* inside nnx\.jit of '<lambda>', which does "
            r"not visibly see it.*Nothing was changed\. Pass it as an argument",
        ):
            step(*args)
        before.check()
    USES[use](model)  # still usable


def test_d63_a_hidden_bare_array_is_not_seen_but_a_hidden_variable_is():
    REGISTRY.variable = nnx.Variable(jnp.ones(2))
    with pytest.raises(
        nnx.TraceContextError, match=r"Variable.* is read inside nnx\.jit of 'read'"
    ):

        @nnx.jit
        def read() -> Any:
            return REGISTRY.variable * 2

        read()
    assert float(REGISTRY.variable[0]) == 1.0


PLAIN = {
    "jit": lambda f: jax.jit(f)(1.0),
    "grad": lambda f: jax.grad(f)(1.0),
    "vmap": lambda f: jax.vmap(f)(jnp.ones(2)),
    "scan": lambda f: jax.lax.scan(lambda c, x: (c, f(x)), 0, jnp.ones(2)),
    "cond": lambda f: jax.lax.cond(True, f, lambda x: x, 1.0),
    "while_loop": lambda f: jax.lax.while_loop(
        lambda x: x < 3, lambda x: x + f(x), 1.0
    ),
    "checkpoint": lambda f: jax.jit(jax.checkpoint(f))(1.0),
    "eval_shape": lambda f: jax.eval_shape(f, 1.0),
    "make_jaxpr": lambda f: jax.make_jaxpr(f)(1.0),
    "vjp": lambda f: jax.vjp(f, 1.0),
    "linearize": lambda f: jax.linearize(f, 1.0),
}
WRITES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "value": (lambda m, x: m.w.set_value(x), r"Param 'Net\.w'"),
    "all": (lambda m, x: m.w.__setitem__(..., x), r"Param 'Net\.w'"),
    "index": (lambda m, x: m.w.__setitem__(0, x), r"Param 'Net\.w'"),
    "augmented": (lambda m, x: m.w.__iadd__(x), r"Param 'Net\.w'"),
    "constant": (lambda m, x: m.w.set_value(jnp.ones(2)), r"Param 'Net\.w'"),
    "metadata": (lambda m, x: m.w.set_metadata(note=1), r"Param 'Net\.w'"),
    "attribute": (lambda m, x: setattr(m, "new", x), r"Net\.new"),
    "static": (lambda m, x: setattr(m, "size", 9), r"Net\.size"),
    "array": (lambda m, x: setattr(m, "array", x), r"Net\.array"),
    "deletion": (lambda m, x: delattr(m, "extra"), r"Net\.extra"),
    "List": (lambda m, x: m.parts.append(x), r"List 'Net\.parts'"),
    "Dict": (lambda m, x: m.table.update(z=x), r"Dict 'Net\.table'"),
}


@pytest.mark.parametrize(
    ("transform", "write"),
    [("jit", write) for write in WRITES]
    + [(transform, "value") for transform in PLAIN]
    + [("scan", "attribute"), ("grad", "attribute"), ("vmap", "List")],
)
def test_d63_writing_an_outer_object_in_a_plain_transform_raises(
    transform: str, write: str
):
    action, name = WRITES[write]
    model = Net()

    def function(x: Any) -> Any:
        action(model, x)
        return x * 1.0

    before = snapshot(model)
    with pytest.raises(
        nnx.TraceContextError,
        match=rf"{name} cannot be changed here: it lives outside the plain JAX "
        r"transform .* Nothing was changed\. Use the nnxlite transform .*nnx\.jit",
    ):
        PLAIN[transform](function)
    before.check()
    action(model, jnp.ones(2) if write != "index" else 1.0)  # usable outside


@pytest.mark.parametrize("transform", PLAIN)
def test_d63_reading_an_outer_object_in_a_plain_transform_is_allowed(transform: str):
    model = Net(1)
    before = snapshot(model)
    PLAIN[transform](lambda x: (x * model.w * model.array * model.size).sum())
    before.check()


@pytest.mark.parametrize("transform", sorted(set(PLAIN) - {"eval_shape", "make_jaxpr"}))
def test_d63_plain_transforms_inside_jit_follow_the_same_rules(transform: str):
    model = Net(1)

    @nnx.jit
    def read(m: Any) -> Any:
        PLAIN[transform](lambda x: (x * m.w).sum())
        m.count += 1

    read(model)
    assert int(model.count[...]) == 1
    before = snapshot(model)

    @nnx.jit
    def written(m: Any) -> Any:
        m.v[...] = 1.0
        PLAIN[transform](lambda x: (m.w.set_value(x), x * 1.0)[1])

    with pytest.raises(
        nnx.TraceContextError, match=r"Param 'Net\.w' cannot be changed here"
    ):
        written(model)
    before.check()


# D65, D66, D71: nesting


INNER = {
    "jit": lambda f: nnx.jit(f)(1.0),
    "grad": lambda f: nnx.grad(f)(1.0),
    "value_and_grad": lambda f: nnx.value_and_grad(f)(1.0),
    "eval_shape": lambda f: nnx.eval_shape(f, 1.0).shape,
    "jax.grad": lambda f: jax.grad(f)(1.0),
    "jax.vmap": lambda f: jax.vmap(f)(jnp.ones(2)),
    "jax.checkpoint": lambda f: jax.checkpoint(f)(1.0),
}


@pytest.mark.parametrize("transform", INNER)
@pytest.mark.parametrize("way", ["argument", "closure", "global", "self of a Trainer"])
def test_d65_an_inner_transform_may_read_what_the_outer_one_was_given(
    way: str, transform: str
):
    def body(m: Any) -> Any:
        m.w[...] = m.w + 1  # the inner transform sees the new value
        return INNER[transform](lambda x: (x * m.w * m.array).sum())

    plain_model, model = Net(), Net()
    compiled = WAYS[way](body, model)
    for _ in range(2):
        expected, result = body(plain_model), compiled()
        jax.tree.map(np.testing.assert_array_equal, expected, result)
    np.testing.assert_array_equal(model.w, plain_model.w)


CACHING: dict[str, Callable[..., Any]] = {
    "jit": lambda f: jax.jit(f),
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, x: (c, f(x)), 0, x[None])[1][0],
    "scan body": lambda f: by_scan(f),
    "cond": lambda f: lambda x: jax.lax.cond(x.sum() > -1, f, f, x),
    "switch": lambda f: lambda x: jax.lax.switch(0, [f, f], x),
    "checkpoint": lambda f: jax.checkpoint(f),
    "while_loop": lambda f: by_while_loop(f),
    "map": lambda f: lambda x: jax.lax.map(f, x[None])[0],
    "vmap": lambda f: lambda x: jax.vmap(f)(x[None])[0],
    "custom_jvp": lambda f: by_custom_jvp(f),
}


def by_scan(f: Any) -> Any:
    def body(carry: Any, x: Any) -> Any:
        return carry, f(x)

    return lambda x: jax.lax.scan(body, 0, x[None])[1][0]


def by_while_loop(f: Any) -> Any:
    def body(state: Any) -> Any:
        return state[0] + 1, f(state[1])

    def is_going_on(state: Any) -> Any:
        return state[0] < 1

    return lambda x: jax.lax.while_loop(is_going_on, body, (0, x))[1]


def by_custom_jvp(f: Any) -> Any:
    function = jax.custom_jvp(f)
    function.defjvp(lambda primals, tangents: (f(*primals), tangents[0]))
    return function


@pytest.mark.parametrize("eager_first", [False, True])
@pytest.mark.parametrize("transform", CACHING)
def test_d65_a_function_that_jax_caches_reads_the_present_level(
    transform: str, eager_first: bool
):
    """JAX keeps the trace of a function, with what reading a Variable gave in it."""
    model, x = Net(1), jnp.ones(2)
    use = CACHING[transform](lambda x: x * model.w)  # made once
    if eager_first:
        np.testing.assert_array_equal(use(x), [1.0, 2.0])
    step = nnx.jit(lambda m, x, mode: use(x))
    for mode in ("a", "a", "b", "b"):
        model.w[...] = model.w + 1
        np.testing.assert_array_equal(step(model, x, mode), model.w)


@pytest.mark.parametrize("transform", CACHING)
def test_d65_a_function_that_jax_caches_sees_what_was_written_in_between(
    transform: str,
):
    model, x = Net(1), jnp.ones(2)
    use = CACHING[transform](lambda x: x * model.w)  # made once

    @nnx.jit
    def step(m: Any, x: Any) -> Any:
        first = use(x)
        m.w[...] = m.w + 1
        return first, use(x)

    for calls in (0, 1):
        first, second = step(model, x)
        np.testing.assert_array_equal(first, [1.0 + calls, 2.0 + calls])
        np.testing.assert_array_equal(second, [2.0 + calls, 3.0 + calls])


ARRAYS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "attribute": (lambda m: m.x, lambda m, x: setattr(m, "x", x)),
    "List": (lambda m: m.l[0], lambda m, x: m.l.__setitem__(0, x)),
    "Dict": (lambda m: m.d["k"], lambda m, x: m.d.update(k=x)),
    "tuple": (lambda m: m.t[0], lambda m, x: setattr(m, "t", (x, 1))),
}


@pytest.mark.parametrize("eager_first", [False, True])
@pytest.mark.parametrize("place", ARRAYS)
@pytest.mark.parametrize("transform", ["jit", "scan body", "cond", "checkpoint"])
def test_d65_a_function_that_jax_caches_reads_bare_arrays_too(
    transform: str, place: str, eager_first: bool
):
    read, write = ARRAYS[place]
    model, x = Inner(), jnp.ones(2)
    model.x, model.l, model.d, model.t = x, [x], {"k": x}, (x, 1)
    use = CACHING[transform](lambda x: x * read(model))  # made once
    if eager_first:
        use(x)

    @nnx.jit
    def step(m: Any, x: Any, mode: str) -> Any:
        first = use(x)
        write(m, read(m) + 1)
        return first, use(x)

    for calls, mode in enumerate("aabb"):
        first, second = step(model, x, mode)
        np.testing.assert_array_equal(first, [1.0 + calls] * 2)
        np.testing.assert_array_equal(second, [2.0 + calls] * 2)


@pytest.mark.parametrize("inner", ["jit", "grad"])
@pytest.mark.parametrize("way", ["argument", "closure", "global", "self of a Trainer"])
def test_d66_a_captured_module_may_be_passed_on(way: str, inner: str):
    def body(m: Any) -> Any:
        if inner == "jit":
            return nnx.jit(lambda m: (m.w * 3).sum())(m)
        return nnx.grad(lambda m: (m.w**2).sum())(m)["w"].value.sum()

    model = Net(1)
    before = snapshot(model)
    compiled = WAYS[way](body, model)
    for _ in range(2):
        assert float(compiled()) == (9.0 if inner == "jit" else 6.0)
    before.check()


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("depth", [2, 3])
def test_d71_nested_jit_propagates_through_all_levels(effect: str, depth: int):
    def nested(m: Any) -> Any:
        function: Any = EFFECTS[effect]
        for _ in range(depth - 1):
            function = nnx.jit(function)
        m.v[...] = m.v + 1
        result = function(m)
        m.count += 1
        return result

    plain_model, model = Net(), Net()

    def plain(m: Any) -> Any:
        m.v[...] = m.v + 1
        result = EFFECTS[effect](m)
        m.count += 1
        return result

    step, known = (
        nnx.jit(nested),
        Correspondence(reachable([plain_model]), reachable([model])),
    )
    for _ in range(2):
        known.check(plain(plain_model), step(model))


def test_d71_an_exception_in_the_inner_jit_may_be_caught():
    @nnx.jit
    def failing(m: Any) -> None:
        m.count += 10
        m.new = 1
        raise RuntimeError("on purpose")

    @nnx.jit
    def outer(m: Any) -> None:
        m.count += 1
        try:
            failing(m)
        except RuntimeError:
            m.caught = "yes"

    model = Net()
    for calls in (1, 2):
        outer(model)
        assert int(model.count[...]) == calls
        assert model.caught == "yes" and not hasattr(model, "new")


def test_d71_inner_jit_of_a_module_made_outside_the_inner_one():
    @nnx.jit
    def outer(x: Any) -> Any:
        model = Net()
        nnx.jit(write)(model)
        model.w[...] += x
        return model

    model = outer(1.0)
    assert int(model.count[...]) == 1
    np.testing.assert_array_equal(model.w, [1.0, 3.0])


# D67: what must not outlive a trace


def test_d67_a_module_made_inside_and_leaked_cannot_be_used():
    leaked: list[Any] = []
    compiled = nnx.jit(lambda: leaked.append(Net()))
    leaked_by = compiled  # keeps the name visible
    leaked_by()
    model = leaked[0]
    for action in (
        lambda: model.w * 2,
        lambda: model.w.value,
        lambda: model.w.set_value(1.0),
        lambda: setattr(model, "size", 1),
        lambda: model.w.set_metadata(note=1),
        lambda: nnx.jit(lambda m: m.w)(model),
    ):
        with pytest.raises(
            nnx.TraceContextError,
            match=r"was made inside a transform that has ended; .*Return it from the",
        ):
            action()


def test_d67_a_leaked_variable_cannot_be_stored():
    leaked: list[Any] = []

    def leak(m: Any) -> None:
        leaked.append(nnx.Param(m.w * 2))

    model = Net()
    nnx.jit(leak)(model)
    with pytest.raises(nnx.TraceContextError, match="transform that has ended"):
        leaked[0][...]
    np.testing.assert_array_equal(model.w, [0.0, 1.0])


def test_d67_a_tracer_written_from_outside_the_trace_is_an_error_of_jax():
    leaked: list[Any] = []
    model = Net()
    nnx.jit(lambda m: leaked.append(m.w * 2))(model)
    model.v.value = leaked[0]
    with pytest.raises(jax.errors.UnexpectedTracerError, match="leaked"):
        jnp.sum(model.v[...])


def test_d67_the_callers_own_object_may_leak():
    leaked: list[Any] = []
    model = Net()
    nnx.jit(lambda m: leaked.append(m.w))(model)
    assert leaked == [model.w] or leaked[0] is model.w
    np.testing.assert_array_equal(leaked[0], [0.0, 1.0])


def test_d67_an_object_made_in_a_plain_transform_cannot_be_used_after_it():
    leaked: list[Any] = []

    @jax.jit
    def make(x: Any) -> Any:
        leaked.append(nnx.Param(x))
        leaked.append(Net())
        return x

    make(1.0)
    for action in (
        lambda: leaked[0].set_value(1.0),
        lambda: setattr(leaked[1], "size", 1),
    ):
        with pytest.raises(
            nnx.TraceContextError, match="made inside a transform that has ended"
        ):
            action()


# D68: metadata


def test_d68_metadata_changes_are_visible_outside():
    model = Net()
    step, traces = jitted(lambda m: m.count.set_metadata(note="inside", new=(1, 2)))
    for _ in range(3):
        step(model)
    assert model.count.get_metadata() == {"note": "inside", "new": (1, 2)}
    assert len(traces) == 2
    other = Net()
    step(other)
    assert other.count.note == "inside" and len(traces) == 2


def test_d68_metadata_is_static():
    step, traces = jitted(lambda m: m.count.note)
    model = Net()
    for note in ("a", "b", "a"):
        model.count.set_metadata(note=note)
        assert step(model) == note
    assert len(traces) == 2


# D69: calls


def test_d69_keyword_arguments():
    step, traces = jitted(lambda m, x, *, scale: m.w * x * scale)
    model = Net(1)
    np.testing.assert_array_equal(step(model, 2.0, scale=3.0), [6.0, 12.0])
    np.testing.assert_array_equal(step(model, 4.0, scale=1.0), [4.0, 8.0])
    assert len(traces) == 1
    np.testing.assert_array_equal(step(scale=1.0, x=2.0, m=model), [2.0, 4.0])
    np.testing.assert_array_equal(step(x=2.0, m=model, scale=1.0), [2.0, 4.0])
    assert len(traces) == 2


def test_d69_varargs_and_defaults():
    step, _ = jitted(lambda m, *xs, bias=1.0, **more: m.w * sum(xs) + bias + more["k"])
    np.testing.assert_array_equal(step(Net(), 1.0, 2.0, k=0.0), [1.0, 4.0])


def test_d69_a_wrong_call_is_the_error_of_python():
    model = Net()
    before = snapshot(model)
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'x'"):
        nnx.jit(lambda m, x: x)(model)
    before.check()


@pytest.mark.parametrize("form", ["numbers", "names", "last", "both"])
def test_d69_static_arguments(form: str):
    options: dict[str, Any] = {
        "numbers": {"static_argnums": (1, 2)},
        "names": {"static_argnames": ("n", "flag")},
        "last": {"static_argnums": (-2, -1)},
        "both": {"static_argnums": 1, "static_argnames": "flag"},
    }[form]

    def body(m: Any, n: int, flag: bool) -> Any:
        assert type(n) is int and type(flag) is bool
        return jnp.ones(n) * (2 if flag else 3)

    step, traces = jitted(body, **options)
    assert step(Net(), 2, True).shape == (2,)
    assert step(Net(), 2, True).shape == (2,)
    assert len(traces) == 1
    assert float(step(Net(), 3, False)[0]) == 3.0
    assert len(traces) == 2
    assert step(m=Net(), n=4, flag=True).shape == (4,)


def test_d69_static_arguments_of_a_bound_method_count_from_after_self():
    class Layer(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(1.0)

        def tile(self, n: int, x: Any) -> Any:
            return jnp.full(n, x) * self.w

    assert nnx.jit(Layer().tile, static_argnums=0)(3, 2.0).shape == (3,)
    assert nnx.jit(Layer().tile, static_argnames="n")(3, x=2.0).shape == (3,)


def test_d69_negative_static_argnums_of_varargs():
    step = nnx.jit(lambda *xs: jnp.full(xs[-1], xs[0]), static_argnums=-1)
    assert step(1.0, 3).shape == (3,)
    assert step(1.0, 2.0, 4).shape == (4,)


def test_d69_unhashable_static_arguments_compare_by_content():
    step, traces = jitted(lambda cfg, x: x * cfg["a"][0], static_argnums=0)
    assert float(step({"a": [2]}, 3.0)) == 6.0
    assert float(step({"a": [2]}, 3.0)) == 6.0
    assert len(traces) == 1
    config = {"a": [5]}
    assert float(step(config, 3.0)) == 15.0
    config["a"][0] = 7
    assert float(step(config, 3.0)) == 21.0
    assert len(traces) == 3


def test_d69_unknown_static_names_are_refused():
    with pytest.raises(
        ValueError, match=r"<lambda> has no argument 'mode', only \['m'"
    ):
        nnx.jit(lambda m, x: x, static_argnames="mode")
    with pytest.raises(
        ValueError, match=r"<lambda> has no argument 'mode', only \['m'"
    ):
        nnx.jit(lambda m, x: x, donate_argnames="mode")


class Mode:
    """A user's config object that compares by content."""

    def __init__(self, name: str):
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mode) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


@dataclasses.dataclass(frozen=True)
class Options:
    rate: float
    names: tuple[str, ...] = ()


UNDECLARED = {
    "str": lambda: ("train", "eval"),
    "function": lambda: (nnx.relu, nnx.gelu),
    "lambda": lambda: (lambda x: x, lambda x: x + 1),
    "partial": lambda: (
        functools.partial(jnp.sum, axis=0),
        functools.partial(jnp.sum, axis=1),
    ),
    "dtype": lambda: (jnp.dtype("float32"), jnp.dtype("bfloat16")),
    "scalar type": lambda: (jnp.float32, jnp.bfloat16),
    "None": lambda: (None, "none"),
    "class": lambda: (nnx.Linear, nnx.Conv),
    "frozen config": lambda: (Options(0.1, ("a",)), Options(0.2, ("a",))),
    "config": lambda: (Mode("a"), Mode("b")),
    "list of str": lambda: (["a", "b"], ["a", "c"]),
    "dict of str": lambda: ({"k": "a"}, {"k": "b"}),
    "ellipsis": lambda: (..., None),
    "slice": lambda: (slice(0, 1), slice(1, 2)),
    "bytes": lambda: (b"a", b"b"),
    "range": lambda: (range(2), range(3)),
    "frozenset": lambda: (frozenset({1}), frozenset({2})),
}


@pytest.mark.parametrize("position", ["positional", "keyword", "nested"])
@pytest.mark.parametrize("kind", UNDECLARED)
def test_d69_what_is_no_array_is_static_without_being_declared(
    kind: str, position: str
):
    seen = []

    def body(m: Any, value: Any) -> Any:
        seen.append(value[0] if position == "nested" else value)
        m.count += 1

    step, traces = jitted(body)
    model = Net()

    def call(value: Any) -> None:
        if position == "keyword":
            step(model, value=value)
        else:
            step(model, [value, 1] if position == "nested" else value)

    # made anew each time, as a caller would write them
    for pick in (0, 0, 1, 0, 1):
        call(UNDECLARED[kind]()[pick])
    assert len(traces) == 2
    assert int(model.count[...]) == 5


def test_d69_numbers_are_traced():
    step, traces = jitted(lambda m, x: m.w * x)
    assert [float(step(Net(1), x)[0]) for x in (1.0, 2.0, 3.0)] == [1.0, 2.0, 3.0]
    assert len(traces) == 1
    step(Net(1), 2)
    step(Net(1), True)
    step(Net(1), np.float32(2))
    assert len(traces) == 4  # as in JAX: other dtypes


def test_d69_a_fresh_function_with_equal_closure_does_not_retrace():
    def scale(by: float) -> Callable[[Any], Any]:
        return lambda x: x * by

    step, traces = jitted(lambda f, x: f(x))
    assert [float(step(scale(2.0), 1.0)) for _ in range(3)] == [2.0] * 3
    assert len(traces) == 1
    assert float(step(scale(3.0), 1.0)) == 3.0
    assert len(traces) == 2


def test_d69_a_config_without_equality_is_compared_by_identity():
    class Plain:
        rate = 2.0

    one, two = Plain(), Plain()
    step, traces = jitted(lambda cfg, x: x * cfg.rate)
    for config in (one, one, two, one):
        step(config, 1.0)
    assert len(traces) == 2


def test_d69_a_bound_method_updates_its_module():
    model = Net()
    bump = nnx.jit(model.bump)
    assert bump(2) is model and bump(3) is model
    assert int(model.count[...]) == 5


def test_d69_a_module_is_jitted_as_a_function():
    model = Net(1)
    step = nnx.jit(model)
    for calls in (1, 2):
        np.testing.assert_array_equal(step(jnp.full(2, 3.0)), [3.0, 6.0])
        assert int(model.count[...]) == calls


def test_d69_a_plain_callable_object():
    class Predict:
        def __init__(self, model: Any):
            self.model = model

        def __call__(self, x: Any) -> Any:
            return self.model(x)

    model = Net(1)
    predict = Predict(model)
    for step in (nnx.jit(predict), nnx.jit(predict.__call__)):
        np.testing.assert_array_equal(step(jnp.ones(2)), [1.0, 2.0])
        np.testing.assert_array_equal(step(jnp.ones(2)), [1.0, 2.0])
    assert int(model.count[...]) == 4


def test_d69_static_and_class_methods():
    class Factory:
        @classmethod
        @nnx.jit
        def make(cls, x: Any) -> Any:
            assert cls is Factory
            return Net(x)

        @staticmethod
        @nnx.jit
        def call(m: Any, x: Any) -> Any:
            return m(x)

    model = Factory.make(1.0)
    np.testing.assert_array_equal(Factory.call(model, jnp.ones(2)), [1.0, 2.0])
    assert int(model.count[...]) == 1


def test_d69_a_decorated_method():
    models = [Net(1), Net(2)]
    for model in models:
        np.testing.assert_array_equal(
            model.step(jnp.ones(2), scale=2.0), 2 * (jnp.arange(2.0) + model.w[0])
        )
    Net.step(models[0], jnp.ones(2))
    assert [int(m.count[...]) for m in models] == [2, 1]
    assert Net.step.__doc__ == models[0].step.func.__doc__ == "Documented."
    assert list(inspect.signature(Net.step).parameters) == ["self", "x", "scale"]


def test_d69_a_decorated_method_with_options_and_inheritance():
    class Layer(Net):
        @nnx.jit(static_argnames="n")
        def tile(self, n: int) -> Any:
            self.count += n
            return jnp.full(n, self.size)

    class Sub(Layer):
        def tile(self, n: int) -> Any:
            return super().tile(n) + 1

    model = Sub()
    np.testing.assert_array_equal(model.tile(2), [4, 4])
    np.testing.assert_array_equal(model.tile(n=2), [4, 4])
    assert int(model.count[...]) == 4


def test_d69_a_decorated_call():
    class Layer(nnx.Module):
        def __init__(self):
            self.w, self.count = nnx.Param(jnp.ones(2)), nnx.Variable(0)

        @nnx.jit
        def __call__(self, x: Any) -> Any:
            self.count += 1
            return x * self.w

    layer = Layer()
    model = nnx.Sequential(layer, nnx.relu)
    model(jnp.ones(2))
    nnx.jit(lambda m, x: m(x))(model, jnp.ones(2))
    assert int(layer.count[...]) == 2


def test_d69_decorator_forms():
    @nnx.jit
    def one(x: Any) -> Any:
        return x + 1

    @nnx.jit()
    def two(x: Any) -> Any:
        return x + 2

    @nnx.jit(static_argnums=0)
    def three(x: Any) -> Any:
        return jnp.full(x, 3.0)

    assert (float(one(1.0)), float(two(1.0)), three(3).shape) == (2.0, 3.0, (3,))
    assert one.__name__ == "one" and "one" in repr(one)


def test_d69_not_a_callable():
    with pytest.raises(TypeError, match=r"nnx\.jit needs a callable, got 3"):
        nnx.jit(3)  # pyright: ignore


def test_d69_metadata_of_the_function_is_kept():
    def documented(m: Net, x: float) -> float:
        """Tells."""
        return x

    compiled = nnx.jit(documented)
    assert compiled.__name__ == "documented" and compiled.__doc__ == "Tells."
    assert inspect.signature(compiled) == inspect.signature(documented)
    assert compiled.__wrapped__ is documented


def test_d69_jit_of_jit():
    step, traces = jitted(write)
    twice = nnx.jit(step)
    model = Net()
    for _ in range(2):
        twice(model)
    assert int(model.count[...]) == 2 and len(traces) == 1


def test_jit_partial_and_cached_partial_take_options_and_more_arguments():
    model = Net(1)
    step = nnx.jit_partial(
        lambda m, n, x: (m.bump(1), jnp.full(n, x))[1], model, static_argnums=1
    )
    assert step(2, 3.0).shape == (2,)
    cached = nnx.cached_partial(nnx.jit(lambda m, x: (m.bump(1), m.w * x)[1]), model)
    np.testing.assert_array_equal(cached(2.0), [2.0, 4.0])
    assert int(model.count[...]) == 2


# D69: ahead of time


@pytest.mark.parametrize("way", ["argument", "closure", "bound method", "Trainer"])
def test_d69_lower_and_compile_give_a_function_that_updates(way: str):
    model, body = Net(1), write
    body, traces = counted(write)
    compiled_function = WAYS[way](body, model)
    owner = getattr(compiled_function, "func", compiled_function)
    args = getattr(compiled_function, "args", ())
    before = snapshot(model)
    lowered = owner.lower(*args)
    before.check()
    assert "stablehlo" in lowered.as_text() or "func.func" in lowered.as_text()
    compiled = lowered.compile()
    assert compiled.cost_analysis()["flops"] > 0
    assert compiled.memory_analysis() is not None
    before.check()
    for calls in (1, 2):
        result = compiled(*args)
        assert int(model.count[...]) == calls
        assert float(result) == float(model.w.value.sum())
    assert len(traces) == 1


def test_d69_trace_and_its_jaxpr():
    model = Net()
    before = snapshot(model)
    traced = nnx.jit(write).trace(model)
    before.check()
    assert "mul" in str(traced.jaxpr)
    traced.lower().compile()(model)
    assert int(model.count[...]) == 1


def test_d69_a_compiled_function_takes_other_equal_objects():
    compiled = nnx.jit(write).lower(Net()).compile()
    model = Net(5)
    compiled(model)
    np.testing.assert_array_equal(model.w, [10.0, 12.0])


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "size", 4),
        lambda m: delattr(m, "extra"),
        lambda m: m.w.set_metadata(note=1),
        lambda m: setattr(m, "v", m.w),
        lambda m: setattr(m.w, "value", jnp.ones(3)),
    ],
    ids=["static", "deleted", "metadata", "tied", "shape"],
)
def test_d69_a_compiled_function_refuses_another_structure(change: Any):
    """It was compiled for size 3: answering for size 4 would be a stale result."""
    model = Net()
    compiled = nnx.jit(lambda m: (m.bump(1), m.w * m.size)[1]).lower(model).compile()
    change(model)
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError), match=r"compiled (for|with)|lower"):
        compiled(model)
    before.check()


def test_d69_eval_shape_of_a_compiled_function():
    model = Net()
    before = snapshot(model)
    result = nnx.jit(lambda m, x: (m(x), m)).eval_shape(model, jnp.ones((3, 2)))
    before.check()
    assert result[0].shape == (3, 2) and result[1].w.shape == (2,)


def test_clear_cache():
    step, traces = jitted(write)
    model = Net()
    step(model)
    step.clear_cache()
    step(model)
    assert len(traces) == 2 and int(model.count[...]) == 2


# D70: donation


def buffers(*variables: Any) -> list[Any]:
    return [variable.raw_value for variable in variables]


def pointers(*variables: Any) -> list[int]:
    """Where the values lie; a donated buffer is used again."""
    return [x.unsafe_buffer_pointer() for x in buffers(*variables)]


def test_d70_what_somebody_else_holds_is_not_given_away():
    model = Net()
    step = nnx.jit(lambda: model.w.set_value(model.w + 1), donate="state")
    step()
    target, old, state = nnx.clone(model), model.w.value, nnx.state(model)
    for _ in range(2):
        step()
    np.testing.assert_array_equal(model.w, [3.0, 4.0])
    np.testing.assert_array_equal(target.w, [1.0, 2.0])
    np.testing.assert_array_equal(old, [1.0, 2.0])
    assert state.w is model.w
    place = pointers(model.w)
    step()
    assert pointers(model.w) == place


def test_d70_a_value_that_was_given_away_is_named():
    model = Net()
    target = nnx.clone(model)
    nnx.jit(lambda m: m.w.set_value(m.w + 1), donate_argnums=0)(model)
    with pytest.raises(
        (RuntimeError, ValueError), match=r"values are gone, of .*arrays=True"
    ):
        nnx.jit(lambda m: m.w.sum())(target)
    with pytest.raises((RuntimeError, ValueError), match=r"gone, of .*Param"):
        nnx.jit(lambda: target.w.sum())()


@pytest.mark.parametrize("form", ["argnums", "argnames", "negative"])
def test_d70_donated_buffers_are_deleted_and_the_module_stays_valid(form: str):
    options: dict[str, Any] = {
        "argnums": {"donate_argnums": 0},
        "argnames": {"donate_argnames": "m"},
        "negative": {"donate_argnums": (-2,)},
    }[form]

    def body(m: Any, x: Any) -> None:
        m.w[...] = m.w + x

    step, traces = jitted(body, **options)
    model = Net()
    for calls in (1, 2, 3):
        old = buffers(model.w, model.v, model.inner.count)
        step(model, 1.0)
        assert [x.is_deleted() for x in old] == [True, True, True]
        np.testing.assert_array_equal(model.w, jnp.arange(2.0) + calls)
        np.testing.assert_array_equal(model.v, [0.0, 0.0])
        assert int(model.inner.count[...]) == 0
        np.testing.assert_array_equal(model.array, [1.0, 1.0])
    assert len(traces) == 1


def test_d70_other_arguments_are_kept():
    model, other = Net(), Net()
    x = jnp.ones(2)
    step = nnx.jit(lambda m, o, x: m.w.set_value(o.w + x), donate_argnums=0)
    step(model, other, x)
    assert not other.w.value.is_deleted() and not x.is_deleted()


def test_d70_donated_arrays_are_deleted():
    x, y = jnp.ones(4), jnp.ones(4)
    step = nnx.jit(lambda x, y: x + y, donate_argnums=0)
    np.testing.assert_array_equal(step(x, y), [2.0] * 4)
    assert x.is_deleted() and not y.is_deleted()
    with pytest.raises((RuntimeError, ValueError), match="deleted (or donated|with)"):
        step(x, y)


def test_d70_donated_keyword_arguments():
    model = Net()
    step = nnx.jit(lambda *, m: m.w.set_value(m.w + 1), donate_argnames="m")
    old = buffers(model.w, model.v)
    step(m=model)
    assert [x.is_deleted() for x in old] == [True, True]
    np.testing.assert_array_equal(model.w, [1.0, 2.0])


@pytest.mark.parametrize("way", ["argument", "closure", "global", "Trainer"])
def test_d70_donate_state_gives_away_what_is_overwritten(
    way: str, monkeypatch: pytest.MonkeyPatch
):
    jit = nnx.jit
    monkeypatch.setattr(nnx, "jit", functools.partial(jit, donate="state"))
    model = Net()
    model.parts[0].value = jnp.ones(3)

    def body(m: Any) -> Any:
        m.w[...] = m.w * 2
        m.inner.count += 1
        return m.v.sum()

    body, traces = counted(body)
    compiled = WAYS[way](body, model)
    for calls in (1, 2, 3):
        written = pointers(model.w)
        kept = buffers(model.v, model.parts[0], model.count)
        compiled()
        assert pointers(model.w) == written
        for variable, old in zip(
            (model.v, model.parts[0], model.count), kept, strict=True
        ):
            assert variable.raw_value is old and not old.is_deleted()
        assert int(model.inner.count[...]) == calls
        assert float(model.w[1]) == 2.0**calls
    assert len(traces) == 1


@pytest.mark.parametrize(
    "options", [{"donate": "state"}, {"donate_argnums": 0}], ids=["state", "argnums"]
)
def test_d70_a_buffer_held_twice(options: dict[str, Any]):
    """Two Variables over one array, as nnx.clone makes them."""
    model = Net()
    model.online = nnx.Param(jnp.ones(2))
    model.target = nnx.clone(model.online)
    assert model.online.value is model.target.value

    def body(m: Any) -> None:
        m.online[...] = m.online + 1
        m.target[...] = m.target * 10

    step, traces = jitted(body, **options)
    for _ in range(3):
        step(model)
    np.testing.assert_array_equal(model.online, [4.0, 4.0])
    np.testing.assert_array_equal(model.target, [1000.0, 1000.0])
    assert len(traces) == 1
    model.target.value = model.online.value  # again
    step(model)
    np.testing.assert_array_equal(model.online, [5.0, 5.0])
    np.testing.assert_array_equal(model.target, [40.0, 40.0])


@pytest.mark.parametrize(
    "options", [{"donate": "state"}, {"donate_argnums": 0}], ids=["state", "argnums"]
)
def test_d70_a_buffer_held_by_a_variable_that_is_not_donated(options: dict[str, Any]):
    """The other holder must not be left with a deleted buffer."""
    model, other = Net(), Net()
    other.v.value = model.w.value
    model.array = model.w.value

    def body(m: Any, o: Any) -> Any:
        m.w[...] = m.w + 1
        return o.v + m.array

    step = nnx.jit(body, **options)
    np.testing.assert_array_equal(step(model, other), [0.0, 2.0])
    np.testing.assert_array_equal(model.w, [1.0, 2.0])
    np.testing.assert_array_equal(other.v, [0.0, 1.0])
    np.testing.assert_array_equal(model.array, [0.0, 1.0])


@pytest.mark.parametrize(
    "new",
    [lambda w: w[:1], lambda w: w.astype(jnp.bfloat16), lambda w: jnp.ones((2, 2))],
    ids=["smaller", "dtype", "larger"],
)
def test_d70_a_buffer_that_cannot_be_reused_is_not_donated(new: Any):
    """No warning: warnings are errors here."""
    model = Net()
    expected = new(model.w.value)
    nnx.jit(lambda m: m.w.set_value(new(m.w[...])), donate="state")(model)
    assert model.w.dtype == expected.dtype
    np.testing.assert_array_equal(model.w[...], expected)
    np.testing.assert_array_equal(model.v, [0.0, 0.0])


@pytest.mark.parametrize(
    "options", [{"donate": "state"}, {"donate_argnums": 0}], ids=["state", "argnums"]
)
@pytest.mark.parametrize("effect", EFFECTS)
def test_d70_donation_changes_no_result(effect: str, options: dict[str, Any]):
    body, plain_model, model = EFFECTS[effect], Net(), Net()
    compiled = nnx.jit(body, **options)
    known = Correspondence(reachable([plain_model]), reachable([model]))
    for _ in range(3):
        known.check(body(plain_model), compiled(model))


@pytest.mark.parametrize(
    "options", [{"donate": "state"}, {"donate_argnums": 0}], ids=["state", "argnums"]
)
def test_d70_an_exception_donates_nothing(options: dict[str, Any]):
    def failing(m: Any) -> None:
        write(m)
        raise RuntimeError("on purpose")

    model = Net()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        nnx.jit(failing, **options)(model)
    before.check()
    assert not model.w.value.is_deleted()


def test_d70_donation_saves_the_copy():
    model = Net()
    model.w.value = jnp.ones(1024)

    def body(m: Any) -> None:
        m.w[...] = m.w * 2

    def aliased(**options: Any) -> int:
        compiled = nnx.jit(body, **options).lower(model).compile()
        return compiled.memory_analysis().alias_size_in_bytes

    assert aliased() == 0
    assert aliased(donate="state") >= 4096
    assert aliased(donate_argnums=0) >= 4096


def test_d70_donation_inside_another_jit_is_harmless():
    inner = nnx.jit(write, donate="state")
    model = Net()
    old = model.w.value

    @nnx.jit
    def outer(m: Any) -> None:
        inner(m)
        inner(m)

    outer(model)
    assert not old.is_deleted() and int(model.count[...]) == 2


def test_d70_values_that_are_no_jax_arrays():
    model = Net()
    model.w.value, model.v.value = np.ones(2, np.float32), 3.0
    step = nnx.jit(lambda m: (m.w.set_value(m.w + 1), m.v.set_value(m.v + 1))[0:0])
    donating = nnx.jit(
        lambda m: (m.w.set_value(m.w + 1), m.v.set_value(m.v + 1))[0:0], donate="state"
    )
    step(model)
    donating(model)
    np.testing.assert_array_equal(model.w, [3.0, 3.0])
    assert float(model.v[...]) == 5.0


def test_d70_a_buffer_that_no_result_fits_into_is_not_donated():
    model = Net()
    step = nnx.jit(lambda m: m.w.set_value(m.w[:1]), donate_argnums=0)
    old = model.w.value
    step(model)
    assert not old.is_deleted()
    np.testing.assert_array_equal(model.w, [0.0])


def test_d70_bad_options():
    with pytest.raises(ValueError, match=r"donate='all': the only value is 'state'"):
        nnx.jit(write, donate="all")
    with pytest.raises(ValueError, match=r"donate"):
        nnx.jit(write, donate="state", donate_argnums=0)


# D72-D75: values


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: [1, "a"], lambda: [1, "b"]),
        (lambda: {"a": [1]}, lambda: {"a": [2]}),
        (lambda: ([1], {"b": 2}), lambda: ([1], {"b": 3})),
        (lambda: {"a": 1, "b": 2}, lambda: {"a": 1}),
    ],
    ids=["list", "dict", "tuple", "keys"],
)
def test_d72_unhashable_statics_compare_by_content(make: Any, other: Any):
    step, traces = jitted(lambda m: plain(m.cfg))
    for value, count in ((make, 1), (make, 1), (other, 2), (make, 2)):
        model = Net()
        model.cfg = value()
        assert step(model) == plain(value())
        assert len(traces) == count


def test_d72_the_order_of_a_dict_is_part_of_it():
    step, _ = jitted(lambda m: list(m.cfg))
    for value in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):
        model = Net()
        model.cfg = value
        assert step(model) == list(value)


VALUES = {
    "numpy": lambda: np.arange(2, dtype=np.float32),
    "int": lambda: 3,
    "float": lambda: 2.5,
    "bool": lambda: True,
    "None": lambda: None,
    "key": lambda: jax.random.key(0),
    "raw key": lambda: jax.random.key_data(jax.random.key(0)),
    "bfloat16": lambda: jnp.ones(2, jnp.bfloat16),
    "fp8": lambda: jnp.ones(2, jnp.float8_e4m3fn),
    "int4": lambda: jnp.ones(2, jnp.int4),
    "bool array": lambda: jnp.ones(2, bool),
    "complex": lambda: jnp.ones(2, jnp.complex64),
    "empty": lambda: jnp.zeros((0, 3)),
    "scalar": lambda: jnp.float32(1),
    "str": lambda: "text",
    "dict": lambda: {"a": jnp.ones(1), "v": "1.0", "n": 2},
    "tuple": lambda: (jnp.ones(1), (2, "b")),
    "list": lambda: [jnp.ones(1), 2],
    "function": lambda: nnx.relu,
    "empty dict": lambda: {},
}


@pytest.mark.parametrize("write", [False, True], ids=["untouched", "rewritten"])
@pytest.mark.parametrize("kind", VALUES)
def test_d73_d74_values_of_every_kind_pass_through(kind: str, write: bool):
    model = Net()
    model.any = nnx.Variable(VALUES[kind]())
    expected = model.any.value

    def body(m: Any) -> Any:
        m.count += 1
        if write:
            m.any.value = m.any.value
        return m.any.value

    step, traces = jitted(body)
    for calls in (1, 2, 3):
        result = step(model)
        assert int(model.count[...]) == calls
        if not write:
            assert model.any.value is expected
        same_leaves(model.any.value, expected)
        same_leaves(result, expected)
    assert len(traces) == 1


def same_leaves(left: Any, right: Any) -> None:
    """Equal, up to numbers that became arrays."""
    lefts, rights = jax.tree.leaves(left), jax.tree.leaves(right)
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for x, y in zip(lefts, rights, strict=True):
        if isinstance(x, str) or callable(x):
            assert x == y
        elif jax.dtypes.issubdtype(jnp.asarray(y).dtype, jax.dtypes.prng_key):
            assert x.dtype == y.dtype and bool((x == y).all())
        else:
            assert jnp.asarray(x).dtype == jnp.asarray(y).dtype
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", VALUES)
def test_d73_values_that_change_kind_between_calls(kind: str):
    model = Net()
    step, traces = jitted(lambda m: m.w.value)
    for value in (jnp.ones(2), VALUES[kind](), jnp.ones(2)):
        model.w.value = value
        same_leaves(step(model), value)
    assert len(traces) <= 2


def test_d73_empty_modules_and_none():
    class Empty(nnx.Module):
        pass

    empty = Empty()
    step, traces = jitted(lambda m, n, t: (m, n, t))
    assert step(empty, None, ()) == (empty, None, ())
    assert step(empty, None, ()) == (empty, None, ())
    assert len(traces) == 1


def test_d73_a_typed_key_stays_typed():
    rngs = nnx.Rngs(0)
    step, traces = jitted(lambda r: r.normal((2,)))
    expected = nnx.Rngs(0)
    for _ in range(3):
        np.testing.assert_array_equal(step(rngs), expected.normal((2,)))
    assert jnp.issubdtype(rngs.default.key.dtype, jax.dtypes.prng_key)
    assert int(rngs.default.count[...]) == 3 and len(traces) == 1


def test_d74_a_static_value_inside_a_variable_is_part_of_the_structure():
    variable = nnx.Variable({"version": "1.0", "w": jnp.ones(1)})
    step, traces = jitted(lambda v: v.value["version"])
    assert step(variable) == "1.0"
    variable.value = {"version": "2.0", "w": jnp.ones(1)}
    assert step(variable) == "2.0"
    assert len(traces) == 2


def test_d74_a_write_of_another_kind_of_value():
    model = Net()
    nnx.jit(lambda m: m.w.set_value({"a": m.v[...], "s": "text"}))(model)
    assert model.w.value["s"] == "text"
    np.testing.assert_array_equal(model.w.value["a"], [0.0, 0.0])
    nnx.jit(lambda m: m.w.set_value(m.v[...]))(model)
    np.testing.assert_array_equal(model.w, [0.0, 0.0])


@pytest.mark.parametrize("place", ["attribute", "Variable", "argument"])
@pytest.mark.parametrize("values", [("cat", "dog"), (b"a", b"b")], ids=["str", "bytes"])
def test_d74_arrays_that_jax_does_not_know_are_static(values: Any, place: str):
    model = Net()
    names = np.array(values)
    other = np.array(values[::-1])
    step, traces = jitted(
        lambda m, names=None: (
            m.bump(1),
            (names if place == "argument" else m.names)[0] == values[0],
        )[1]
    )
    for array, wanted, count in ((names, True, 1), (names, True, 1), (other, False, 2)):
        if place == "argument":
            result = step(model, array)
        else:
            if hasattr(model, "names"):
                del model.names
            model.names = nnx.Variable(array) if place == "Variable" else array
            result = step(model)
        assert bool(result) is wanted and len(traces) == count
    assert int(model.count[...]) == 3


@pytest.mark.parametrize("place", ["attribute", "List", "Dict", "tuple"])
def test_d75_raw_arrays_are_traced_and_rebinding_is_applied(place: str):
    class Plain(nnx.Module):
        pass

    module = Plain()
    module.x = {
        "attribute": lambda a: a,
        "List": lambda a: [a, "s"],
        "Dict": lambda a: {"k": a},
        "tuple": lambda a: (a, 1),
    }[place](jnp.zeros(2))

    def body(m: Any) -> Any:
        m.x = jax.tree.map(lambda x: x + 1 if hasattr(x, "shape") else x, m.x)
        return jax.tree.leaves(nnx.state(m))[0]

    def item_body(m: Any) -> Any:
        if place in ("List", "Dict"):
            key = 0 if place == "List" else "k"
            m.x[key] = m.x[key] + 1
            return m.x[key]
        return body(m)

    step, traces = jitted(item_body)
    for calls in (1, 2, 3):
        assert float(step(module)[0]) == calls
        assert float(jax.tree.leaves(nnx.state(module))[0][0]) == calls
    assert len(traces) == 1


def test_d75_numpy_attributes():
    model = Net()
    model.array = np.ones(2, np.float32)
    step, traces = jitted(lambda m: m.array * 2)
    assert float(step(model)[0]) == 2.0
    model.array[...] = 5.0  # changed in place
    assert float(step(model)[0]) == 10.0
    assert len(traces) == 1


# Plain objects that hold objects


def test_trainer_fields_that_are_set_inside_are_applied():
    class Loop:
        def __init__(self):
            self.model, self.steps, self.last = Net(), 0, None
            self.history: list[Any] = []

        @nnx.jit
        def step(self, x: Any) -> Any:
            self.model.count += 1
            self.last = x * 2
            return self.last

    loop = Loop()
    for x in (1.0, 2.0):
        assert float(loop.step(x)) == 2 * x
        assert float(loop.last) == 2 * x
    assert int(loop.model.count[...]) == 2


def test_trainer_fields_of_every_kind_are_rebound_added_and_deleted():
    class Loop:
        def __init__(self):
            self.model, self.best, self.name, self.gone = Net(), None, "a", 1

    def step(loop: Any, x: Any) -> None:
        loop.best = loop.model
        loop.model = Net()
        loop.model.w[...] = x
        loop.name = "b"
        loop.pair = (loop.best.w, x * 2, "c")
        del loop.gone

    loop = Loop()
    first = loop.model
    nnx.jit(step)(loop, 3.0)
    assert loop.best is first and loop.model is not first
    np.testing.assert_array_equal(loop.model.w, [3.0, 3.0])
    assert loop.name == "b" and not hasattr(loop, "gone")
    assert loop.pair[0] is first.w and float(loop.pair[1]) == 6.0
    loop.gone = 1
    nnx.jit(step)(loop, 4.0)
    np.testing.assert_array_equal(loop.best.w, [3.0, 3.0])


def test_trainer_arrays_are_arguments():
    class Loop:
        def __init__(self):
            self.model, self.mean = Net(), jnp.zeros(())

        def step(self, x: Any) -> Any:
            self.mean = 0.5 * self.mean + x
            return self.mean

    loop = Loop()
    step, traces = jitted(Loop.step)
    assert [float(step(loop, 1.0)) for _ in range(3)] == [1.0, 1.5, 1.75]
    assert float(loop.mean) == 1.75 and len(traces) == 1
    loop.mean = jnp.float32(8.0)
    assert float(step(loop, 1.0)) == 5.0 and len(traces) == 1


def test_trainer_numbers_are_static():
    trainer = Trainer(Net())
    trainer.scale = 2.0
    step, traces = jitted(lambda t: t.model.w * t.scale)
    assert float(step(trainer)[1]) == 2.0
    trainer.scale = 3.0
    assert float(step(trainer)[1]) == 3.0
    assert len(traces) == 2


def test_trainer_with_a_new_model():
    trainer = Trainer(Net(1), write)
    assert float(trainer.run()) == 6.0
    trainer.model = Net(2)
    assert float(trainer.run()) == 10.0


def test_trainer_an_exception_restores_the_fields():
    class Loop:
        def __init__(self):
            self.model, self.last = Net(), "none"

        @nnx.jit
        def step(self) -> None:
            self.last = self.model.w * 2
            self.new = 1
            self.model = Net()
            raise RuntimeError("on purpose")

    loop = Loop()
    before, model = snapshot(loop.model), loop.model
    with pytest.raises(RuntimeError, match="on purpose"):
        loop.step()
    before.check()
    assert vars(loop) == {"model": model, "last": "none"}


def test_trainer_as_a_dataclass():
    @dataclasses.dataclass
    class Loop:
        model: Any
        rate: float = 0.5

        @nnx.jit
        def step(self) -> Any:
            self.model.w[...] = self.model.w * self.rate

    loop = Loop(Net(2))
    loop.step()
    np.testing.assert_array_equal(loop.model.w, [1.0, 1.5])


# Shardings, on one device here, on two below


def one_device() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))


def test_in_and_out_shardings_with_a_state_sharding():
    mesh = one_device()
    split, whole = (
        NamedSharding(mesh, PartitionSpec("d")),
        NamedSharding(mesh, PartitionSpec()),
    )
    rule = nnx.StateSharding({nnx.PathContains("w"): split, ...: whole})
    step, traces = jitted(
        lambda m, x: (m.bump(1), m.w * x)[1],
        in_shardings=(rule, split),
        out_shardings=whole,
    )
    model, x = jax.device_put((Net(1), jnp.ones(2)), whole)
    for calls in (1, 2, 3):
        result = step(model, x)
        np.testing.assert_array_equal(result, [1.0, 2.0])
        assert result.sharding.is_equivalent_to(whole, 1)
        assert int(model.count[...]) == calls
    assert len(traces) == 1


def test_out_shardings_of_a_returned_module():
    mesh = one_device()
    split = NamedSharding(mesh, PartitionSpec("d"))
    rule = nnx.StateSharding({nnx.Param: split, ...: None})

    @nnx.jit(out_shardings=rule)
    def make(x: Any) -> Any:
        model = Net()
        model.w[...] = model.w + x
        return model

    model = make(1.0)
    assert model.w.sharding.is_equivalent_to(split, 1)
    np.testing.assert_array_equal(model.w, [1.0, 2.0])


def test_state_sharding_names_what_it_does_not_match():
    rule = nnx.StateSharding(
        {nnx.BatchStat: NamedSharding(one_device(), PartitionSpec())}
    )
    model = Net()
    before = snapshot(model)
    with pytest.raises(
        ValueError,
        match=r"no filter of StateSharding.* at '?(\w+)'?.*add one, or `\.\.\.",
    ):
        nnx.jit(write, in_shardings=(rule,))(model)
    before.check()


@pytest.mark.parametrize("form", ["method", "Module", "partial", "static", "captured"])
def test_in_shardings_count_the_users_arguments(form: str):
    """One for each argument of the call that is not static, as in JAX."""
    mesh = one_device()
    split = NamedSharding(mesh, PartitionSpec("d"))
    whole = NamedSharding(mesh, PartitionSpec())
    model, x = Net(1), jnp.ones(2)
    result = {
        "method": lambda: nnx.jit(model.__call__, in_shardings=(split,))(x),
        "Module": lambda: nnx.jit(model, in_shardings=(split,))(x),
        "partial": lambda: nnx.jit(
            functools.partial(lambda m, x: m(x), model), in_shardings=(split,)
        )(x),
        "static": lambda: nnx.jit(
            lambda n, m, x: m(x), static_argnums=0, in_shardings=(whole, split)
        )(2, model, x),
        "captured": lambda: nnx.jit(lambda x: model(x), in_shardings=(split,))(x),
    }[form]()
    np.testing.assert_array_equal(result, [1.0, 2.0])
    assert int(model.count[...]) == 1


def test_in_shardings_of_the_wrong_length():
    sharding = NamedSharding(one_device(), PartitionSpec())
    model = Net()
    before = snapshot(model)
    for shardings in ((sharding,), (sharding,) * 3):
        with pytest.raises(ValueError, match=r"in_shardings.*'<lambda>'.*2"):
            nnx.jit(lambda m, x: m(x), in_shardings=shardings)(model, jnp.ones(2))
        before.check()


def test_out_shardings_of_the_wrong_length():
    sharding = NamedSharding(one_device(), PartitionSpec())
    model = Net()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"out_shardings"):
        nnx.jit(lambda m, x: (m(x), x), out_shardings=(sharding,))(model, jnp.ones(2))
    before.check()


def test_one_object_under_two_shardings():
    mesh = one_device()
    shardings = (
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec("d")),
    )
    model = Net()
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"Inconsistent aliasing.*args\[0\].*args\[1\]"
    ):
        nnx.jit(lambda a, b: a.w + b.w, in_shardings=shardings)(model, model)
    before.check()
    same = nnx.jit(lambda a, b: a.w + b.w, in_shardings=(shardings[0],) * 2)
    np.testing.assert_array_equal(same(model, model), [0.0, 2.0])


@pytest.mark.parametrize("options", [{"keep_unused": True}, {"inline": True}])
def test_the_other_options_of_jax(options: dict[str, Any]):
    model = Net(1)
    step, traces = jitted(lambda m, x: m(x), **options)
    for calls in (1, 2):
        np.testing.assert_array_equal(step(model, jnp.ones(2)), [1.0, 2.0])
        assert int(model.count[...]) == calls
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["device", "backend"])
def test_device_and_backend_are_passed_on_to_jax(name: str):
    model = Net(1)
    options = {name: "cpu" if name == "backend" else jax.devices()[0]}
    with pytest.warns(DeprecationWarning, match="backend and device argument on jit"):
        y = nnx.jit(lambda m, x: m(x), **options)(model, jnp.ones(2))
    np.testing.assert_array_equal(y, [1.0, 2.0])
    assert int(model.count[...]) == 1


def test_shardings_on_two_devices():
    program = """
        import jax, jax.numpy as jnp, numpy as np, nnxlite as nnx
        from jax.sharding import NamedSharding, PartitionSpec as P
        assert len(jax.devices()) == 2
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
        split, whole = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())

        class Net(nnx.Module):
            def __init__(self):
                self.w = nnx.Param(jnp.arange(4.0))
                self.count = nnx.Variable(jnp.zeros(()))
                self.table = jnp.ones(4)

        rule = nnx.StateSharding({nnx.Param: split, ...: whole})

        @nnx.jit(in_shardings=(rule, whole), out_shardings=(rule, split))
        def step(m, x):
            m.count += 1
            m.w[...] = m.w * x
            return m, m.w + m.table

        m = Net()
        for calls in (1, 2):
            same, y = step(m, 2.0)
            assert same is m and float(m.count[...]) == calls
            assert m.w.sharding.is_equivalent_to(split, 1), m.w.sharding
            assert m.w.value.addressable_shards[0].data.shape == (2,)
            assert m.count.sharding.is_equivalent_to(whole, 0), m.count.sharding
            assert y.sharding.is_equivalent_to(split, 1), y.sharding
        np.testing.assert_array_equal(m.w, 4 * jnp.arange(4.0))

        for donation in {"donate": "state"}, {"donate_argnums": 0}:
            donating = nnx.jit(lambda m: m.w.set_value(m.w + 1), **donation)
            old = m.w.value
            donating(m)
            assert old.is_deleted() == ("donate" not in donation)
            assert m.w.sharding.is_equivalent_to(split, 1)

        @nnx.jit(out_shardings=rule)
        def make():
            return Net()

        assert make().w.sharding.is_equivalent_to(split, 1)
        by_name = nnx.StateSharding({nnx.Param: P("d"), ...: P()})
        step = nnx.jit(lambda m: m.w * 2, in_shardings=(by_name,))
        m = Net()
        with jax.set_mesh(mesh):
            assert step(m).sharding.is_equivalent_to(split, 1)
        print("done")
    """
    environment = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PATH": "",
    }
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "done\n"


# D117: nothing is kept


def drop_plain(model: Any) -> Any:
    step = nnx.jit(write)
    step(model)
    return step


def drop_loose(model: Any) -> Any:
    step = nnx.jit(lambda w, v: w.set_value(w + v))
    step(model.w, model.v)
    step(model.w, model.w)
    return step


def drop_aliased(model: Any) -> Any:
    step = nnx.jit(lambda m, w: w.set_value(m.w + 1))
    step(model, model.w)
    return step


def drop_raising(model: Any) -> Any:
    def failing(m: Any) -> None:
        m.count += 1
        raise RuntimeError("on purpose")

    step = nnx.jit(failing)
    with contextlib.suppress(RuntimeError):
        step(model)
    return step


def drop_lowered(model: Any) -> Any:
    step = nnx.jit(write)
    compiled = step.lower(model).compile()
    compiled(model)
    return step, compiled


def drop_returning(model: Any) -> Any:
    step = nnx.jit(lambda m: (m, m.w))
    step(model)
    step(model)
    return step


def drop_grad(model: Any) -> Any:
    step = nnx.jit(lambda m: nnx.grad(lambda m: (m.w * m.w).sum())(m))
    step(model)
    nnx.value_and_grad(lambda m: (m.w * m.w).sum())(model)
    nnx.eval_shape(lambda m: m(jnp.ones(2)), model)
    return step


def drop_static_method(model: Any) -> Any:
    """A bound method as a static argument and as an attribute."""
    step = nnx.jit(lambda f, x: x)
    step(model.bump, 1.0)
    step([model.bump], 1.0)
    return step


def drop_structural(model: Any) -> Any:
    step = nnx.jit(add)
    step(model)
    step(model)
    return step


def drop_method(model: Any) -> Any:
    model.step(jnp.ones(2))
    return Net.step


def drop_donated(model: Any) -> Any:
    step = nnx.jit(write, donate="state")
    step(model)
    return step


def drop_trainer(model: Any) -> Any:
    Trainer(model, write).run()
    return Trainer.run


@pytest.mark.parametrize(
    ("use", "cyclic"),
    [
        (drop_plain, True),
        (drop_plain, False),
        (drop_loose, False),
        (drop_aliased, False),
        (drop_raising, False),
        (drop_lowered, True),
        (drop_returning, True),
        (drop_grad, False),
        (drop_static_method, True),
        (drop_structural, True),
        (drop_method, False),
        (drop_donated, False),
        (drop_trainer, False),
    ],
)
def test_d117_a_dropped_model_is_collected_and_so_are_its_plans(use: Any, cyclic: bool):
    model = Net()
    if cyclic:
        model.me = model
    references = [weakref.ref(x) for x in (model, model.w, model.inner, model.parts)]
    kept = use(model)
    plans = getattr(kept[0] if isinstance(kept, tuple) else kept, "_plans", ())
    plans_before = len(plans)
    del model
    gc.collect()
    assert [reference() for reference in references] == [None] * 4
    if use not in (drop_loose, drop_static_method):
        assert len(plans) < plans_before or plans_before == 0


def test_d117_captured_models_are_collected():
    global MODEL
    step = by_global(write, Net())
    step()
    first = weakref.ref(MODEL)
    MODEL = Net()
    gc.collect()
    assert first() is None
    step()
    second = weakref.ref(MODEL)
    MODEL = None
    gc.collect()
    assert second() is None
    model = Net()
    reference = weakref.ref(model)
    step = by_closure(write, model)
    step()
    del step, model
    gc.collect()
    assert reference() is None


def test_d117_many_models_leave_no_plans():
    step, traces = jitted(write)
    for seed in range(20):
        step(Net(seed))
    gc.collect()
    assert len(step._plans) == 0 and len(traces) == 1


def test_d117_steady_state_keeps_nothing():
    step, model = nnx.jit(write), Net()
    grads = nnx.Param(jnp.ones(2))
    take = nnx.jit(lambda m, g: m.v.set_value(g * 1))
    for _ in range(3):
        step(model)
        take(model, nnx.Param(jnp.ones(2)))
    gc.collect()
    objects, arrays = len(gc.get_objects()), len(jax.live_arrays())
    for _ in range(50):
        step(model)
        take(model, nnx.Param(jnp.ones(2)))
    gc.collect()
    assert len(jax.live_arrays()) == arrays
    assert len(gc.get_objects()) <= objects + 20
    assert float(grads[0]) == 1.0


# D118: threads


def test_d118_threads_do_not_disturb_each_other():
    shared = nnx.jit(write)
    barrier = threading.Barrier(4)
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        try:
            barrier.wait()
            for round_ in range(10):
                model = Net(number)
                model.size = round_ % 3
                own = nnx.jit(lambda m: (write(m), m.bump(0), m.w * m.size)[2])
                for _ in range(3):
                    shared(model)
                    own(model)
                    nnx.grad(lambda m: (m.w * m.w).sum())(model)
                    model.w[...] = model.w + 0
                assert int(model.count[...]) == 6, model.count
                np.testing.assert_array_equal(
                    model.w, 2.0**6 * (jnp.arange(2.0) + number)
                )
            results[number] = "done"
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), "done")


def test_d118_threads_one_after_the_other_with_a_function_that_jax_caches():
    """A later thread may have the identity of one that has ended."""
    model, x = Net(1), jnp.ones(2)
    use = jax.jit(lambda x: x * model.w)
    results: list[Any] = []

    def work(mode: str) -> None:
        try:
            results.append(nnx.jit(lambda m, mode: use(x))(model, mode))
        except Exception as error:
            results.append(error)

    for mode in "abc":
        thread = threading.Thread(target=work, args=(mode,))
        thread.start()
        thread.join()
        model.w[...] = model.w + 1
    np.testing.assert_array_equal(results, [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]])


def test_d118_a_frame_of_one_thread_is_no_business_of_another():
    model, other = Net(), Net(5)
    inside, done = threading.Event(), threading.Event()
    seen: dict[str, Any] = {}

    def elsewhere() -> None:
        inside.wait(10)
        seen["value"] = float(model.w[1])  # the outer value, no tracer
        other.w[...] = 7.0
        other.size = 9
        seen["new"] = float(Net(3).w[0])
        done.set()

    def body(m: Any) -> None:
        m.w[...] = m.w * 100
        inside.set()
        assert done.wait(10)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    nnx.jit(body)(model)
    thread.join()
    assert seen == {"value": 1.0, "new": 3.0}
    np.testing.assert_array_equal(other.w, [7.0, 7.0])
    np.testing.assert_array_equal(model.w, [0.0, 100.0])
    assert other.size == 9


# D119, D120: static attributes


CHANGES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "dict item": ({"a": 1}, lambda c: c.__setitem__("a", 2)),
    "dict new key": ({"a": 1}, lambda c: c.__setitem__("b", 2)),
    "dict update": ({"a": 1}, lambda c: c.update(a=2)),
    "dict pop": ({"a": 1, "b": 2}, lambda c: c.pop("a")),
    "dict |=": ({"a": 1}, lambda c: c.__ior__({"a": 3})),
    "dict setdefault": ({"a": 1}, lambda c: c.setdefault("c", 3)),
    "dict clear": ({"a": 1}, lambda c: c.clear()),
    "dict popitem": ({"a": 1}, lambda c: c.popitem()),
    "list item": ([1, 2], lambda c: c.__setitem__(0, 5)),
    "list slice": ([1, 2], lambda c: c.__setitem__(slice(0, 1), [5])),
    "list append": ([1], lambda c: c.append(2)),
    "list extend": ([1], lambda c: c.extend([2])),
    "list +=": ([1], lambda c: c.__iadd__([2])),
    "list *=": ([1], lambda c: c.__imul__(2)),
    "list sort": ([2, 1], lambda c: c.sort()),
    "list reverse": ([2, 1], lambda c: c.reverse()),
    "list insert": ([2], lambda c: c.insert(0, 1)),
    "list pop": ([2, 3], lambda c: c.pop()),
    "list remove": ([2, 3], lambda c: c.remove(2)),
    "list del": ([2, 3], lambda c: c.__delitem__(0)),
    "nested": ({"a": [{"b": 1}]}, lambda c: c["a"][0].update(b=2)),
    "in a tuple": (({"a": 1}, 2), lambda c: c[0].update(a=5)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_d119_a_static_changed_in_place_is_noticed(name: str):
    start, change = CHANGES[name]
    model = Net()
    model.cfg = start
    step, traces = jitted(lambda m: plain(m.cfg))
    before = plain(model.cfg)
    assert step(model) == before
    change(model.cfg)
    after = plain(model.cfg)
    assert after != before
    assert step(model) == after
    assert len(traces) == 2


def test_d119_a_change_through_the_original_list_is_not_the_models():
    """The plain list is taken over; the original is not watched, nor connected."""
    plain = [1]
    model = Net()
    model.cfg = plain
    plain.append(2)
    assert list(model.cfg) == [1]


class Raising:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        return 1


class Arrays:
    def __eq__(self, other: object) -> Any:
        return np.ones(2, bool)

    def __hash__(self) -> int:
        return 1


@pytest.mark.parametrize("cls", [Raising, Arrays])
def test_d120_statics_that_cannot_be_compared_are_named(cls: Any):
    model = Net()
    model.inner.cfg = cls()
    before = snapshot(model)
    with pytest.raises(
        ValueError,
        match=rf"inner\.cfg.*type {cls.__name__} cannot be compared: its == raises.*"
        r"Give the class an ==",
    ):
        nnx.jit(write)(model)
    before.check()


@pytest.mark.parametrize("cls", [Raising, Arrays])
def test_d120_static_arguments_that_cannot_be_compared(cls: Any):
    model = Net()
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf"type {cls.__name__} cannot be compared"):
        nnx.jit(lambda m, cfg: m.w)(model, cls())
    before.check()


# Compiled functions as values, contexts


@pytest.mark.parametrize("copied", [nnx.clone, copy.copy, copy.deepcopy])
def test_a_model_that_holds_a_compiled_function_can_be_copied(copied: Any):
    model = Net(1)
    model.step = nnx.jit(lambda m, x: m(x))
    other = copied(model)
    assert other.step is model.step  # as any function
    for each in (model, other):
        np.testing.assert_array_equal(each.step(each, jnp.ones(2)), [1.0, 2.0])


def test_a_compiled_function_that_holds_its_model_by_an_attribute_is_collected():
    model = Net()
    model.step = nnx.jit(model.__call__)
    model.step(jnp.ones(2))
    assert int(model.count[...]) == 1
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    "context",
    [
        lambda: jax.disable_jit(),
        lambda: jax.checking_leaks(),
        lambda: jax.debug_nans(True),
        lambda: jax.enable_x64(True),
        lambda: jax.default_matmul_precision("float32"),
        lambda: jax.numpy_dtype_promotion("strict"),
    ],
    ids="disable_jit checking_leaks debug_nans x64 precision strict".split(),
)
def test_jit_under_the_settings_of_jax(context: Any):
    model, plain_model = Net(1), Net(1)
    step = nnx.jit(lambda m: (m.count.set_value(m.count + m.count), m.w * m.w)[1])
    with context():
        known = Correspondence(reachable([plain_model]), reachable([model]))
        for _ in range(2):
            plain_model.count.value = plain_model.count + plain_model.count
            known.check(plain_model.w * plain_model.w, step(model))


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    yield


def test_jit_inside_a_context_manager_and_generator():
    @nnx.jit
    def step(m: Any) -> Any:
        with nothing():
            m.count += 1
        return [x * 2 for x in (m.w, m.v)]

    model = Net()
    results = step(model)
    np.testing.assert_array_equal(results[0], [0.0, 2.0])
    assert int(model.count[...]) == 1


@pytest.mark.parametrize("value", [jnp.ones(2), {"w": jnp.ones(2)}, "text"])
@pytest.mark.parametrize("nested", [False, True])
def test_metadata_that_changes_between_two_calls_is_seen(
    value: Any, nested: bool
) -> None:
    count = nnx.jit(lambda m: jnp.array(len(m.v.get_metadata())))

    def twice(m: Any) -> Any:
        before = count(m)
        m.v.del_metadata("note")
        return before, count(m)

    module = nnx.Module()
    module.v = nnx.Param(value, note=1)
    before, after = (nnx.jit(twice) if nested else twice)(module)
    assert (before, after) == (1, 0)


def test_a_value_of_another_kind_between_two_nested_calls_is_seen() -> None:
    kind = nnx.jit(lambda m: jnp.array(isinstance(m.v.value, str)))

    @nnx.jit
    def twice(m: Any) -> Any:
        before = kind(m)
        m.v.value = "text"
        return before, kind(m)

    module = nnx.Module()
    module.v = nnx.Param(jnp.ones(2))
    assert tuple(map(bool, twice(module))) == (False, True)
    assert module.v.value == "text"


# Errors of JAX speak of the user's function and arguments


class Signed(nnx.Module):
    def __init__(self):
        self.inner = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.table = nnx.Variable(jnp.arange(3))

    def branch(self, x: Any) -> Any:
        return x if self.inner.kernel[0, 0] > 0 else -x

    def loop(self, x: Any) -> Any:
        for _ in range(self.table[1]):
            x = x + 1
        return x


ERRORS: dict[str, tuple[Callable[[Signed, Any], Any], str]] = {
    "method": (lambda m, x: nnx.jit(m.branch)(x), r"self\.inner\.kernel"),
    "decorated": (nnx.jit(Signed.branch), r"self\.inner\.kernel"),
    "integer": (lambda m, x: nnx.jit(m.loop)(x), r"self\.table"),
    "lowered": (lambda m, x: nnx.jit(m.branch).lower(x), r"self\.inner\.kernel"),
    "array": (nnx.jit(lambda m, x: 1 if x[0] else 2), r"the argument x"),
    "keyword": (lambda m, x: nnx.jit(lambda y: 1 if y[0] else 2)(y=x), "argument y"),
    "part": (lambda m, x: nnx.jit(lambda ys: 1 if ys["a"][0] else 2)({"a": x}), "ys.a"),
    "captured": (
        lambda m, x: nnx.jit(lambda x: x if m.table[1] else -x)(x),
        r"the argument Variable 'Signed\.table'",
    ),
    "donated": (
        nnx.jit(lambda m, x: m.branch(x), donate_argnums=0),
        r"m\.inner\.kernel",
    ),
    "vmap": (
        lambda m, x: nnx.vmap(Signed.branch, in_axes=(None, 0))(m, x),
        r"args\[0\]\.inner\.kernel",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_jax_name_the_argument(name: str) -> None:
    call, place = ERRORS[name]
    with pytest.raises(jax.errors.JAXTypeError, match=place) as caught:
        call(Signed(), jnp.ones(2))
    assert "kept[" not in str(caught.value) and "donated[" not in str(caught.value)


def test_errors_of_jax_about_shapes_name_the_argument() -> None:
    with pytest.raises(TypeError, match=r"(?s)Shapes must be .* the argument n\."):
        nnx.jit(lambda m, n: jnp.ones(n))(Signed(), 3)


def test_errors_and_programs_name_the_function() -> None:
    step = nnx.jit(Signed.branch)
    with pytest.raises(jax.errors.TracerBoolConversionError, match=r"branch at .*jit"):
        step(Signed(), jnp.ones(2))
    lowered = nnx.jit(Signed.loop, static_argnums=1).lower
    with pytest.raises(jax.errors.TracerIntegerConversionError, match=r"loop at "):
        lowered(Signed(), 1)

    def double(x: Any) -> Any:
        return 2 * x

    assert "jit_double" in nnx.jit(double).lower(jnp.ones(2)).as_text()


def test_a_captured_state() -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    traces: list[int] = []

    @nnx.jit
    def total() -> Any:
        traces.append(1)
        state.kernel.value = state.kernel * 2
        return sum(leaf.sum() for leaf in jax.tree.leaves(state))

    before = model.kernel.value.sum()
    np.testing.assert_allclose(total(), 2 * before, rtol=1e-5)
    model.kernel.value = jnp.ones((2, 3))
    assert float(total()) == 12.0 and len(traces) == 1
    assert float(model.kernel.value.sum()) == 12.0
