"""The walk and what is built on it: items D14-D25, D33-D36, D40, D108."""

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnxlite as nnx

from ..properties.comparison import Snapshot
from ..properties.programs import reachable


class Holder(nnx.Module):
    """A Module without attributes of its own."""

    def __init__(self, **attributes: Any):
        for name, value in attributes.items():
            setattr(self, name, value)


class Counter(nnx.Module):
    """A Module with a method that changes it."""

    def __init__(self):
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))
        self.scale = nnx.Param(jnp.ones(2))

    def __call__(self, x: Any) -> Any:
        self.count += 1
        return x * self.scale


class Reversed(NamedTuple):
    right: Any
    left: Any


def snapshot(*roots: Any) -> Snapshot:
    return Snapshot(reachable(roots))


def paths_of(node: Any) -> tuple[Any, ...]:
    return nnx.to_flat_state(nnx.state(node)).paths


def mixed() -> Holder:
    """Two Params, a statistic, an RNG key with a tag, and a bare array."""
    return Holder(
        head=Holder(kernel=nnx.Param(jnp.ones(2)), bias=nnx.Param(jnp.zeros(2))),
        mean=nnx.BatchStat(jnp.zeros(1)),
        key=nnx.RngKey(jax.random.key(0), tag="noise"),
        table=jnp.arange(3.0),
        size=3,
    )


# D14, order


def test_d14_keys_are_sorted_whatever_the_order_of_assignment():
    first, second = Holder(), Holder()
    for module, names in ((first, "bca"), (second, "acb")):
        for name in names:
            setattr(module, name, nnx.Param(float(ord(name))))
    assert list(nnx.state(first)) == list(nnx.state(second)) == ["a", "b", "c"]
    assert nnx.graphdef(first) == nnx.graphdef(second)
    assert jax.tree.leaves(nnx.state(first)) == [97.0, 98.0, 99.0]


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (lambda xs: list(xs), list(range(11))),
        (lambda xs: tuple(xs), list(range(11))),
        (lambda xs: {n: xs[n] for n in reversed(range(11))}, list(range(11))),
        (lambda xs: {"b": xs[1], "a": xs[0]}, ["a", "b"]),
        (lambda xs: Reversed(right=xs[1], left=xs[0]), ["left", "right"]),
        (lambda xs: nnx.List(xs), list(range(11))),
        (lambda xs: nnx.Dict(b=xs[1], a=xs[0]), ["a", "b"]),
    ],
    ids=["list", "tuple", "int dict", "dict", "namedtuple", "List", "Dict"],
)
def test_d14_containers_are_walked_in_key_order(make: Any, keys: list[Any]):
    module = Holder(x=make([nnx.Param(float(n)) for n in range(11)]))
    graphdef, state = nnx.split(module)
    wanted = [float(n) for n in range(len(keys))]
    assert list(state["x"]) == keys
    assert [leaf.value for leaf in nnx.to_flat_state(state).leaves] == wanted
    assert jax.tree.leaves(state) == wanted
    assert graphdef.paths == tuple(("x", key) for key in keys)
    assert nnx.flatten(module, with_paths=False)[1] == nnx.to_flat_state(state).leaves


def test_d14_an_optax_state_is_walked_by_field_name():
    state = optax.adam(0.1).init({"w": jnp.ones(2)})
    assert nnx.graphdef(Holder(x=state)).paths == (
        ("x", 0, "count"),
        ("x", 0, "mu", "w"),
        ("x", 0, "nu", "w"),
    )


def test_d14_a_state_edited_by_hand_flattens_sorted():
    state = nnx.State({"b": 1.0})
    state["a"] = 2.0
    assert list(state) == ["b", "a"]
    assert jax.tree.leaves(state) == [2.0, 1.0]


def test_state_key_paths_are_those_of_flax():
    module = Holder(l=Holder(kernel=nnx.Param(jnp.ones(1))))
    paths = [
        jax.tree_util.keystr(path)
        for tree in (nnx.state(module), module)
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    assert paths == ["['l']['kernel'].value", ".l.kernel.value"]


# D16, D17, D18: filters


def test_d16_the_first_filter_that_matches_wins():
    module = mixed()
    _, head, params, rest = nnx.split(
        module, nnx.PathContains("kernel"), nnx.Param, ...
    )
    assert nnx.to_flat_state(head).paths == (("head", "kernel"),)
    assert nnx.to_flat_state(params).paths == (("head", "bias"),)
    assert nnx.to_flat_state(rest).paths == (("key",), ("mean",), ("table",))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_d16_the_order_of_the_pieces_does_not_matter(order: tuple[int, ...]):
    module = mixed()
    graphdef, *pieces = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    again = nnx.merge(graphdef, *(pieces[n] for n in order))
    assert again.head.kernel is module.head.kernel
    assert again.mean is module.mean
    assert again.table is module.table


@pytest.mark.parametrize("filters", [(nnx.Param,), (nnx.Param, nnx.BatchStat)])
def test_d17_split_must_be_exhaustive(filters: Any):
    module = mixed()
    before = snapshot(module)
    with pytest.raises(
        ValueError, match=r"no filter matches key \(RngKey\).*table .*add .*`\.\.\.`"
    ):
        nnx.split(module, *filters)
    before.check()


def test_d17_state_just_selects():
    module = mixed()
    assert nnx.to_flat_state(nnx.state(module, nnx.Param)).paths == (
        ("head", "bias"),
        ("head", "kernel"),
    )
    stats, none = nnx.state(module, nnx.BatchStat, nnx.Cache)
    assert (list(stats), list(none)) == (["mean"], [])


@pytest.mark.parametrize("function", [nnx.split, nnx.state, nnx.pop, nnx.unpack])
@pytest.mark.parametrize("catch_all", [..., True], ids=repr)
def test_d17_a_catch_all_stands_last(function: Any, catch_all: Any):
    module = Holder(w=nnx.Param(1.0))
    before = snapshot(module)
    with pytest.raises(ValueError, match=r"filter 0 is .*put `\.\.\.` last"):
        function(module, catch_all, nnx.Param)
    before.check()


FILTERS = {
    "type": (nnx.Param, "head.bias head.kernel"),
    "base type": (nnx.Variable, "head.bias head.kernel key mean"),
    "array type": (jax.Array, "table"),
    "union": (nnx.BatchStat | nnx.RngKey, "key mean"),
    "tag": ("noise", "key"),
    "other tag": ("dropout", ""),
    "callable": (lambda path, value: path[-1] == "bias", "head.bias"),
    "value": (lambda path, value: value.shape == (2,), "head.bias head.kernel"),
    "True": (True, "head.bias head.kernel key mean table"),
    "Ellipsis": (..., "head.bias head.kernel key mean table"),
    "False": (False, ""),
    "None": (None, ""),
    "list": ([nnx.BatchStat, "noise"], "key mean"),
    "tuple": ((nnx.BatchStat, nnx.PathContains("bias")), "head.bias mean"),
    "All": (nnx.All(nnx.Param, nnx.PathContains("bias")), "head.bias"),
    "Any": (nnx.Any(nnx.BatchStat, "noise"), "key mean"),
    "Not": (nnx.Not(nnx.Param), "key mean table"),
    "nested": (
        nnx.All(nnx.Variable, nnx.Not([nnx.Param, "noise"])),
        "mean",
    ),
    "path": (nnx.PathContains("head"), "head.bias head.kernel"),
    "part of a path": (
        nnx.PathContains("ea", exact=False),
        "head.bias head.kernel mean",
    ),
    "Everything": (nnx.Everything(), "head.bias head.kernel key mean table"),
    "Nothing": (nnx.Nothing(), ""),
}


@pytest.mark.parametrize("name", FILTERS)
def test_d18_filter_literals(name: str):
    literal, wanted = FILTERS[name]
    state = nnx.state(mixed(), literal)
    found = [".".join(path) for path in nnx.to_flat_state(state).paths]
    assert found == wanted.split()


@pytest.mark.parametrize("literal", [3, 2.5, {"a": 1}, b"tag"], ids=repr)
@pytest.mark.parametrize("function", [nnx.split, nnx.state, nnx.pop])
def test_d18_other_literals_are_refused(function: Any, literal: Any):
    module = mixed()
    before = snapshot(module)
    with pytest.raises(TypeError, match=r"is not a filter: use a type, a str tag"):
        function(module, literal)
    before.check()


# D19, D20: merge checks


BROKEN = {
    "missing": (lambda d: d.pop("b"), r"missing b\."),
    "surplus": (lambda d: d.__setitem__("z", jnp.ones(1)), r"unknown z\."),
    "renamed": (lambda d: d.__setitem__("z", d.pop("b")), r"missing b; unknown z\."),
    "nested": (
        lambda d: d["inner"].__setitem__("q", d["inner"].pop("w")),
        r"missing inner\.w; unknown inner\.q\.",
    ),
    "deeper": (
        lambda d: d.__setitem__("a", {"x": jnp.ones(1), "y": jnp.ones(1)}),
        None,
    ),
}


def three() -> Holder:
    return Holder(
        a=nnx.Param(jnp.ones(1)),
        b=jnp.ones(1),
        inner=Holder(w=nnx.Param(jnp.ones(1))),
    )


@pytest.mark.parametrize("name", ["missing", "surplus", "renamed", "nested"])
def test_d19_d20_merge_checks_the_paths(name: str):
    spoil, match = BROKEN[name]
    graphdef, state = nnx.split(three())
    pure = nnx.to_pure_dict(state)
    spoil(pure)
    with pytest.raises(
        ValueError, match=f"do not fit the GraphDef: {match}.*States of one `split`"
    ):
        nnx.merge(graphdef, pure)


def test_d19_a_leaf_where_a_module_belongs_raises():
    graphdef, state = nnx.split(three())
    pure = nnx.to_pure_dict(state)
    pure["inner"] = jnp.ones(1)
    with pytest.raises(ValueError, match=r"missing inner\.w; unknown inner\."):
        nnx.merge(graphdef, pure)


def test_d19_all_offenders_are_named_at_once():
    graphdef, _ = nnx.split(three())
    with pytest.raises(ValueError, match=r"missing a, b, inner\.w; unknown x, y\."):
        nnx.merge(graphdef, {"x": 1.0, "y": 2.0})


def test_d20_a_state_of_another_model_is_refused():
    one = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    other = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    before = snapshot(one, other)
    with pytest.raises(ValueError, match=r"missing kernel; unknown mean, scale, var"):
        nnx.merge(nnx.graphdef(one), nnx.state(other))
    before.check()


def test_merge_boxes_plain_arrays_into_the_recorded_kinds():
    module = Holder(w=nnx.Param(jnp.ones(2), note="a"), s=nnx.BatchStat(1.0))
    graphdef, state = nnx.split(module)
    again = nnx.merge(graphdef, nnx.to_pure_dict(state))
    assert type(again.w) is nnx.Param and again.w.note == "a"
    assert type(again.s) is nnx.BatchStat
    assert again.w is not module.w


# D21: states alias the object


def test_d21_states_alias_the_object():
    module = mixed()
    _, state = nnx.split(module)
    assert state["head"]["kernel"] is module.head.kernel
    assert nnx.state(module).mean is module.mean
    state["head"]["kernel"][...] = 5.0
    assert float(module.head.kernel[0]) == 5.0
    assert nnx.merge(*nnx.split(module)).mean is module.mean


@pytest.mark.parametrize(
    "make",
    [lambda m: nnx.merge(*nnx.split(m), copy=True), nnx.clone],
    ids=["merge(copy=True)", "clone"],
)
def test_d21_copies_do_not_alias(make: Callable[[Any], Any]):
    module = mixed()
    before = snapshot(module)
    other = make(module)
    other.head.kernel[...] = 5.0
    other.mean.set_metadata(note=1)
    other.size = 4
    before.check()
    assert other.head.kernel.value.shape == (2,)


# D22: update


def test_d22_update_writes_in_place():
    module = mixed()
    kernel, bias, mean = module.head.kernel, module.head.bias, module.mean
    nnx.update(
        module,
        {"head": {"kernel": jnp.full(2, 3.0)}, "table": jnp.zeros(3)},
        nnx.State({"mean": nnx.BatchStat(jnp.ones(1))}),
    )
    assert module.head.kernel is kernel and type(kernel) is nnx.Param
    assert module.head.bias is bias and module.mean is mean
    assert float(kernel[0]) == 3.0 and float(bias[0]) == 0.0
    assert float(mean[0]) == 1.0 and float(module.table[0]) == 0.0


def test_d22_update_takes_value_and_metadata_of_a_variable():
    module = Holder(w=nnx.Param(jnp.ones(2), old=1))
    nnx.update(module, {"w": nnx.Param(jnp.zeros(2), new=2)})
    assert module.w.get_metadata() == {"new": 2}
    nnx.update(module, {"w": jnp.ones(2)})
    assert module.w.get_metadata() == {"new": 2}


def test_d22_update_keeps_the_kind():
    module = Holder(w=nnx.Param(jnp.ones(2)))
    nnx.update(module, {"w": nnx.BatchStat(jnp.zeros(2))})
    assert type(module.w) is nnx.Param


def test_d22_update_with_an_own_state_changes_nothing():
    module = mixed()
    before = snapshot(module)
    nnx.update(module, nnx.state(module))
    nnx.update(module, {})
    before.check()


def test_d22_update_of_lists_dicts_and_tuples():
    module = Holder(
        l=[nnx.Param(1.0), 2], d={"a": jnp.ones(2)}, t=(nnx.Param(1.0), [jnp.ones(1)])
    )
    state = {"l": {0: 5.0}, "d": {"a": jnp.zeros(2)}, "t": {0: 6.0, 1: {0: 7.0}}}
    state["t"][1][0] = jnp.full(1, 7.0)
    nnx.update(module, state)
    assert module.l[0].value == 5.0 and module.t[0].value == 6.0
    assert float(module.d.a[0]) == 0.0 and float(module.t[1][0][0]) == 7.0


MISFITS = {
    "leaf on a Module": ({"head": jnp.ones(2)}, r"head is a Holder, but .* a leaf"),
    "Module on a leaf": ({"table": {"x": jnp.ones(3)}}, r"table"),
    "Module on a Variable": ({"mean": {"x": jnp.ones(1)}}, r"mean wants float32\[1\]"),
    "no array": ({"mean": "text"}, r"mean wants float32\[1\], got"),
    "unknown": ({"heads": jnp.ones(2)}, r"heads is unknown.*'head'.*strict=False"),
    "unknown below": ({"head": {"k": jnp.ones(2)}}, r"head\.k is unknown .*'kernel'"),
    "shape": (
        {"head": {"kernel": jnp.ones(3)}},
        r"head\.kernel wants float32\[2\], got float32\[3\]",
    ),
    "shape of an array": ({"table": jnp.ones(2)}, r"table wants float32\[3\]"),
    "shape of a Variable": (
        {"mean": nnx.BatchStat(jnp.ones((1, 1)))},
        r"mean wants float32\[1\], got float32\[1, 1\]",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_d22_update_refuses_what_does_not_fit(name: str):
    state, match = MISFITS[name]
    module = mixed()
    before = snapshot(module)
    fitting = {"head": {"bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match=f"does not fit Holder: .*{match}"):
        nnx.update(module, fitting, state)
    before.check()


def test_d22_update_lists_every_offender():
    module = mixed()
    with pytest.raises(ValueError, match=r"kernel wants.*new is unknown.*table wants"):
        nnx.update(
            module,
            {"head": {"kernel": jnp.ones(3)}, "new": 1.0, "table": jnp.ones(1)},
        )


def test_d22_update_not_strict():
    module = mixed()
    nnx.update(
        module,
        {"head": {"kernel": jnp.ones(3)}, "new": jnp.ones(2), "extra": nnx.Param(1.0)},
        strict=False,
    )
    assert module.head.kernel.shape == (3,)
    assert module.new.shape == (2,)
    assert type(module.extra) is nnx.Param


def test_d22_update_adds_to_lists_and_dicts_when_not_strict():
    module = Holder(l=[nnx.Param(1.0)], d={})
    nnx.update(module, {"l": {1: nnx.Param(2.0)}, "d": {"a": 3.0}}, strict=False)
    assert len(module.l) == 2 and module.l[1].value == 2.0
    assert module.d["a"] == 3.0


# D23: graphdefs


def double(x: Any) -> Any:
    return x * 2


def base() -> Holder:
    shared = nnx.Param(jnp.ones(2), note="n")
    return Holder(
        w=shared,
        other=shared,
        size=3,
        inner=Holder(f=double, names=["x", ("y", 1)]),
        cfg={"a": 1},
    )


def replace(module: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def change_inner(module: Any, **attributes: Any) -> Any:
    replace(module.inner, **attributes)
    return module


DIFFERENT = {
    "static value": lambda: replace(base(), size=4),
    "static type": lambda: replace(base(), size=3.0),
    "bool for int": lambda: replace(base(), size=True),
    "function": lambda: change_inner(base(), f=nnx.gelu),
    "list content": lambda: change_inner(base(), names=["x", ("y", 2)]),
    "list or tuple": lambda: change_inner(base(), names=("x", ("y", 1))),
    "dict content": lambda: replace(base(), cfg={"a": 2}),
    "class": lambda: replace(base(), inner=nnx.Dict(f=double)),
    "name": lambda: replace(base(), another=1),
    "kind": lambda: replace(
        base(), **dict.fromkeys(("w", "other"), nnx.BatchStat(jnp.ones(2), note="n"))
    ),
    "metadata": lambda: (lambda m: (m.w.set_metadata(note="o"), m)[1])(base()),
    "sharing": lambda: replace(base(), other=nnx.Param(jnp.ones(2), note="n")),
    "mark": lambda: replace(base(), size=nnx.data(3)),
}


def test_d23_equal_structures_have_equal_graphdefs():
    one, two = nnx.graphdef(base()), nnx.graphdef(base())
    assert one == two and hash(one) == hash(two)
    assert one == nnx.split(base())[0] == nnx.flatten(base())[0]
    changed = base()
    changed.w[...] = 7.0
    assert nnx.graphdef(changed) == one  # values are no structure
    assert pickle.loads(pickle.dumps(one)) == one
    assert {one: 1}[two] == 1


@pytest.mark.parametrize("name", DIFFERENT)
def test_d23_other_structures_have_other_graphdefs(name: str):
    assert nnx.graphdef(DIFFERENT[name]()) != nnx.graphdef(base())


def test_d23_a_graphdef_keeps_no_reference_to_mutable_statics():
    module = base()
    before = nnx.graphdef(module)
    module.cfg["a"] = 2
    module.inner.names.append("z")
    assert nnx.graphdef(module) != before
    assert nnx.merge(before, nnx.state(module)).cfg["a"] == 1


def test_d23_changing_back_gives_an_equal_graphdef():
    module = base()
    before = nnx.graphdef(module)
    module.size = 4
    module.size = 3
    assert nnx.graphdef(module) == before


def test_d23_nan_and_zero_as_static_values():
    nan = nnx.graphdef(Holder(x=float("nan")))
    assert nan == nnx.graphdef(Holder(x=float("nan")))
    assert nnx.graphdef(Holder(x=0.0)) != nnx.graphdef(Holder(x=-0.0))


def test_graphdef_is_a_pytree_without_leaves():
    graphdef = nnx.graphdef(base())
    assert jax.tree.leaves(graphdef) == []
    assert jax.jit(lambda g, x: x + g.num_leaves)(graphdef, 1) == 2


# D24, D25: pop


def test_d24_pop_removes_and_returns():
    module = mixed()
    mean, kernel = module.mean, module.head.kernel
    stats, kernels = nnx.pop(module, nnx.BatchStat, nnx.PathContains("kernel"))
    assert stats["mean"] is mean and kernels["head"]["kernel"] is kernel
    assert not hasattr(module, "mean") and not hasattr(module.head, "kernel")
    assert paths_of(module) == (("head", "bias"), ("key",), ("table",))
    assert list(nnx.pop(module, nnx.BatchStat)) == []


def test_d24_pop_leaves_arrays_alone():
    module = mixed()
    assert "table" not in nnx.pop(module, ...)
    assert paths_of(module) == (("table",),)


def test_d24_pop_needs_a_filter():
    module = mixed()
    before = snapshot(module)
    with pytest.raises(ValueError, match=r"nnx\.pop needs a filter: nnx\.pop\(model"):
        nnx.pop(module)
    before.check()


def test_d24_pop_cannot_remove_from_a_tuple():
    module = Holder(w=nnx.Param(1.0), t=[(nnx.Param(2.0), 1)])
    before = snapshot(module)
    with pytest.raises(
        ValueError, match=r"cannot remove from t\[0\]: it is a plain tuple; hold the"
    ):
        nnx.pop(module, nnx.Param)
    before.check()


def test_d25_pop_removes_a_shared_variable_everywhere():
    shared = nnx.Param(1.0)
    module = Holder(
        a=shared,
        b=Holder(c=shared),
        l=[0, shared, Holder(d=shared), 3],
        d={"k": shared},
    )
    module.me = module
    state = nnx.pop(module, nnx.Param)
    assert nnx.to_flat_state(state).leaves == [shared]
    assert paths_of(module) == ()
    assert [x if type(x) is int else type(x) for x in module.l] == [0, Holder, 3]
    assert len(module.l) == 3 and module.l[2] == 3
    assert dict(module.d) == {}


def test_d25_a_list_is_consistent_after_pop():
    module = Holder(l=[nnx.Param(1.0), nnx.BatchStat(2.0), nnx.Param(3.0), "s"])
    nnx.pop(module, nnx.Param)
    assert len(module.l) == 2 and list(module.l)[1] == "s"
    assert paths_of(module) == (("l", 0),)
    module.l.append(nnx.Param(4.0))
    again = nnx.merge(*nnx.split(module))
    assert len(again.l) == 3
    assert float(nnx.jit(lambda m: m.l[0] + m.l[2])(module)) == 6.0


def test_d25_pop_inside_jit():
    shared = nnx.Intermediate(jnp.ones(2))
    module = Holder(a=shared, l=[shared, 1])
    state = nnx.jit(lambda m: nnx.pop(m, nnx.Intermediate))(module)
    assert state["a"] is shared
    assert not hasattr(module, "a") and list(module.l) == [1]


# D33-D36: sharing


COPIES = {
    "merge": lambda m: nnx.merge(*nnx.split(m)),
    "merge copy": lambda m: nnx.merge(*nnx.split(m), copy=True),
    "merge of arrays": lambda m: nnx.merge(
        nnx.graphdef(m), nnx.to_pure_dict(nnx.state(m))
    ),
    "clone": nnx.clone,
    "clone without Variables": lambda m: nnx.clone(m, variables=False),
    "map": lambda m: nnx.map(lambda path, x: x.copy(), m),
    "recursive_map": lambda m: nnx.recursive_map(lambda path, x: x, m),
    "unflatten": lambda m: nnx.unflatten(*nnx.flatten(m)),
    "unpack": lambda m: nnx.merge(nnx.unpack(m)),
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "jit": nnx.jit(lambda m: nnx.clone(m)),
}


@pytest.mark.parametrize("name", COPIES)
def test_d33_a_shared_module_stays_shared(name: str):
    inner = Holder(w=nnx.Param(jnp.ones(2)))
    module = Holder(z=inner, b=Holder(y=inner), a=[1, inner])
    assert paths_of(module) == (("a", 1, "w"),)
    again = COPIES[name](module)
    assert again.z is again.b.y is again.a[1]
    assert again.z is not inner
    assert nnx.graphdef(again) == nnx.graphdef(module)


@pytest.mark.parametrize("name", COPIES)
def test_d34_a_tied_variable_stays_tied(name: str):
    tied = nnx.Param(jnp.ones(2))
    module = Holder(a=Holder(w=tied), b=Holder(w=tied), t=(tied, 1))
    assert len(nnx.to_flat_state(nnx.state(module))) == 1
    again = COPIES[name](module)
    assert again.a.w is again.b.w is again.t[0]
    again.a.w[...] = 3.0
    assert float(again.b.w[0]) == 3.0


@pytest.mark.parametrize("name", sorted(set(COPIES) - {"map"}))
def test_d35_an_array_in_two_places_is_two_leaves(name: str):
    array = jnp.ones(2)
    module = Holder(a=array, b=array, l=[array])
    assert paths_of(module) == (("a",), ("b",), ("l", 0))
    again = COPIES[name](module)
    assert [float(x[0]) for x in (again.a, again.b, again.l[0])] == [1.0] * 3


@pytest.mark.parametrize("make", [tuple, list, lambda xs: {"a": xs[0], "b": xs[1]}])
def test_d36_sharing_between_trees_split_together(make: Any):
    inner = Holder(w=nnx.Param(jnp.ones(2)))
    pair = make([Holder(i=inner), Holder(i=inner)])
    graphdef, state = nnx.split(pair)
    assert len(jax.tree.leaves(state)) == 1
    again = nnx.merge(graphdef, state)
    assert type(again) is type(pair)
    one, two = again.values() if isinstance(again, dict) else again
    assert one.i is two.i and one is not two


def test_find_duplicates():
    tied, block = nnx.Param(1.0), Holder(w=nnx.BatchStat(1.0))
    module = Holder(a=tied, b=[tied, block], c=block, d=(tied,))
    assert nnx.find_duplicates(module) == [
        [("a",), ("b", 0), ("d", 0)],
        [("b", 1), ("c",)],
    ]
    assert nnx.find_duplicates(module, only=nnx.Param) == [[("a",), ("b", 0), ("d", 0)]]
    assert nnx.find_duplicates(mixed()) == []
    module.me = module
    assert [(), ("me",)] in nnx.find_duplicates(module)


# D40: standalone Variables and arrays


@pytest.mark.parametrize(
    "make", [lambda: nnx.Param(jnp.ones(2), note=1), lambda: nnx.BatchStat({"a": 1})]
)
def test_d40_a_variable_is_a_node(make: Callable[[], Any]):
    variable = make()
    graphdef, leaf = nnx.split(variable)
    assert leaf is variable
    assert nnx.merge(graphdef, leaf) is variable
    assert nnx.state(variable) is variable
    other = nnx.clone(variable)
    assert other is not variable and type(other) is type(variable)
    assert other.get_metadata() == variable.get_metadata()
    assert nnx.graphdef(other) == nnx.graphdef(variable)
    assert nnx.jit(lambda v: v)(variable) is variable


def test_d40_update_of_a_variable():
    variable = nnx.Param(jnp.ones(2))
    nnx.update(variable, jnp.zeros(2))
    assert float(variable[0]) == 0.0
    nnx.update(variable, nnx.Param(jnp.full(2, 3.0), note=1))
    assert (float(variable[0]), variable.note) == (3.0, 1)
    before = snapshot(variable)
    with pytest.raises(ValueError, match=r"the root wants float32\[2\]"):
        nnx.update(variable, jnp.zeros(3))
    before.check()


def test_d40_an_array_is_a_node():
    array = jnp.ones(2)
    graphdef, leaf = nnx.split(array)
    assert leaf is array and nnx.merge(graphdef, leaf) is array
    assert nnx.clone(array) is array


def test_d40_variables_in_containers():
    pair = {"a": nnx.Param(1.0), "b": [nnx.Param(2.0)]}
    graphdef, state = nnx.split(pair)
    assert state["b"][0] is pair["b"][0]
    nnx.update(pair, {"b": {0: 5.0}})
    assert pair["b"][0].value == 5.0
    again = nnx.merge(graphdef, state)
    assert again["a"] is pair["a"]


# D108: functional style


def test_d108_split_and_merge_under_plain_jit():
    module = Counter()
    graphdef, state = nnx.split(module)
    traces = []

    @jax.jit
    def step(state: Any, x: Any) -> Any:
        traces.append(1)
        module = nnx.merge(graphdef, state)
        y = module(x)
        return y, nnx.state(module)

    for _ in range(3):
        y, state = step(state, jnp.ones(2))
    assert len(traces) == 1
    assert int(state["count"][...]) == 3
    assert int(module.count[...]) == 0
    nnx.update(module, state)
    assert int(module.count[...]) == 3


def test_d108_a_graphdef_may_be_an_argument_of_plain_jit():
    parts = nnx.split(Counter())
    traces = []

    @jax.jit
    def step(graphdef: Any, state: Any) -> Any:
        traces.append(1)
        return nnx.merge(graphdef, state)(jnp.ones(2))

    step(*parts)
    step(*nnx.split(Counter()))
    assert len(traces) == 1


def test_d108_call():
    module = Counter()
    module.inner = Counter()
    before = snapshot(module)
    pair = nnx.split(module)
    y, pair = nnx.call(pair)(jnp.ones(2))
    y, pair = nnx.call(pair).inner(jnp.ones(2))
    before.check()
    again = nnx.merge(*pair)
    assert (int(again.count[...]), int(again.inner.count[...])) == (1, 1)
    y, pair = nnx.graphdef(module).apply(nnx.state(module))(jnp.full(2, 3.0))
    np.testing.assert_array_equal(y, [3.0, 3.0])
    assert int(nnx.merge(*pair).count[...]) == 1
    before.check()


def test_d108_call_reaches_into_lists():
    pair = nnx.split([Counter(), Counter()])
    _, pair = nnx.call(pair)[1](jnp.ones(2))
    first, second = nnx.merge(*pair)
    assert (int(first.count[...]), int(second.count[...])) == (0, 1)


def test_d108_call_under_jit():
    step = jax.jit(lambda pair, x: nnx.call(pair)(x))
    pair = nnx.split(Counter())
    for _ in range(2):
        _, pair = step(pair, jnp.ones(2))
    assert int(nnx.merge(*pair).count[...]) == 2


def test_d108_a_method_that_raises_changes_nothing():
    class Failing(Counter):
        def fail(self) -> None:
            self.count += 1
            raise RuntimeError("on purpose")

    module = Failing()
    before = snapshot(module)
    with pytest.raises(RuntimeError, match="on purpose"):
        nnx.call(nnx.split(module)).fail()
    before.check()


# map, recursive_map, set_metadata, variables, flatten, unpack


def test_map_gives_a_new_object():
    module = mixed()
    before = snapshot(module)
    seen = []

    def double(path: Any, leaf: Any) -> Any:
        seen.append(path)
        return leaf.replace(leaf * 2) if isinstance(leaf, nnx.Param) else leaf

    other = nnx.map(double, module)
    before.check()
    assert tuple(seen) == nnx.graphdef(module).paths
    assert float(other.head.kernel[0]) == 2.0
    assert type(other.head.kernel) is nnx.Param
    assert other.mean is module.mean


def test_recursive_map_rebuilds_from_the_leaves_up():
    inner = Holder(w=nnx.Param(1.0))
    module = Holder(a=inner, b=[inner, 2], n=3)
    before = snapshot(module)
    order = []

    def swap(path: Any, node: Any) -> Any:
        order.append(path)
        if isinstance(node, Holder) and hasattr(node, "w"):
            return Holder(wrapped=node)
        return node

    other = nnx.recursive_map(swap, module)
    before.check()
    assert order == [("a", "w"), ("a",), ("b",), ()]
    assert other.a is other.b[0]
    assert other.a.wrapped.w is inner.w
    assert (other.n, other.b[1]) == (3, 2)


def test_recursive_map_refuses_cycles_and_tuples():
    module = Holder(a=Holder())
    module.a.up = module
    before = snapshot(module)
    with pytest.raises(
        ValueError, match=r"cannot rebuild a cycle: a\.up leads back.*in place"
    ):
        nnx.recursive_map(lambda path, node: node, module)
    before.check()
    module = Holder(a=(nnx.Param(1.0),))
    before = snapshot(module)
    with pytest.raises(
        ValueError, match=r"cannot replace a child of the plain tuple at a: use an nnx"
    ):
        nnx.recursive_map(
            lambda path, x: x.copy() if isinstance(x, nnx.Variable) else x, module
        )
    before.check()


def test_set_metadata():
    module = mixed()
    nnx.set_metadata(module, only=nnx.Param, rate=0.1)
    assert (module.head.kernel.rate, module.head.bias.rate) == (0.1, 0.1)
    assert not module.mean.has_metadata("rate")
    nnx.set_metadata(module, note="all")
    assert (module.mean.note, module.head.kernel.note) == ("all", "all")
    nnx.set_metadata(module, only=nnx.PathContains("bias"), rate=0.2)
    assert (module.head.kernel.rate, module.head.bias.rate) == (0.1, 0.2)


def test_set_metadata_refuses_unhashable_values():
    module = mixed()
    before = snapshot(module)
    with pytest.raises(TypeError, match=r"must be hashable, but 'note' is .*tuple"):
        nnx.set_metadata(module, note={"a": 1})
    before.check()


def test_variables_is_state():
    module = mixed()
    assert nnx.variables(module, nnx.Param)["head"]["bias"] is module.head.bias


def test_flatten_and_unflatten():
    module = mixed()
    graphdef, flat = nnx.flatten(module)
    assert flat.paths == graphdef.paths
    assert flat.leaves[0] is module.head.bias
    _, leaves = nnx.flatten(module, with_paths=False)
    for state in (flat, leaves, flat.to_nested_state()):
        again = nnx.unflatten(graphdef, state)
        assert again.head.bias is module.head.bias and again.table is module.table
        copied = nnx.unflatten(graphdef, state, copy_variables=True)
        assert copied.head.bias is not module.head.bias
    before = snapshot(module)
    with pytest.raises(ValueError, match=r"do not fit the GraphDef: missing table"):
        nnx.unflatten(graphdef, leaves[:-1])
    before.check()


def test_unpack():
    module = mixed()
    params, rest = nnx.unpack(module, nnx.Param, ...)
    assert params["head"]["kernel"] is module.head.kernel
    assert nnx.graphdef(params) == nnx.graphdef(module)
    assert nnx.merge(params, rest).mean is module.mean
    assert nnx.merge(nnx.unpack(module)).size == 3
    doubled = jax.tree.map(lambda x: x * 2, params)
    assert nnx.graphdef(doubled) == nnx.graphdef(module)
    assert float(nnx.merge(doubled, rest).head.kernel[0]) == 2.0
    with pytest.raises(ValueError, match=r"missing key, mean, table"):
        nnx.merge(params)


def test_split_of_a_pytree_of_nodes():
    model, optimizer = mixed(), nnx.Optimizer(mixed(), optax.sgd(0.1))
    graphdef, params, rest = nnx.split((model, optimizer), nnx.Param, ...)
    assert set(params) == {0, 1}
    again, other = nnx.merge(graphdef, params, rest)
    assert again.head.kernel is model.head.kernel
    assert other.step is optimizer.step


@pytest.mark.parametrize("value", [(), [], {}, Holder(), nnx.List(), (1, "a")])
def test_split_of_what_holds_nothing(value: Any):
    graphdef, state = nnx.split(value)
    assert len(state) == 0 and graphdef.num_leaves == 0
    assert type(nnx.merge(graphdef, state)) is type(value)


def test_broken_static_equality_names_the_attribute():
    class Broken:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no comparison")

        def __hash__(self) -> int:
            return 1

    module = Holder(inner=Holder(cfg=Broken()))
    before = snapshot(module)
    with pytest.raises(
        ValueError, match=r"at 'inner\.cfg': .*Broken cannot be compared.*RuntimeError"
    ):
        nnx.graphdef(module)
    before.check()


def test_merge_with_the_state_first():
    graphdef, state = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match=r"nnx\.merge\(graphdef, \*states\).*a State"):
        nnx.merge(state, graphdef)
