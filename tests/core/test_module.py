"""Modules, attributes, containers and modes: items D13-D116 that concern them."""

import copy
import dataclasses
import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

from ..properties.comparison import Snapshot
from ..properties.programs import reachable


class Holder(nnx.Module):
    """A Module without attributes of its own."""


class Block(nnx.Module):
    """A small layer with a Param, a statistic and static attributes."""

    def __init__(self, seed: int = 0):
        self.scale = nnx.Param(jnp.arange(3.0) + seed)
        self.mean = nnx.BatchStat(jnp.zeros(3))
        self.name = "block"
        self.deterministic = False

    def __call__(self, x: Any) -> Any:
        return x * self.scale


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Config:
    width: int


def snapshot(*roots: Any) -> Snapshot:
    return Snapshot(reachable(roots))


def paths_of(node: Any) -> tuple[Any, ...]:
    return nnx.to_flat_state(nnx.state(node)).paths


def count_traces(function: Callable[..., Any]) -> tuple[Any, list[int]]:
    """The compiled function, and a list that grows with each trace."""
    traces: list[int] = []

    def counted(*args: Any) -> Any:
        traces.append(1)
        return function(*args)

    return nnx.jit(counted), traces


# D13, data and static


DATA = {
    "Variable": lambda: nnx.Variable(1),
    "Param": lambda: nnx.Param(jnp.ones(2)),
    "jax array": lambda: jnp.ones(2),
    "numpy array": lambda: np.ones(2),
    "key": lambda: jax.random.key(0),
    "abstract array": lambda: jax.ShapeDtypeStruct((2,), jnp.float32),
}
STATIC = {
    "int": lambda: 1,
    "float": lambda: 1.5,
    "bool": lambda: True,
    "str": lambda: "relu",
    "None": lambda: None,
    "function": lambda: nnx.relu,
    "lambda": lambda: lambda x: x,
    "partial": lambda: functools.partial(jnp.sum, axis=0),
    "type": lambda: nnx.Linear,
    "dtype": lambda: jnp.dtype("bfloat16"),
    "numpy scalar": lambda: np.float32(2),
    "ellipsis": lambda: ...,
    "slice": lambda: slice(1, 2),
    "plain object": lambda: Config(3),
    "tuple of numbers": lambda: (1, (2, "a")),
    "frozenset": lambda: frozenset({1}),
}


@pytest.mark.parametrize("kind", DATA)
def test_d13_data_is_in_the_state(kind: str):
    module, value = Holder(), DATA[kind]()
    module.x = value
    assert nnx.state(module)["x"] is value
    assert nnx.graphdef(module).paths == (("x",),)
    del module.x
    assert paths_of(module) == ()


def test_d13_modules_are_data():
    module = Holder()
    module.inner = Block()
    assert paths_of(module) == (("inner", "mean"), ("inner", "scale"))
    assert nnx.state(module)["inner"]["scale"] is module.inner.scale


@pytest.mark.parametrize("kind", STATIC)
def test_d13_static_values_are_not_in_the_state(kind: str):
    module, value = Holder(), STATIC[kind]()
    module.x = value
    assert len(nnx.state(module)) == 0
    assert nnx.graphdef(module) != nnx.graphdef(Holder())
    assert nnx.merge(*nnx.split(module)).x is value


def test_d13_later_assignments_and_deletions_change_the_state():
    module = Block()
    module.shift = nnx.Param(jnp.zeros(3))
    assert paths_of(module) == (("mean",), ("scale",), ("shift",))
    del module.mean
    module.scale = None
    module.name = jnp.ones(1)  # from static to data
    assert paths_of(module) == (("name",), ("shift",))


def test_d13_deleting_an_unknown_attribute_raises():
    module = Block()
    before = snapshot(module)
    with pytest.raises(AttributeError, match="Block has no attribute 'missing'"):
        del module.missing
    before.check()


def test_d13_deep_containers_are_looked_into():
    module = Holder()
    module.x = ({"a": [Pair(jnp.ones(1), nnx.Param(2.0))]}, 3)
    assert paths_of(module) == (
        ("x", 0, "a", 0, "left"),
        ("x", 0, "a", 0, "right"),
    )


# D15, D38: split, merge, copies


def test_d15_merge_gives_a_distinct_equal_object():
    module = Holder()
    module.block, module.size, module.array = Block(), 3, jnp.ones(2)
    again = nnx.merge(*nnx.split(module))
    assert type(again) is Holder and again is not module
    assert type(again.block) is Block and again.block is not module.block
    assert (again.size, again.block.name) == (3, "block")
    np.testing.assert_array_equal(again.block.scale, module.block.scale)
    np.testing.assert_array_equal(again.array, module.array)


def test_d15_modules_compare_and_hash_by_identity():
    one, two = Block(), Block()
    assert one == one
    assert one != two
    assert len({one, two, one}) == 2


def test_d15_dataclass_modules_compare_and_hash_by_identity():
    @nnx.dataclass
    class Affine(nnx.Module):
        w: nnx.Param

    one, two = Affine(nnx.Param(jnp.ones(2))), Affine(nnx.Param(jnp.ones(2)))
    assert one == one
    assert one != two
    assert len({one, two, one}) == 2
    assert [one, two].index(two) == 1


COPIES = {
    "merge(split)": lambda m: nnx.merge(*nnx.split(m)),
    "merge(split, copy)": lambda m: nnx.merge(*nnx.split(m), copy=True),
    "clone": nnx.clone,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
}


@pytest.mark.parametrize("name", COPIES)
def test_d37_cycles_survive(name: str):
    module = Holder()
    module.child = Block()
    module.child.parent = module
    module.items = [module, module.child]
    again = COPIES[name](module)
    assert again is not module
    assert again.child is not module.child
    assert again.child.parent is again
    assert again.items[0] is again
    assert again.items[1] is again.child
    assert nnx.graphdef(again) == nnx.graphdef(module)


@pytest.mark.parametrize("make", [nnx.List, nnx.Dict], ids=["List", "Dict"])
@pytest.mark.parametrize("name", COPIES)
def test_d37_a_container_that_holds_itself_survives(name: str, make: Any):
    node = make()
    if make is nnx.List:
        node.append(node)
    else:
        node["me"] = node
    again = COPIES[name](node)
    assert again is not node
    assert (again[0] if make is nnx.List else again["me"]) is again


def test_d37_repr_of_a_cycle_prints_the_repeated_object_as_dots():
    module = Holder()
    module.child = Block()
    module.child.parent = module
    text = repr(module)
    assert "..." in text
    assert text.count("scale") == 1


def test_d38_deepcopy_has_its_own_variables_and_arrays():
    module = Block()
    module.array = jnp.ones(2)
    module.numpy = np.ones(2)
    other = copy.deepcopy(module)
    assert other.scale is not module.scale
    assert other.scale.value is not module.scale.value
    assert other.array is not module.array
    assert other.numpy is not module.numpy
    other.scale[...] = 7.0
    other.numpy[...] = 7.0
    np.testing.assert_array_equal(module.scale, jnp.arange(3.0))
    np.testing.assert_array_equal(module.numpy, np.ones(2))


def test_d38_clone_has_its_own_variables_over_the_same_buffers():
    module = Block()
    other = nnx.clone(module)
    assert other.scale is not module.scale
    assert other.scale.value is module.scale.value
    other.scale[...] = 7.0
    np.testing.assert_array_equal(module.scale, jnp.arange(3.0))


def test_d38_clone_options():
    module = Block()
    assert nnx.clone(module, variables=False).scale is module.scale
    other = nnx.clone(module, arrays=True)
    pointer = module.scale.value.unsafe_buffer_pointer()
    assert other.scale.value.unsafe_buffer_pointer() != pointer
    np.testing.assert_array_equal(other.scale, module.scale)


def test_d38_copy_shares_the_variables():
    module = Block()
    module.inner = Block()
    other = copy.copy(module)
    assert other is not module
    assert other.scale is module.scale
    assert other.inner is module.inner
    other.name = "other"
    assert module.name == "block"


def test_d38_pickle_keeps_values_and_metadata():
    module = Block()
    module.scale.set_metadata(note="a", axes=("x", None))
    module.key = nnx.Variable(jax.random.key(3))
    other = pickle.loads(pickle.dumps(module))
    assert type(other.scale) is nnx.Param
    np.testing.assert_array_equal(other.scale, module.scale)
    assert other.scale.get_metadata() == {"note": "a", "axes": ("x", None)}
    assert nnx.graphdef(other) == nnx.graphdef(module)
    other.scale[...] = 1.0  # usable
    other.name = "changed"
    assert module.name == "block"


def test_d38_copies_are_seen_apart_by_jit():
    module = Block()
    step, traces = count_traces(lambda m: m.scale.set_value(m.scale + 1))
    for make in COPIES.values():
        other = make(module)
        fresh = other.scale is not module.scale
        before = float(module.scale[0])
        step(other)
        assert float(other.scale[0]) == before + 1
        assert float(module.scale[0]) == before + (not fresh)
    assert len(traces) == 1


# D28, D29: List and Dict


def test_d28_list_behaves_as_a_list():
    a, b, c = nnx.Param(1.0), nnx.Param(2.0), Block()
    items = nnx.List([a])
    items.append("static")
    items.insert(1, b)
    items.extend([c, 5])
    items += [6]
    assert list(items) == [a, b, "static", c, 5, 6]
    assert len(items) == 6
    assert items[-3] is c
    assert items[1:3] == [b, "static"]
    items[2] = 0
    items[-1] = a
    items[:2] = ["x", b]
    assert list(items) == ["x", b, 0, c, 5, a]
    del items[0]
    assert items.pop() is a
    assert items.pop(1) == 0
    items.remove(5)
    items.reverse()
    assert [x is y for x, y in zip(items, [c, b], strict=True)] == [True, True]
    assert (c in items, "y" in [*items, 1]) == (True, False)
    items.clear()
    assert (len(items), bool(items)) == (0, False)


@pytest.mark.parametrize("index", [2, -3])
def test_d28_list_index_errors(index: int):
    items = nnx.List([nnx.Param(1.0), 2])
    before = snapshot(items)
    for action in (
        lambda: items[index],
        lambda: items.__setitem__(index, 1),
        lambda: items.__delitem__(index),
        lambda: items.pop(index),
    ):
        with pytest.raises(IndexError, match="index out of range"):
            action()
    before.check()


def test_d28_list_holds_data_and_static_elements():
    items = nnx.List([1, nnx.Param(2.0), "a", jnp.ones(2), Block()])
    assert paths_of(items) == ((1,), (3,), (4, "mean"), (4, "scale"))
    again = nnx.merge(*nnx.split(items))
    assert isinstance(again, nnx.List)
    assert (again[0], again[2], len(again)) == (1, "a", 5)


def test_d28_dict_behaves_as_a_dict():
    a, b = nnx.Param(1.0), nnx.Param(2.0)
    items = nnx.Dict({"b": b}, a=a)
    items["n"] = 3
    items.m = 4
    assert items["a"] is a and items.b is b
    assert (items.n, items["m"], len(items)) == (3, 4, 4)
    assert list(items) == ["b", "a", "n", "m"]  # as in any dict
    assert items.get("z", 9) == 9
    assert items.setdefault("n", 8) == 3
    items.update(n=5, k=6)
    assert items.pop("k") == 6
    del items["n"], items.m
    assert paths_of(items) == (("a",), ("b",))
    assert ("a" in items, "n" in items) == (True, False)
    items.clear()
    assert len(items) == 0


def test_d28_dict_missing_keys():
    items = nnx.Dict(a=nnx.Param(1.0))
    before = snapshot(items)
    for action in (
        lambda: items["z"],
        lambda: items.__delitem__("z"),
        lambda: items.pop("z"),
    ):
        with pytest.raises(KeyError, match="z"):
            action()
    with pytest.raises(AttributeError, match=r"Dict has no entry 'z', only \['a'\]"):
        _ = items.z
    with pytest.raises(AttributeError, match="Dict has no entry 'z'"):
        del items.z
    before.check()


def test_d28_containers_hash_by_identity():
    assert len({nnx.List(), nnx.List(), nnx.Dict(), nnx.Dict()}) == 4


@pytest.mark.parametrize(
    ("start", "action", "expected"),
    [
        (["s", "p"], lambda x: x.insert(0, nnx.Param(0.0)), "psp"),
        (["p", "s"], lambda x: x.insert(0, "new"), "sps"),
        (["s", "p"], lambda x: x.__delitem__(0), "p"),
        (["p", "s"], lambda x: x.__delitem__(0), "s"),
        (["p", "s", "p"], lambda x: x.reverse(), "psp"),
        (["s", "p", "p"], lambda x: x.reverse(), "pps"),
        (["p", "s"], lambda x: x.__setitem__(1, nnx.Param(0.0)), "pp"),
        (["p", "p"], lambda x: x.__setitem__(0, "new"), "sp"),
        (["a", "s"], lambda x: x.insert(1, jnp.ones(2)), "aas"),
    ],
)
def test_d29_data_moves_into_static_slots_and_back(
    start: list[str], action: Callable[[Any], Any], expected: str
):
    make = {"p": lambda: nnx.Param(1.0), "a": lambda: jnp.ones(2), "s": lambda: "s"}
    items = nnx.List([make[letter]() for letter in start])
    step, _ = count_traces(lambda items: len(jax.tree.leaves(nnx.state(items))))
    assert step(items) == sum(letter != "s" for letter in start)
    action(items)
    assert paths_of(items) == tuple(
        (n,) for n, letter in enumerate(expected) if letter != "s"
    )
    assert step(items) == sum(letter != "s" for letter in expected)
    assert len(nnx.merge(*nnx.split(items))) == len(expected)


# D30, D39: plain containers


@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (lambda a, b: [a, b], [(0,), (1,)]),
        (lambda a, b: (a, b), [(0,), (1,)]),
        (lambda a, b: {"u": a, "v": b}, [("u",), ("v",)]),
        (lambda a, b: Pair(a, b), [("left",), ("right",)]),
        (lambda a, b: ([a], {"k": (b,)}), [(0, 0), (1, "k", 0)]),
        (lambda a, b: [[a, 1], ["s", [b]]], [(0, 0), (1, 1, 0)]),
        (lambda a, b: {"k": {1: a}, "l": {2: b}}, [("k", 1), ("l", 2)]),
    ],
    ids=["list", "tuple", "dict", "namedtuple", "mixed", "nested", "nested dict"],
)
def test_d30_plain_containers_are_traversed(make: Any, paths: list[Any]):
    module = Holder()
    a, b = nnx.Param(jnp.ones(2)), nnx.Param(jnp.zeros(2))
    module.parts = make(a, b)
    assert paths_of(module) == tuple(("parts", *path) for path in paths)
    leaves = nnx.to_flat_state(nnx.state(module)).leaves
    assert leaves[0] is a and leaves[1] is b
    again = nnx.merge(*nnx.split(module))
    assert paths_of(again) == paths_of(module)

    def bump(module: Any) -> None:
        for leaf in nnx.to_flat_state(nnx.state(module)).leaves:
            leaf.value = leaf + 1

    nnx.jit(bump)(module)
    assert (float(a[0]), float(b[0])) == (2.0, 1.0)


def test_d30_assigned_lists_and_dicts_become_tracked_ones():
    module = Holder()
    plain = [1, {"a": 2}]
    module.x = plain
    assert isinstance(module.x, list) and isinstance(module.x, nnx.List)
    assert isinstance(module.x[1], dict) and isinstance(module.x[1], nnx.Dict)
    assert module.x == [1, {"a": 2}]
    assert type(plain[1]) is dict  # the original is untouched


@pytest.mark.parametrize("is_empty", [True, False], ids=["empty", "filled"])
@pytest.mark.parametrize("kind", ["Variable", "Module", "array"])
def test_d39_data_appended_to_a_plain_list_is_seen(kind: str, is_empty: bool):
    module = Holder()
    module.items = [] if is_empty else ["first"]
    total = nnx.jit(lambda m: sum(jnp.sum(x) for x in jax.tree.leaves(nnx.state(m))))
    assert float(total(module)) == 0
    new: Any = {
        "Variable": nnx.Param(jnp.ones(2)),
        "Module": nnx.List([nnx.Param(jnp.ones(2))]),
        "array": jnp.ones(2),
    }[kind]
    module.items.append(new)
    assert len(nnx.split(module)[1]) == 1
    assert float(total(module)) == 2
    if kind == "array":
        module.items[-1] = jnp.zeros(2)  # not baked in
        assert float(total(module)) == 0


def test_d39_data_added_to_a_plain_dict_is_seen():
    module = Holder()
    module.items = {}
    total = nnx.jit(lambda m: sum(jnp.sum(x) for x in jax.tree.leaves(nnx.state(m))))
    assert float(total(module)) == 0
    module.items["w"] = nnx.Param(jnp.ones(2))
    assert float(total(module)) == 2
    assert paths_of(module) == (("items", "w"),)


# D32, iteration


def test_d32_iter_modules_is_post_order_and_visits_once():
    module = Holder()
    module.b, module.a = Block(), Holder()
    module.a.inner = Block()
    module.c = module.a.inner
    module.d = [Block(), module]
    visited = list(nnx.iter_modules(module))
    assert [path for path, _ in visited] == [
        ("a", "inner"),
        ("a",),
        ("b",),
        ("d", 0),
        ("d",),
        (),
    ]
    assert visited[-1][1] is module
    assert visited[0][1] is module.c


def test_d32_iter_graph_yields_nodes_leaves_and_static_values():
    module = Holder()
    module.w, module.n, module.t = nnx.Param(1.0), 3, (4, jnp.ones(1))
    module.l = ["s", nnx.Param(2.0)]
    module.again = module.w
    visited = list(nnx.iter_graph(module))
    assert [path for path, _ in visited] == [
        ("again",),
        ("l", 0),
        ("l", 1),
        ("l",),
        ("n",),
        ("t", 0),
        ("t", 1),
        ("t",),
        (),
    ]
    values = dict(visited)
    assert values["again",] is module.w
    assert (values["n",], values["l", 0], values["t", 0]) == (3, "s", 4)
    assert values[()] is module


def test_d32_children():
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert [key for key, _ in nnx.iter_children(linear)] == ["bias", "kernel"]
    module = Holder()
    module.block, module.w, module.n = Block(), nnx.Param(1.0), 2
    assert [key for key, _ in nnx.iter_children(module)] == ["block", "w"]
    assert [key for key, _ in nnx.iter_module_children(module)] == ["block"]


# D109 is in test_pytree; D113-D116


@pytest.mark.parametrize("name", ["items", "keys", "values", "get", "update", "pop"])
def test_d113_names_of_state_methods_survive(name: str):
    module = Holder()
    setattr(module, name, nnx.Param(jnp.ones(2)))
    graphdef, state = nnx.split(module)
    assert state[name] is getattr(module, name)
    assert list(state.items()) == [(name, state[name])]
    again = nnx.merge(graphdef, state)
    assert getattr(again, name) is getattr(module, name)
    nnx.update(module, {name: jnp.zeros(2)})
    assert float(getattr(module, name)[0]) == 0


@pytest.mark.parametrize("name", ["items", "keys", "values", "append", "clear"])
def test_d113_a_dict_keeps_its_methods(name: str):
    parameter = nnx.Param(1.0)
    node = nnx.Dict(**{name: parameter, "other": 2})
    assert node[name] is parameter
    assert [key for key, _ in node.items()] == [name, "other"]
    assert list(node.keys()) == [name, "other"]
    assert nnx.state(node)[name] is parameter
    again = nnx.merge(*nnx.split(node))
    assert list(again.items()) == [(name, parameter), ("other", 2)]


def test_d114_mixed_keys_are_ordered():
    module = Holder()
    module.x = {"b": nnx.Param(1.0), 10: nnx.Param(2.0), 2: nnx.Param(3.0)}
    module.x[("t", 1)] = nnx.Param(4.0)
    assert paths_of(module) == (
        ("x", 2),
        ("x", 10),
        ("x", "b"),
        ("x", ("t", 1)),
    )
    assert jax.tree.leaves(nnx.state(module)) == [3.0, 2.0, 1.0, 4.0]
    again = nnx.merge(*nnx.split(module))
    assert list(again.x) == ["b", 10, 2, ("t", 1)]
    state = jax.tree.map(lambda x: x + 1, nnx.state(module))
    nnx.update(module, state)
    assert module.x["b"].value == 2.0
    grads = nnx.grad(lambda m: m.x[2] * m.x[("t", 1)])(module)
    assert grads["x"][2].value == 5.0


@pytest.mark.parametrize("value", ["jax array", "numpy array", "number"])
@pytest.mark.parametrize("place", ["attribute", "List", "Dict"])
def test_d115_an_array_over_a_variable_raises(place: str, value: str):
    module = Holder()
    module.w, module.l, module.d = nnx.Param(jnp.ones(2)), [nnx.Param(1.0)], {}
    module.d["k"] = nnx.BatchStat(1.0)
    new = {"jax array": jnp.ones(2), "numpy array": np.ones(2), "number": 2.0}[value]
    action, match = {
        "attribute": (
            lambda: setattr(module, "w", new),
            r"Holder\.w holds a Param; .* `m\.w\[\.\.\.\] = x`.*"
            r"`m\.w = nnx\.Param\(x\)`",
        ),
        "List": (
            lambda: module.l.__setitem__(0, new),
            r"\[0\] holds a Param; .*`\[0\]\.value = x`.*Param\(x\)",
        ),
        "Dict": (
            lambda: module.d.__setitem__("k", new),
            r"\['k'\] holds a BatchStat; .*`\['k'\]\.value = x`.*BatchStat\(x\)",
        ),
    }[place]
    before = snapshot(module)
    with pytest.raises(ValueError, match=match):
        action()
    before.check()


def test_d115_an_array_over_a_variable_raises_inside_jit_too():
    module = Block()
    before = snapshot(module)
    with pytest.raises(ValueError, match=r"Block\.scale holds a Param"):
        nnx.jit(lambda m: setattr(m, "scale", jnp.ones(3)))(module)
    before.check()


def test_d115_replacing_or_dropping_a_variable_on_purpose():
    module = Block()
    new = nnx.Param(jnp.zeros(3))
    module.scale = new
    assert module.scale is new
    module.mean = None
    assert paths_of(module) == (("scale",),)


def test_d116_signatures_are_those_of_the_constructors():
    names = list(inspect.signature(nnx.Linear).parameters)
    assert names[:2] == ["in_features", "out_features"]
    assert "use_bias" in names and "rngs" in names
    assert list(inspect.signature(Block).parameters) == ["seed"]

    @nnx.dataclass
    class Affine(nnx.Module):
        w: nnx.Param
        power: int = nnx.static(default=1)

    assert list(inspect.signature(Affine).parameters) == ["w", "power"]


# A.2.2: is_data, has_data, register_data_type


@pytest.mark.parametrize("kind", DATA)
def test_is_data_true(kind: str):
    assert nnx.is_data(DATA[kind]()) is True


@pytest.mark.parametrize("kind", [*STATIC, "list of data", "dict of data"])
def test_is_data_false(kind: str):
    containers = {
        "list of data": lambda: [jnp.ones(1)],
        "dict of data": lambda: {"a": nnx.Param(1.0)},
    }
    assert nnx.is_data({**STATIC, **containers}[kind]()) is False


def test_is_data_of_nodes():
    assert nnx.is_data(Block()) and nnx.is_data(nnx.List()) and nnx.is_data(nnx.Dict())


def test_has_data_lists_the_leaves():
    a, b, c = jnp.ones(1), nnx.Param(1.0), Block()
    assert nnx.has_data({"a": a, "n": 1, "b": [b, (c, "s")]}) == [a, b, c]
    assert nnx.has_data((1, "s", None)) == []


def test_register_data_type():
    @nnx.register_data_type
    class Box:
        pass

    class SubBox(Box):
        pass

    assert isinstance(Box, type) and nnx.is_data(Box())
    assert not nnx.is_data(SubBox())  # exactly this type
    module = Holder()
    module.box, module.pair = Box(), (Box(), 1)
    state = nnx.state(module)
    assert state["box"] is module.box
    assert paths_of(module) == (("box",), ("pair", 0))
    assert nnx.merge(*nnx.split(module)).box is module.box
    assert nnx.clone(module).box is module.box


# A.2.2: data, static, dataclass, check_pytree


@pytest.mark.parametrize("value", [2.0, 3, True], ids=repr)
def test_data_makes_a_number_a_leaf(value: Any):
    module = Holder()
    module.x = nnx.data(value)
    assert module.x == value and type(module.x) is type(value)
    assert nnx.state(module)["x"] == value
    step, traces = count_traces(lambda m: m.x * 1)
    assert step(module) == value
    module.x = value * 2
    assert nnx.state(module)["x"] == value * 2  # still data
    assert step(module) == value * 2


def test_data_numbers_are_traced():
    module = Holder()
    module.x = nnx.data(2.0)
    step, traces = count_traces(lambda m: m.x * 3)
    results = []
    for value in (2.0, 4.0, 8.0):
        module.x = value
        results.append(float(step(module)))
    assert results == [6.0, 12.0, 24.0]
    assert len(traces) == 1


def test_data_on_containers_and_none():
    module = Holder()
    module.items = nnx.data([1.0, 2.0])
    module.nothing = nnx.data(None)
    assert module.items == [1.0, 2.0]
    assert module.nothing is None
    assert nnx.merge(*nnx.split(module)).items == [1.0, 2.0]


def test_data_may_not_stand_inside_a_container():
    module = Holder()
    before = snapshot(module)
    for value in ([nnx.data(1.0)], {"a": nnx.data(1.0)}, (1, nnx.data(1.0))):
        with pytest.raises(
            ValueError, match=r"nnx\.data\(\.\.\.\) marks an attribute .*`self\.x = "
        ):
            module.x = value
    before.check()


def test_static_keeps_a_value_out_of_the_state():
    module = Holder()
    module.sizes = nnx.static([1, 2])
    assert len(nnx.state(module)) == 0
    assert list(module.sizes) == [1, 2]


@pytest.mark.parametrize(
    "value",
    [lambda: jnp.ones(1), lambda: nnx.Param(1.0), Block, lambda: [1, jnp.ones(1)]],
    ids=["array", "Variable", "Module", "list"],
)
def test_static_refuses_data(value: Callable[[], Any]):
    module = Holder()
    before = snapshot(module)
    with pytest.raises(
        ValueError, match=r"nnx\.static was given data, a \w+: .*without nnx\.static"
    ):
        module.x = nnx.static(value())
    before.check()


def test_check_pytree_finds_data_in_a_static_attribute():
    module = Holder()
    module.inner = Holder()
    module.inner.sizes = nnx.static([1])
    nnx.check_pytree(module)
    module.inner.sizes.append(jnp.ones(1))
    with pytest.raises(
        ValueError,
        match=r"inner\.sizes is marked static but contains data, a \w+: assign it "
        r"without nnx\.static",
    ):
        nnx.check_pytree(module)


def test_dataclass_fields():
    @nnx.dataclass
    class Affine(nnx.Module):
        w: nnx.Param
        rate: float = nnx.data(default=0.5)
        sizes: tuple[int, ...] = nnx.static(default=(1, 2))
        names: list[str] = dataclasses.field(default_factory=list)

    module = Affine(nnx.Param(1.0), rate=2.0)
    assert paths_of(module) == (("rate",), ("w",))
    assert (module.rate, module.sizes, module.names) == (2.0, (1, 2), [])
    assert isinstance(module.names, nnx.List)
    again = nnx.merge(*nnx.split(module))
    assert type(again) is Affine and again.sizes == (1, 2)
    nnx.jit(lambda m: m.w.set_value(m.w + m.rate))(module)
    assert float(module.w[...]) == 3.0


@pytest.mark.parametrize(
    "value",
    [lambda: jnp.ones(1), lambda: (jnp.ones(1),), lambda: [nnx.Param(1.0)], Block],
    ids=["array", "tuple", "list", "Module"],
)
def test_dataclass_static_fields_refuse_data(value: Callable[[], Any]):
    @nnx.dataclass
    class Affine(nnx.Module):
        sizes: Any = nnx.static(default=(1, 2))

    with pytest.raises(ValueError, match=r"sizes.*data, a \w+: .*without nnx\.static"):
        Affine(sizes=value())
    module = Affine()
    before = snapshot(module)
    with pytest.raises(ValueError, match=r"sizes.*data, a \w+: .*without nnx\.static"):
        module.sizes = value()
    before.check()


def test_a_list_that_contains_itself_on_a_formerly_static_attribute():
    module = nnx.Module()
    module.a = nnx.static("text")
    loop = nnx.List([nnx.Param(jnp.ones(2))])
    loop.append(loop)
    with pytest.raises(ValueError, match="Param"):
        module.b = nnx.static(loop)
    module.a = loop
    assert module.a[1] is loop
    assert len(jax.tree.leaves(nnx.state(module))) == 1


@pytest.mark.parametrize(
    "value",
    [lambda: jnp.ones(1), lambda: (jnp.ones(1),), lambda: [jnp.ones(1)]],
    ids=["array", "tuple", "list"],
)
def test_data_on_a_formerly_static_attribute_is_no_constant(value: Callable[[], Any]):
    module = Holder()
    module.x = nnx.static((1, 2))
    module.x = value()
    assert len(jax.tree.leaves(nnx.state(module))) == 1
    total = nnx.jit(lambda m: sum(jnp.sum(x) for x in jax.tree.leaves(m.x)))
    assert float(total(module)) == 1
    module.x = jax.tree.map(lambda x: x + 1, module.x)
    assert float(total(module)) == 2


def test_dataclass_options():
    @nnx.dataclass(kw_only=True)
    class Affine(nnx.Module):
        w: nnx.Param
        n: int = 3

    assert Affine(w=nnx.Param(1.0)).n == 3
    with pytest.raises(TypeError, match="positional argument"):
        Affine(nnx.Param(1.0))  # pyright: ignore


def test_slots_are_refused():
    with pytest.raises(TypeError, match=r"Slotted defines __slots__.*remove __slots__"):

        class Slotted(nnx.Module):
            __slots__ = ("x",)


@pytest.mark.parametrize("make", [lambda: nnx.Param(1.0), lambda: jnp.ones(1), Block])
def test_data_on_the_class_is_refused(make: Callable[[], Any]):
    with pytest.raises(
        TypeError, match=r"class attribute Shared\.w holds a .*set `self\.w = "
    ):
        type("Shared", (nnx.Module,), {"w": make()})


def test_properties_with_setters_work():
    class Scaled(nnx.Module):
        def __init__(self):
            self.raw = nnx.Param(jnp.ones(2))

        @property
        def scale(self) -> Any:
            return self.raw * 2

        @scale.setter
        def scale(self, value: Any) -> None:
            self.raw[...] = value / 2

    module = Scaled()
    module.scale = jnp.full(2, 6.0)
    np.testing.assert_array_equal(module.raw, [3.0, 3.0])
    assert paths_of(module) == (("raw",),)


# A.2.2: train, eval, set_attributes, view, with_attributes


def net() -> nnx.Module:
    module = Holder()
    module.block = Block()
    module.layers = [nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.relu]
    module.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    return module


def test_train_and_eval_set_the_modes_everywhere():
    module: Any = net()
    module.again = module
    for call, wanted in ((module.eval, True), (module.train, False)):
        call()
        assert module.block.deterministic is wanted
        assert module.layers[0].deterministic is wanted
        assert module.norm.use_running_average is wanted
        assert not hasattr(module, "deterministic")
        assert not hasattr(module.norm, "deterministic")
    module.eval(name="evaluated")
    assert module.block.name == "evaluated"


def test_set_attributes_selects_by_filter():
    module: Any = net()
    module.set_attributes(nnx.Dropout, deterministic=True)
    assert module.layers[0].deterministic is True
    assert module.block.deterministic is False
    module.set_attributes(nnx.PathContains("block"), deterministic=True, name="x")
    assert (module.block.deterministic, module.block.name) == (True, "x")


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.set_attributes(deterministic=True, determinstic=True),
        lambda m: m.set_attributes(nnx.BatchNorm, determinstic=True),
        lambda m: nnx.with_attributes(m, determinstic=True),
    ],
)
def test_set_attributes_names_what_it_does_not_find(call: Callable[[Any], Any]):
    module = net()
    before = snapshot(module)
    with pytest.raises(
        ValueError,
        match=r"attribute 'determinstic': check the spelling, or pass "
        r"raise_if_not_found=False",
    ):
        call(module)
    before.check()


def test_set_attributes_may_be_told_not_to_raise():
    module: Any = net()
    module.set_attributes(determinstic=True, name="x", raise_if_not_found=False)
    assert module.block.name == "x"
    assert not hasattr(module.block, "determinstic")


def test_view_changes_modes_of_a_copy_that_shares_the_variables():
    module: Any = net()
    before = snapshot(module)
    view = nnx.view(module, deterministic=True, use_running_average=True)
    assert type(view) is Holder and view is not module
    assert view.layers[0].deterministic is True
    assert view.norm.use_running_average is True
    assert view.norm.scale is module.norm.scale
    before.check()
    only = nnx.view(module, only=nnx.BatchNorm, use_running_average=True)
    assert only.norm.use_running_average is True
    assert only.layers[0].deterministic is False


def test_view_names_modes_that_nothing_takes():
    module = net()
    before = snapshot(module)
    with pytest.raises(
        ValueError, match=r"no Module takes the mode determinstic: see nnx\.view_info"
    ):
        nnx.view(module, deterministic=True, determinstic=True)
    before.check()
    view: Any = nnx.view(
        module, deterministic=True, determinstic=True, raise_if_not_found=False
    )
    assert view.layers[0].deterministic is True


def test_view_info_names_classes_and_modes():
    text = nnx.view_info(net())
    assert "Dropout: deterministic" in text
    assert "BatchNorm: use_running_average" in text
    assert "BatchNorm" not in nnx.view_info(net(), only=nnx.Dropout)


def test_with_attributes_changes_a_copy():
    module: Any = net()
    before = snapshot(module)
    other = nnx.with_attributes(module, name="other", deterministic=True)
    assert other.block.name == "other"
    assert other.layers[0].deterministic is True
    assert other.block.scale is module.block.scale
    only = nnx.with_attributes(module, only=nnx.Dropout, deterministic=True)
    assert (only.layers[0].deterministic, only.block.deterministic) == (True, False)
    before.check()


def test_with_attributes_takes_a_pytree_of_modules():
    modules = (Block(), [Block()])
    first, (second,) = nnx.with_attributes(modules, name="other")
    assert (first.name, second.name) == ("other", "other")
    assert (modules[0].name, modules[1][0].name) == ("block", "block")


def test_a_module_without_init_takes_no_arguments():
    class Plain(nnx.Module):
        pass

    class Derived(Plain):
        def __init__(self, n):
            super().__init__()
            self.n = n

    @nnx.dataclass
    class Fields(nnx.Module):
        n: int

    assert Derived(3).n == Fields(3).n == 3 and type(Plain()) is Plain
    for arguments in ((nnx.Rngs(0),), (1, 2)):
        with pytest.raises(TypeError, match="takes no arguments, .*define it"):
            Plain(*arguments)
    with pytest.raises(TypeError, match=r"Plain\(\) takes no arguments"):
        Plain(rngs=nnx.Rngs(0))
