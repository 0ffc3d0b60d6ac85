"""Variables, Modules and States as JAX pytrees: items D12, D109."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

from ..properties.comparison import Snapshot
from ..properties.programs import reachable


class Affine(nnx.Module):
    """A Module without sharing."""

    def __init__(self, seed: int = 0):
        self.w = nnx.Param(jnp.arange(2.0) + seed, note="n")
        self.b = jnp.ones(2)
        self.parts = [nnx.BatchStat(jnp.zeros(2)), "static", {"k": jnp.ones(1)}]
        self.size = 2

    def __call__(self, x: Any) -> Any:
        return x * self.w + self.b


class Shifted(nnx.Param):
    """A Param that shows something else than it stores."""

    def get_value(self, **kwargs: Any) -> Any:
        return self.raw_value + 1


def snapshot(*roots: Any) -> Snapshot:
    return Snapshot(reachable(roots))


# D12, Variables


@pytest.mark.parametrize("kind", [nnx.Variable, nnx.Param, nnx.BatchStat, nnx.RngKey])
def test_d12_mapping_a_variable_keeps_class_and_metadata(kind: Any):
    variable = kind(jnp.ones(2), note="a", tag="t")
    before = snapshot(variable)
    other = jax.tree.map(lambda x: x + 1, variable)
    before.check()
    assert type(other) is kind and other is not variable
    assert other.get_metadata() == {"note": "a", "tag": "t"}
    np.testing.assert_array_equal(other, [2.0, 2.0])


def test_d12_class_and_metadata_are_in_the_treedef():
    def structure(variable: Any) -> Any:
        return jax.tree.structure(variable)

    one = structure(nnx.Param(1.0, note="a"))
    assert one == structure(nnx.Param(2.0, note="a"))
    assert one != structure(nnx.Param(1.0, note="b"))
    assert one != structure(nnx.Param(1.0))
    assert one != structure(nnx.BatchStat(1.0, note="a"))


def test_d12_the_value_may_be_a_pytree():
    variable = nnx.Variable({"a": jnp.ones(1), "b": [2.0]})
    other = jax.tree.map(lambda x: x * 3, variable)
    assert float(other.value["a"][0]) == 3.0 and other.value["b"] == [6.0]
    (path, _), *_ = jax.tree_util.tree_leaves_with_path(variable)
    assert jax.tree_util.keystr(path) == ".value['a']"


def test_d12_the_leaf_is_the_raw_value():
    variable = Shifted(jnp.ones(2))
    assert float(jax.tree.leaves(variable)[0][0]) == 1.0
    other = jax.tree.map(lambda x: x * 5, variable)
    assert type(other) is Shifted
    assert (float(other.raw_value[0]), float(other.value[0])) == (5.0, 6.0)


@pytest.mark.parametrize(
    "transform",
    [
        lambda v: jax.jit(lambda v: v * 2)(v),
        lambda v: jax.vmap(lambda v: v * 2)(v),
        lambda v: jax.grad(lambda v: (v * v).sum())(v).value,
        lambda v: jax.lax.scan(lambda c, v: (c, v * 2), 0, v)[1],
    ],
    ids=["jit", "vmap", "grad", "scan"],
)
def test_d12_plain_transforms_take_a_variable(transform: Callable[[Any], Any]):
    np.testing.assert_array_equal(transform(nnx.Param(jnp.ones(3))), [2.0, 2.0, 2.0])


def test_d12_a_variable_made_by_a_pytree_operation_can_be_written():
    other = jax.tree.map(jnp.zeros_like, nnx.Param(jnp.ones(2)))
    other[...] = 5.0
    other += 1
    np.testing.assert_array_equal(other, [6.0, 6.0])
    other.set_metadata(note=1)
    assert other.note == 1


def test_d12_writing_a_variable_argument_of_plain_jit_stays_inside():
    variable = nnx.Param(jnp.ones(2))
    before = snapshot(variable)

    @jax.jit
    def bumped(variable: Any) -> Any:
        variable += 1
        return variable

    np.testing.assert_array_equal(bumped(variable), [2.0, 2.0])
    before.check()


# D109, Modules


def test_d109_tree_map_gives_a_new_module():
    module = Affine()
    before = snapshot(module)
    other = jax.tree.map(lambda x: x * 0, module)
    before.check()
    assert type(other) is Affine and other.size == 2
    assert type(other.w) is nnx.Param and other.w.note == "n"
    assert isinstance(other.parts, nnx.List) and other.parts[1] == "static"
    assert [float(x.sum()) for x in jax.tree.leaves(other)] == [0.0] * 4
    other.extra = 1  # a usable Module
    other.parts.append(2)
    other.w[...] = 1.0
    before.check()


@pytest.mark.parametrize(
    ("transform", "wanted"),
    [
        (lambda m, x: jax.jit(lambda m, x: m(x))(m, x), [1.0, 3.0]),
        (lambda m, x: jax.eval_shape(lambda m, x: m(x), m, x).shape, (2,)),
        (lambda m, x: jax.vmap(lambda m, x: m(x))(m, x), [1.0, 3.0]),
        (lambda m, x: jax.vmap(m)(x[None])[0], [1.0, 3.0]),
        (lambda m, x: jax.lax.map(m, x[None])[0], [1.0, 3.0]),
        (lambda m, x: jax.checkpoint(lambda m, x: m(x))(m, x), [1.0, 3.0]),
        (lambda m, x: jax.grad(lambda m: m(x).sum())(m).w.value, [2.0, 2.0]),
        (lambda m, x: jax.jit(jax.grad(lambda m: m(x).sum()))(m).w.value, [2.0, 2.0]),
    ],
    ids="jit eval_shape vmap vmap(m) lax.map checkpoint grad jit(grad)".split(),
)
def test_d109_plain_transforms_take_a_module(transform: Any, wanted: Any):
    module, x = Affine(), jnp.full(2, 2.0)
    del module.parts
    before = snapshot(module)
    np.testing.assert_array_equal(transform(module, x), wanted)
    before.check()


def test_d109_equal_modules_share_a_trace_of_plain_jit():
    traces = []

    @jax.jit
    def step(module: Any, x: Any) -> Any:
        traces.append(1)
        return module(x)

    for seed in range(3):
        step(Affine(seed), jnp.ones(2))
    assert len(traces) == 1
    module = Affine()
    module.size = 3
    step(module, jnp.ones(2))
    assert len(traces) == 2


def tied() -> Affine:
    module = Affine()
    module.again = [1, module.w]
    return module


def twice() -> Affine:
    module = Affine()
    module.inner = Affine()
    module.other = (module.inner,)
    return module


def cyclic() -> Affine:
    module = Affine()
    module.inner = Affine()
    module.inner.up = module
    return module


SHARING = {
    "Variable": (tied, r"its Param at '(w|again\[1\])' is also at '(w|again\[1\])'"),
    "Module": (
        twice,
        r"its Affine at '(inner|other\[0\])' is also at '(inner|other\[0\])'",
    ),
    "cycle": (cyclic, r"its Affine at 'inner\.up' is also at 'the root'"),
}
USES: dict[str, Callable[[Any], Any]] = {
    "tree.map": lambda m: jax.tree.map(lambda x: x, m),
    "tree.leaves": jax.tree.leaves,
    "leaves_with_path": jax.tree_util.tree_leaves_with_path,
    "jit": lambda m: jax.jit(lambda m: m.b)(m),
    "vmap": lambda m: jax.vmap(lambda m: m.b)(m),
    "grad": lambda m: jax.grad(lambda m: m.b.sum())(m),
    "inside a tuple": lambda m: jax.tree.map(lambda x: x, (1, m)),
}


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("use", USES)
def test_d109_sharing_is_an_error_that_names_both_paths(use: str, sharing: str):
    make, match = SHARING[sharing]
    module = make()
    before = snapshot(module)
    with pytest.raises(
        ValueError,
        match=rf"Affine cannot be used as a JAX pytree: {match}, .*"
        r"`graphdef, state = nnx\.split\(model\)`",
    ):
        USES[use](module)
    before.check()


def test_d109_sharing_between_two_arguments_is_not_seen_by_jax():
    """Each is a tree by itself; JAX makes two of it. Documented: read-only use."""
    module = Affine()
    result = jax.jit(lambda a, b: a.w + b.w)(module, module)
    np.testing.assert_array_equal(result, [0.0, 2.0])


def test_d109_a_class_may_opt_out():
    class NoTree(nnx.Pytree, pytree=False):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))

    node = NoTree()
    assert jax.tree.leaves(node) == [node]
    assert nnx.graphdef(node).paths == (("w",),)
    assert float(nnx.jit(lambda n: n.w.sum())(node)) == 2.0


@pytest.mark.parametrize("make", [nnx.List, nnx.Dict])
def test_d109_containers_are_pytrees(make: Any):
    items = {"a": nnx.Param(jnp.ones(2)), "b": jnp.ones(1), "c": "static"}
    node = make(items if make is nnx.Dict else items.values())
    other = jax.tree.map(lambda x: x + 1, node)
    assert type(other) is make and len(other) == 3
    assert [float(x[0]) for x in jax.tree.leaves(other)] == [2.0, 2.0]
    assert (other[2] if make is nnx.List else other["c"]) == "static"


def test_d109_a_module_written_inside_plain_jit_stays_inside():
    module = Affine()
    before = snapshot(module)

    @jax.jit
    def bumped(module: Any) -> Any:
        module.w += 1
        module.size = 5
        module.new = nnx.Param(jnp.ones(1))
        return module

    other = bumped(module)
    before.check()
    assert other.size == 5 and float(other.w[0]) == 1.0
    assert float(other.new[0]) == 1.0


# States


@pytest.mark.parametrize("filters", [(), (nnx.Param,)])
def test_states_map_to_states(filters: Any):
    state = nnx.state(Affine(), *filters)
    other = jax.tree.map(lambda x: x + 1, state)
    assert type(other) is nnx.State
    assert list(other) == list(state)
    assert type(other["w"]) is nnx.Param and other["w"].note == "n"
    assert other["w"] is not state["w"]
    assert jax.tree.structure(other) == jax.tree.structure(state)


def test_states_of_equal_models_share_a_trace():
    traces = []

    @jax.jit
    def total(state: Any) -> Any:
        traces.append(1)
        return sum(jnp.sum(x) for x in jax.tree.leaves(state))

    assert [float(total(nnx.state(Affine(n)))) for n in range(3)] == [4.0, 6.0, 8.0]
    assert len(traces) == 1


def test_a_state_of_mixed_keys_is_a_pytree():
    state = nnx.State({"a": {1: 1.0, "x": 2.0, ("t", 0): 3.0}, 0: 4.0})
    assert jax.tree.leaves(state) == [4.0, 1.0, 2.0, 3.0]
    assert jax.tree.map(lambda x: x + 1, state)["a"][("t", 0)] == 4.0
    assert float(jax.jit(lambda s: s["a"]["x"] + s[0])(state)) == 6.0
