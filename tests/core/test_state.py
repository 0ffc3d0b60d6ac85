"""State and its forms: nested, flat, pure dicts; order, selection, merging."""

import contextlib
import copy
import itertools
import pickle
from collections.abc import Mapping, MutableMapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

# One nested mapping of each sort of keys, in an order that is not the sorted one.
NESTED = {
    "flat": {"b": 1, "a": 2},
    "nested": {"b": {"y": 1, "x": {"q": 2, "p": 3}}, "a": 4},
    "ints": {"layers": {10: 1, 2: {"w": 2}, 0: 3}},
    "mixed": {"m": {"x": 1, 3: 2, "a": 3, 1: 4}},
    "mixed at the root": {"x": 1, 10: 2, 9: 3},
    "tuples": {"m": {("b", 1): 1, "z": 2, ("a", 2): 3}},
    "odd": {"a b": 1, "": 2, "ü": {"%": 3}},
    "method names": {"items": 1, "keys": {"values": 2, "pop": 3}, "update": 4},
    "empty": {},
}
nested = pytest.mark.parametrize("mapping", NESTED.values(), ids=NESTED)


def order(key):
    """Ints before strings before the rest."""
    kind = 0 if isinstance(key, int) else 1 if isinstance(key, str) else 2
    return (kind, key if kind < 2 else repr(key))


def sorted_pairs(mapping, path=()):
    for key in sorted(mapping, key=order):
        value = mapping[key]
        if isinstance(value, Mapping):
            yield from sorted_pairs(value, (*path, key))
        else:
            yield (*path, key), value


def params(mapping):
    """The same mapping with Params for the numbers."""
    return {
        k: params(v) if isinstance(v, dict) else nnx.Param(jnp.float32(v), was=v)
        for k, v in mapping.items()
    }


def as_dict(state):
    return {k: as_dict(v) if isinstance(v, Mapping) else v for k, v in state.items()}


def equal(a, b):
    """Equal nested mappings with the very same leaves."""
    return as_dict(a).keys() == as_dict(b).keys() and all(
        equal(a[k], b[k])
        if isinstance(a[k], Mapping) and isinstance(b[k], Mapping)
        else a[k] is b[k] or (not isinstance(a[k], nnx.Variable) and a[k] == b[k])
        for k in a
    )


# D14


@nested
@pytest.mark.parametrize("wrap", [lambda m: m, params])
def test_d14_order_of_a_state_is_sorted_on_every_level(mapping, wrap):
    state = nnx.State(wrap(mapping))
    pairs = list(sorted_pairs(mapping))
    assert nnx.to_flat_state(state).paths == tuple(path for path, _ in pairs)
    assert jax.tree.leaves(state) == [value for _, value in pairs]
    assert jax.tree.leaves(nnx.to_flat_state(state)) == [value for _, value in pairs]
    keyed, _ = jax.tree_util.tree_flatten_with_path(state)
    assert [tuple(e.key for e in keys if hasattr(e, "key")) for keys, _ in keyed] == [
        path for path, _ in pairs
    ]


@nested
@pytest.mark.parametrize("reverse", [False, True])
def test_d14_order_of_assignment_does_not_matter(mapping, reverse):
    def turned(m):
        items = list(m.items())[:: -1 if reverse else 1]
        return {k: turned(v) if isinstance(v, dict) else v for k, v in items}

    made = turned(params(mapping))
    model = nnx.Dict(made)
    state = nnx.state(model)
    paths = [path for path, _ in sorted_pairs(mapping)]
    assert list(nnx.graphdef(model).paths) == paths
    assert [x.was for _, x in nnx.to_flat_state(nnx.split(model)[1])] == [
        value for _, value in sorted_pairs(mapping)
    ]
    assert [float(x) for x in jax.tree.leaves(state)] == [
        value for _, value in sorted_pairs(mapping)
    ]
    levels: list = [(mapping, state)]
    for plain, level in levels:
        assert list(level) == sorted(plain, key=order)
        levels += [(plain[k], level[k]) for k in plain if isinstance(plain[k], dict)]


def test_d14_two_comes_before_ten():
    model = nnx.List([nnx.Param(i) for i in range(12)])
    assert list(nnx.state(model)) == list(range(12))
    assert jax.tree.leaves(nnx.state(model)) == list(range(12))
    assert nnx.to_flat_state(nnx.state(model)).paths[2:11:8] == ((2,), (10,))


def test_d14_editing_keeps_the_order_of_iteration_and_flattens_sorted():
    state = nnx.State({"b": 1})
    state["a"] = 2
    state["c"] = {"y": 3}
    state["c"]["x"] = 4
    assert (list(state), list(state["c"])) == (["b", "a", "c"], ["y", "x"])
    assert jax.tree.leaves(state) == [2, 1, 4, 3]
    assert nnx.to_flat_state(state).leaves == [2, 1, 4, 3]


@pytest.mark.parametrize("added", ["x", ("t", 1)])
def test_d14_editing_may_mix_keys(added):
    state = nnx.State({"m": {2: 1, 10: 2}})
    state["m"][added] = 3
    assert jax.tree.leaves(state) == [1, 2, 3]
    assert jax.tree.map(lambda x: x + 1, state)["m"][added] == 4


# D26


@nested
def test_d26_state_is_a_mutable_mapping(mapping):
    state = nnx.State(mapping)
    assert isinstance(state, MutableMapping)
    assert as_dict(state) == mapping and len(state) == len(mapping)
    assert list(state) == list(mapping) and bool(state) == bool(mapping)
    assert all(key in state for key in mapping) and "missing" not in state
    assert state == nnx.State(mapping) and state.get("missing", 7) == 7
    for key in list(mapping):
        popped = state.pop(key)
        assert (
            as_dict(popped) if isinstance(popped, nnx.State) else popped
        ) == mapping[key]
    assert not state
    state.update(mapping)
    assert as_dict(state) == mapping
    assert state.setdefault("new", 1) == 1 and state["new"] == 1
    state.clear()
    assert len(state) == 0


def test_d26_attributes():
    state = nnx.State({"a": {"b": nnx.Param(1)}})
    state.c = nnx.State({"d": 2})
    state.a.e = 3
    assert state["c"]["d"] == state.c.d == 2 and state["a"]["e"] == 3
    assert state.a.b is state["a"]["b"]
    del state.a.b
    del state.c
    assert as_dict(state) == {"a": {"e": 3}}


@pytest.mark.parametrize("act", [lambda s: s.x, lambda s: delattr(s, "x")])
def test_d26_missing_attribute(act):
    with pytest.raises(AttributeError, match=r"no entry 'x', only \['a', 'b'\]"):
        act(nnx.State({"a": 1, "b": 2}))


@pytest.mark.parametrize("act", [lambda s: s["x"], lambda s: s.__delitem__("x")])
def test_d26_missing_item(act):
    with pytest.raises(KeyError, match="'x'"):
        act(nnx.State({"a": 1}))


def test_d26_sub_states_share_their_storage():
    state = nnx.State({"a": {"b": {"c": 1}}})
    state["a"]["b"]["d"] = 2
    below = state.a.b
    below["e"] = 3
    assert as_dict(state) == {"a": {"b": {"c": 1, "d": 2, "e": 3}}}


@pytest.mark.parametrize("copied", [nnx.State, copy.copy, copy.deepcopy])
def test_d26_copies_are_independent(copied):
    state = nnx.State({"a": {"b": nnx.Param(1)}})
    new = copied(state)
    assert (new.a.b is state.a.b) is (copied is not copy.deepcopy)
    new["a"]["c"] = 1
    assert "c" not in state["a"]


def test_d26_a_state_takes_what_it_is_given_apart():
    given = {"a": {"b": 1}}
    state = nnx.State(given)
    state["a"]["c"] = 2
    assert given == {"a": {"b": 1}}


@nested
@pytest.mark.parametrize(
    "through", [pickle.loads, copy.deepcopy, lambda s: jax.tree.map(lambda x: x, s)]
)
def test_d26_round_trips(mapping, through):
    state = nnx.State(params(mapping))
    given = pickle.dumps(state) if through is pickle.loads else state
    new = through(given)
    assert type(new) is nnx.State
    assert nnx.to_flat_state(new).paths == nnx.to_flat_state(state).paths
    for (_, a), (_, b) in zip(
        nnx.to_flat_state(new), nnx.to_flat_state(state), strict=True
    ):
        assert type(a) is nnx.Param and a.value == b.value and a.was == b.was


MERGES = {
    "disjoint": ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
    "later wins": ({"a": 1, "b": 1}, {"b": 2}, {"a": 1, "b": 2}),
    "deep": ({"a": {"x": 1, "y": 1}}, {"a": {"y": 2}}, {"a": {"x": 1, "y": 2}}),
    "ints": ({"a": {0: 1}}, {"a": {1: 2}}, {"a": {0: 1, 1: 2}}),
    "empty": ({"a": {}}, {"b": 1}, {"b": 1}),
    "nothing": ({}, {}, {}),
    "leaf over tree": ({"a": {"x": 1}}, {"a": 2}, {"a": 2}),
    "tree over leaf": ({"a": 1}, {"a": {"x": 2}}, {"a": {"x": 2}}),
}


@pytest.mark.parametrize(("a", "b", "merged"), MERGES.values(), ids=MERGES)
@pytest.mark.parametrize("wrap", [nnx.State, dict])
def test_d26_merging(a, b, merged, wrap):
    for got in (
        nnx.merge_state(wrap(a), wrap(b)),
        nnx.State(a) | wrap(b),
        nnx.merge_state(wrap({}), wrap(a), wrap(a), wrap(b)),
    ):
        assert type(got) is nnx.State and as_dict(got) == merged
    assert as_dict(nnx.State(a)) == a, "the arguments are not changed"


def test_d26_merging_does_not_write_into_a_leaf():
    leaf = nnx.Param({"x": 1})
    merged = nnx.State({"a": leaf}) | {"a": {"y": nnx.Param(2)}}
    assert leaf.value == {"x": 1}
    assert as_dict(merged)["a"].keys() == {"y"}


def test_d26_conflicting_paths_do_not_write_into_a_leaf():
    leaf = nnx.Param({"x": 1})
    with contextlib.suppress(ValueError):  # an error would do as well
        nnx.from_flat_state([(("a",), leaf), (("a", "y"), nnx.Param(2))])
    assert leaf.value == {"x": 1}


def test_d26_merging_to_another_class():
    class Mine(nnx.State):
        pass

    assert type(nnx.merge_state({"a": 1}, cls=Mine)) is Mine
    assert type(nnx.from_flat_state({("a",): 1}, cls=Mine)) is Mine


@pytest.mark.parametrize(
    ("a", "b", "rest"),
    [
        ({"a": 1, "b": 2}, {"a": 0}, {"b": 2}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 0}}, {"a": {"y": 2}}),
        ({"a": {"x": 1}}, {"a": {"x": 0}}, {}),
        ({"a": 1}, {"b": 0}, {"a": 1}),
    ],
)
@pytest.mark.parametrize("wrap", [nnx.State, dict])
def test_d26_subtracting(a, b, rest, wrap):
    assert as_dict(nnx.State(a) - wrap(b)) == rest


@nested
@pytest.mark.parametrize(
    "flat",
    [
        lambda s: nnx.to_flat_state(s),
        lambda s: dict(nnx.to_flat_state(s)),
        lambda s: list(nnx.to_flat_state(s)),
        lambda s: reversed(list(nnx.to_flat_state(s))),
        lambda s: [(list(path), leaf) for path, leaf in nnx.to_flat_state(s)],
    ],
)
def test_d26_flat_round_trip(mapping, flat):
    state = nnx.State(params(mapping))
    back = nnx.from_flat_state(flat(state))
    assert type(back) is nnx.State and equal(back, state)
    assert list(back) == sorted(mapping, key=order)


@nested
def test_d26_flat_states(mapping):
    state = nnx.State(params(mapping))
    flat = nnx.to_flat_state(state)
    assert isinstance(flat, nnx.FlatState) and len(flat) == len(flat.paths)
    assert [leaf.was for leaf in flat.leaves] == [v for _, v in sorted_pairs(mapping)]
    pairs = list(zip(flat.paths, flat.leaves, strict=True))
    for n, (path, leaf) in enumerate(flat):
        assert path == pairs[n][0] == flat[n][0] and leaf is pairs[n][1] is flat[n][1]
    assert equal(flat.to_nested_state(), state)
    backwards = nnx.FlatState(pairs[::-1], sort=True)
    assert backwards.paths == flat.paths
    assert nnx.FlatState(pairs[::-1], sort=False).paths == flat.paths[::-1]
    doubled = jax.tree.map(lambda x: x * 2, flat)
    assert isinstance(doubled, nnx.FlatState) and doubled.paths == flat.paths
    assert [x.value for x in doubled.leaves] == [x.value * 2 for x in flat.leaves]


def test_d26_flat_states_split_filter_and_merge():
    state = nnx.State({"b": nnx.Param(1), "a": {"x": nnx.BatchStat(2)}})
    flat = nnx.to_flat_state(state)
    stats, rest = flat.split(nnx.BatchStat, ...)
    assert (stats.paths, rest.paths) == ((("a", "x"),), (("b",),))
    assert flat.filter(nnx.Cache).paths == ()
    assert [f.paths for f in flat.filter(nnx.Cache, nnx.Param)] == [(), (("b",),)]
    assert nnx.FlatState.merge(rest, stats).paths == flat.paths
    other = nnx.FlatState([(("b",), 5), (("c",), 6)])
    merged = nnx.FlatState.merge(flat, other)
    assert merged.paths == (("a", "x"), ("b",), ("c",)) and merged.leaves[1] == 5
    advice = r"no filter matches b \(Param\): add a filter for the rest, such as `...`"
    with pytest.raises(ValueError, match=advice):
        flat.split(nnx.BatchStat)


@pytest.mark.parametrize(
    "split",
    [
        nnx.split_state,
        lambda s, *f: nnx.to_flat_state(s).split(*f),
        lambda s, *f: nnx.split(nnx.Dict(s), *f),
    ],
)
def test_d26_splitting_is_exhaustive(split):
    state = {f"w{n}": nnx.Param(n) for n in range(10)}
    advice = r"no filter matches w0 \(Param\), .* and 2 more: add a filter .*`...`"
    with pytest.raises(ValueError, match=advice):
        split(state, nnx.Cache, nnx.BatchStat)


@pytest.mark.parametrize("wrap", [nnx.State, dict])
def test_d26_splitting_and_filtering(wrap):
    a, b, c = nnx.Param(1), nnx.BatchStat(2), nnx.Cache(3)
    state = wrap({"m": {"a": a, "b": b}, "c": c})
    assert equal(nnx.filter_state(state, nnx.Param), {"m": {"a": a}})
    first, second = nnx.filter_state(state, nnx.Param, nnx.Variable)
    assert equal(first, {"m": {"a": a}}) and equal(second, {"m": {"b": b}, "c": c})
    parts = nnx.split_state(state, nnx.Param, nnx.BatchStat, ...)
    assert [len(nnx.to_flat_state(part)) for part in parts] == [1, 1, 1]
    for pieces in itertools.permutations(parts):
        assert equal(nnx.merge_state(*pieces), state)
    assert equal(nnx.split_state(state, ...), state), "one filter: no tuple"
    assert nnx.filter_state(state, nnx.RngState) == {}


def test_d26_mapping_over_leaves():
    state = nnx.State({"b": nnx.Param(1), "a": {0: nnx.Param(2)}})
    mapped = nnx.map_state(lambda path, leaf: (path, leaf.value), state)
    assert as_dict(mapped) == {"b": (("b",), 1), "a": {0: (("a", 0), 2)}}
    assert list(mapped) == ["a", "b"]
    replaced = nnx.map_state(lambda path, leaf: leaf.replace(0), state)
    assert type(replaced.b) is nnx.Param and state.b.value == 1


@nested
def test_d26_pure_dicts(mapping):
    pure = nnx.to_pure_dict(nnx.State(params(mapping)))
    assert pure == mapping
    assert all(type(x) is dict for x in [pure, *pure.values()] if isinstance(x, dict))
    shown = nnx.to_pure_dict(nnx.State(params(mapping)), lambda leaf: leaf.was + 1)
    for path, value in sorted_pairs(mapping):
        assert get(shown, path) == value + 1


def get(mapping, path):
    for key in path:
        mapping = mapping[key]
    return mapping


def test_d26_pure_values_are_what_variables_show():
    class Doubled(nnx.Param):
        def get_value(self, **kwargs):
            return super().get_value(**kwargs) * 2

    state = nnx.State({"a": Doubled(2), "b": jnp.ones(2), "c": nnx.Param({"d": [1]})})
    pure = nnx.to_pure_dict(state)
    assert (pure["a"], pure["c"]) == (4, {"d": [1]}) and pure["b"] is state["b"]


# D27


def network():
    return nnx.Dict(
        layers=[nnx.Param(jnp.full(2, n), was=n) for n in range(11)],
        head={"w": nnx.Param(jnp.zeros(3)), 7: nnx.Param(1)},
        stats=nnx.BatchStat(jnp.zeros(2)),
    )


def with_string_keys(tree):
    """What a checkpoint makes of integer keys."""
    if not isinstance(tree, Mapping):
        return tree
    return {str(k): with_string_keys(v) for k, v in tree.items()}


@pytest.mark.parametrize("through", [lambda d: d, with_string_keys])
@pytest.mark.parametrize("restored", [lambda d: d, nnx.restore_int_paths])
def test_d27_checkpoint_round_trip(through, restored):
    model = network()
    pure = restored(through(nnx.to_pure_dict(nnx.state(model))))
    abstract = nnx.state(
        nnx.map(lambda path, v: v.replace(jnp.zeros_like(v.value) - 1), network())
    )
    nnx.replace_by_pure_dict(abstract, pure)
    merged = nnx.merge(nnx.graphdef(model), abstract)
    for n in range(11):
        assert (merged.layers[n].value == n).all() and merged.layers[n].was == n
    assert merged.head[7].value == 1 and type(merged.stats) is nnx.BatchStat


def test_d27_restoring_ints():
    given = {"layers": {"0": {"w": 1}, "10": 2, "x1": 3, "1x": 4}, "12": [5], 3: 6}
    assert nnx.restore_int_paths(given) == {
        "layers": {0: {"w": 1}, 10: 2, "x1": 3, "1x": 4},
        12: [5],
        3: 6,
    }
    assert nnx.restore_int_paths(nnx.State({"a": {"1": 2}})) == {"a": {1: 2}}
    assert nnx.restore_int_paths({}) == {}


@pytest.mark.parametrize("key", ["", " 1", "1.0", "²", "٣x", "1_0", "+1"])
def test_d27_only_digits_become_ints(key):
    assert nnx.restore_int_paths({key: 1}) == {key: 1}


def test_d27_a_partial_dict_replaces_a_part():
    state = nnx.state(network())
    before = dict(nnx.to_flat_state(state))
    new = jnp.full(2, 9.0)
    nnx.replace_by_pure_dict(state, {"layers": {"10": new, 2: new}})
    after = dict(nnx.to_flat_state(state))
    for path in before:
        if path in (("layers", 10), ("layers", 2)):
            assert after[path].value is new and after[path] is not before[path]
            assert after[path].was == before[path].was
            assert type(after[path]) is nnx.Param
        else:
            assert after[path] is before[path]


def test_d27_the_model_keeps_its_variables():
    model = network()
    state = nnx.state(model)
    nnx.replace_by_pure_dict(state, {"layers": {0: jnp.ones(2)}})
    assert (model.layers[0].value == 0).all(), "the State got a new Variable"
    nnx.update(model, state)
    assert (model.layers[0].value == 1).all()


def test_d27_own_replacement():
    state = nnx.State({"a": nnx.Param(1, was=1), "b": 2})
    nnx.replace_by_pure_dict(
        state, {"a": 10, "b": 20}, lambda leaf, value: (leaf, value)
    )
    assert state["a"][0].was == 1 and (state["a"][1], state["b"]) == (10, (2, 20))


def test_d27_values_may_be_dicts():
    state = nnx.State({"a": nnx.Param({"x": 1}), "b": nnx.Param(2)})
    nnx.replace_by_pure_dict(state, nnx.to_pure_dict(nnx.State({"a": nnx.Param({})})))
    nnx.replace_by_pure_dict(state, {"a": {"y": 3}})
    assert state.a.value == {"y": 3} and state.b.value == 2


@pytest.mark.parametrize(
    ("pure", "named"),
    [
        ({"foo": 1}, "foo"),
        ({"layers": {"11": 1}}, r"layers\['11'\]"),
        ({"head": {"w": 1, "v": {"u": 2}}, "foo": 3}, r"head.v.u, foo"),
        ({"head": 1}, "head"),
        ({"head": {"7": 1, "8": 2}}, r"head\['8'\]"),
    ],
)
def test_d27_unknown_keys(pure, named):
    state = nnx.state(network())
    before = nnx.to_flat_state(state).leaves
    advice = rf"the State has nothing at {named}; it has head\[7\], head.w, layers\[0\]"
    with pytest.raises(ValueError, match=advice):
        nnx.replace_by_pure_dict(state, pure)
    after = nnx.to_flat_state(state).leaves
    assert all(a is b for a, b in zip(after, before, strict=True)), "nothing is changed"


# Other forms


def test_as_pure():
    class Doubled(nnx.Param):
        def get_value(self, **kwargs):
            return super().get_value(**kwargs) * 2

    tree = (nnx.Param(1), [nnx.Cache({"a": None})], {"x": Doubled(2), "y": "text"})
    assert nnx.as_pure(tree) == (1, [{"a": None}], {"x": 4, "y": "text"})
    state = nnx.as_pure(nnx.State({"a": {"b": nnx.Param(3)}}))
    assert type(state) is nnx.State and state.a.b == 3
    assert nnx.as_pure(nnx.Param(5)) == 5


def test_d113_entries_named_like_methods():
    model = nnx.Dict(items=nnx.Param(1), keys=nnx.Dict(values=nnx.Param(2)))
    graphdef, state = nnx.split(model)
    assert state["items"].value == 1 and state["keys"]["values"].value == 2
    assert [key for key, _ in state.items()] == ["items", "keys"]
    merged = nnx.merge(graphdef, state)
    assert merged["items"].value == 1 and len(list(merged.items())) == 2


@pytest.mark.parametrize(
    "transform", [jax.jit, nnx.jit, lambda f: f, lambda f: lambda s: jax.tree.map(f, s)]
)
def test_states_cross_transforms(transform):
    state = nnx.state(network())

    def double(x):
        return jax.tree.map(lambda leaf: leaf * 2, x)

    doubled = transform(double)(state)
    assert type(doubled) is nnx.State and list(doubled) == list(state)
    for (path, a), (_, b) in zip(
        nnx.to_flat_state(doubled), nnx.to_flat_state(state), strict=True
    ):
        assert type(a) is type(b) and a.get_metadata() == b.get_metadata()
        assert np.array_equal(a.value, b.value * 2), path


def test_equal_structures_are_equal_treedefs():
    a, b = (jax.tree.structure(nnx.state(network())) for _ in range(2))
    assert a == b and hash(a) == hash(b)
    model = network()
    model.layers[0].set_metadata(was="changed")
    assert jax.tree.structure(nnx.state(model)) != a


@pytest.mark.parametrize("name", ["split", "filter", "map", "merge", "to_pure_dict"])
def test_methods_of_other_libraries_name_the_function(name):
    with pytest.raises(AttributeError, match=r"nnx\.\w+\(state, \.\.\.\)") as info:
        getattr(nnx.State({"a": 1}), name)
    function = str(info.value).partition("nnx.")[2].partition("(")[0]
    assert callable(getattr(nnx, function))
    assert not hasattr(nnx.State({}), "__array__")


def test_states_of_states_compare_their_leaves():
    assert nnx.State({"a": {"b": 1}}) == nnx.State({"a": {"b": 1}}) == {"a": {"b": 1}}
    assert nnx.State({"a": 1}) != nnx.State({"a": 2})
    with pytest.raises(TypeError, match="unhashable type: 'State'"):
        hash(nnx.State({}))


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (nnx.State({}), "State({})"),
        (
            nnx.State({"a": {0: nnx.Param(1)}, "b": 2}),
            "State({'a': {0: Param(value=1)}, 'b': 2})",
        ),
    ],
)
def test_repr(state, text):
    assert repr(state) == text


# Flax NNX


@pytest.mark.parametrize(
    "name", ["flat", "nested", "ints", "odd", "method names", "empty"]
)
def test_forms_as_flax(oracle, name):
    results = []
    for module in (nnx, oracle("flax.nnx")):
        state = module.State(NESTED[name])
        flat = module.to_flat_state(state)
        results.append(
            {
                "flat": (flat.paths, list(flat.leaves)),
                "leaves": jax.tree.leaves(state),
                "keys": [
                    jax.tree_util.keystr(k)
                    for k, _ in jax.tree_util.tree_leaves_with_path(state)
                ],
                "pure": module.to_pure_dict(state),
                "back": module.to_pure_dict(module.from_flat_state(flat)),
                "or": module.to_pure_dict(state | module.State({"new": 1})),
                "mapped": module.to_pure_dict(
                    module.map_state(lambda p, x: str(p), state)
                ),
                "ints": module.restore_int_paths(with_string_keys(NESTED[name])),
                "iterated": list(state),
            }
        )
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["disjoint", "later wins", "deep", "ints", "empty"])
def test_merging_as_flax(oracle, name):
    a, b, _ = MERGES[name]
    results = []
    for module in (nnx, oracle("flax.nnx")):
        merged = module.merge_state(module.State(a), module.State(b))
        results.append(module.to_pure_dict(merged))
    assert results[0] == results[1]
