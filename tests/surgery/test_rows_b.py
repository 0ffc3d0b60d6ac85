"""The 70 features that the design started from (features.md B), a test for each.

A test is named after its row. Each does what the row's sketch does, and checks what a
user of the system that the row comes from would check.
"""

import contextlib
import copy
import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnxlite as nnx


class Net(nnx.Module):
    """Linear, batch norm, dropout, a list of blocks, a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(4, 8, rngs=rngs)
        self.bn = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = [nnx.Linear(8, 8, rngs=rngs) for _ in range(2)]
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = self.dropout(nnx.relu(self.bn(self.dense(x))))
        for block in self.blocks:
            y = y + nnx.relu(block(y))
        return self.head(y)


class Hyper(nnx.Module):
    """A network whose kernel another network makes."""

    def __init__(self, rngs: nnx.Rngs):
        self.hyper_net = nnx.Linear(2, 12, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(3))

    def __call__(self, x: Any) -> Any:
        kernel = self.hyper_net(jnp.ones(2)).reshape(4, 3)
        return x @ kernel + self.bias


@pytest.fixture
def m() -> Net:
    return Net(nnx.Rngs(0))


@pytest.fixture
def x() -> Any:
    return jax.random.normal(jax.random.key(1), (5, 4))


def values_of(model: Any) -> dict[Any, Any]:
    return {
        path: np.asarray(jax.random.key_data(v[...]) if "key" in path else v[...])
        for path, v in nnx.to_flat_state(nnx.state(model))
    }


def assert_same(before: dict[Any, Any], after: dict[Any, Any]) -> None:
    assert before.keys() == after.keys()
    for path in before:
        np.testing.assert_array_equal(before[path], after[path], err_msg=str(path))


def loss(model: Any, x: Any) -> Any:
    return (model(x) ** 2).mean()


# Reading and changing parameters


def test_b01_change_a_parameter_of_a_sub_module(m, x):
    before = m.dense.kernel[...]
    m.dense.kernel[...] /= 10
    np.testing.assert_allclose(m.dense.kernel[...], before / 10, rtol=1e-6)


def test_b02_change_it_for_one_call_only(m, x):
    m.eval()
    before, y = values_of(m), m(x)
    t = nnx.clone(m)
    t.dense.kernel[...] /= 10
    assert not np.allclose(t(x), y)
    assert_same(before, values_of(m))
    np.testing.assert_array_equal(m(x), y)


def test_b03_put_a_variable_by_path(m):
    w = jnp.full((4, 8), 2.0)
    nnx.update(m, {"dense": {"kernel": w}})
    np.testing.assert_array_equal(m.dense.kernel[...], w)
    variable = m.dense.kernel
    nnx.set_path(m, "dense.kernel", 3 * np.ones((4, 8)))
    assert m.dense.kernel is variable and variable.dtype == jnp.float32
    nnx.set_path(m, ("blocks", 1, "bias"), jnp.ones(8))
    assert m.blocks[1].bias.sum() == 8
    with pytest.raises(ValueError, match=r"'dense.kernel' wants float32\[4, 8\], got"):
        nnx.set_path(m, "dense.kernel", jnp.ones((8, 4)))
    with pytest.raises(ValueError, match="did you mean 'dense.kernel'"):
        nnx.set_path(m, "dense.kernal", w)
    assert variable[0, 0] == 3
    new = nnx.Linear(8, 5, rngs=nnx.Rngs(1))
    nnx.set_path(m, "head", new)
    assert m.head is new


def test_b04_get_a_variable_by_path(m):
    k = nnx.state(m, nnx.Param)["dense"]["kernel"][...]
    np.testing.assert_array_equal(k, m.dense.kernel[...])
    assert nnx.get_path(m, "dense.kernel") is m.dense.kernel
    for path in ("blocks.1", "blocks[1]", ("blocks", 1)):
        assert nnx.get_path(m, path) is m.blocks[1]
    assert nnx.get_path(m, "dense.in_features") == 4
    assert nnx.get_path(m, ()) is m
    with pytest.raises(ValueError, match=r"nothing at 'blocks\[2\]': blocks is a List"):
        nnx.get_path(m, "blocks.2")


def test_b05_all_parameters_below_a_name(m):
    sub = nnx.state(m, nnx.PathContains("dense"))
    assert nnx.to_flat_state(sub).paths == (("dense", "bias"), ("dense", "kernel"))


def test_b06_arithmetic_of_all_parameters(m):
    before = values_of(m)
    nnx.update(m, jax.tree.map(lambda a: a * 0.5, nnx.state(m, nnx.Param)))
    for path, value in nnx.to_flat_state(nnx.state(m, nnx.Param)):
        np.testing.assert_array_equal(value[...], before[path] / 2)


def test_b07_shapes_are_checked_when_written(m):
    before = values_of(m)
    state = {"dense": {"kernel": jnp.ones((8, 4))}, "head": {"kernl": jnp.ones(3)}}
    with pytest.raises(ValueError) as caught:
        nnx.update(m, state, strict=True)
    text = str(caught.value)
    assert "dense.kernel wants float32[4, 8], got float32[8, 4]" in text
    assert "head.kernl is unknown" in text
    assert_same(before, values_of(m))


def test_b08_parameters_exist_before_the_first_call():
    assert Net(nnx.Rngs(0)).dense.kernel.shape == (4, 8)


# Variable kinds and collections


def test_b09_kinds_of_variables():
    w1 = nnx.Param(jnp.ones(2))
    mu, v = nnx.BatchStat(jnp.zeros(8)), nnx.Variable(jnp.array(0))
    state = nnx.state(nnx.Dict(w1=w1, mu=mu, v=v), nnx.Param)
    assert list(state) == ["w1"] and state.w1 is w1


def test_b10_param_and_variable_made_inline():
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.kernel = nnx.Param(rngs.lecun_normal()((4, 8), jnp.float32))
            self.count = nnx.Variable(jnp.array(0, jnp.int32))

    layer = Layer(nnx.Rngs(0))
    expected = nnx.Linear(4, 8, rngs=nnx.Rngs(0)).kernel
    np.testing.assert_array_equal(layer.kernel[...], expected[...])
    assert layer.count.dtype == jnp.int32


def test_b11_custom_collections_by_class_and_by_name(x):
    class Stats(nnx.Variable):
        pass

    nnx.register_variable_name("step_stats", Stats, overwrite=True)
    assert nnx.variable_type_from_name("step_stats") is Stats
    model = nnx.Dict(dense=nnx.Linear(4, 2, rngs=nnx.Rngs(0)), n=Stats(jnp.zeros(())))

    @nnx.jit
    def step(model, x):
        model.n += x.sum()
        return model.dense(x)

    step(model, x)
    assert list(nnx.state(model, Stats)) == ["n"]
    np.testing.assert_allclose(model.n[...], x.sum(), rtol=1e-5)


UNTOUCHED = {
    "jit": lambda f: nnx.jit(f),
    "grad": lambda f: lambda m, x: nnx.grad(lambda m: f(m, x).sum())(m),
    "vmap": lambda f: lambda m, x: nnx.vmap(f, in_axes=(None, 0))(m, x),
    "scan": lambda f: (
        lambda m, x: nnx.scan(
            lambda m, x: (m, f(m, x)),
            in_axes=(nnx.Carry, 0),
            out_axes=(nnx.Carry, 0),
        )(m, x)
    ),
    "remat": lambda f: nnx.remat(f),
    "cond": lambda f: lambda m, x: nnx.cond(True, f, f, m, x),
    "fori_loop": lambda f: (
        lambda m, x: nnx.fori_loop(
            0, 2, lambda i, c: (f(c[0], c[1]), c[0])[::-1], (m, x)
        )
    ),
    "eval_shape": lambda f: lambda m, x: nnx.eval_shape(f, m, x),
}


@pytest.mark.parametrize("transform", UNTOUCHED)
def test_b12_values_that_are_no_arrays_pass_through(transform):
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(3))
            self.meta = nnx.Variable({"version": "1.0"})
            self.version = "1.0"

        def __call__(self, x):
            assert self.meta.value == {"version": "1.0"}
            return self.w * x

    model = Model()
    UNTOUCHED[transform](lambda m, x: m(x))(model, jnp.ones((2, 3)))
    assert model.meta.value == {"version": "1.0"} and model.version == "1.0"


def test_b13_temporary_variables(m, x):
    class Temp(nnx.Variable):
        pass

    class Model(nnx.Module):
        def __call__(self, x):
            self.last = Temp(x)
            return x

    model = Model()
    model(x)
    gone = nnx.pop(model, Temp)
    np.testing.assert_array_equal(gone.last[...], x)
    with nnx.temporary(model, Temp):
        model(x)
        assert isinstance(model.last, Temp)
    assert not hasattr(model, "last")
    with contextlib.suppress(ZeroDivisionError), nnx.temporary(model, Temp):
        model(x)
        raise ZeroDivisionError
    assert not hasattr(model, "last")


def test_b14_streams_of_random_numbers():
    r = nnx.Rngs(0, dropout=1)
    k, u = r.params(), r.dropout.uniform((2,))
    other = nnx.Rngs(0, dropout=1)
    assert k == other.params()
    np.testing.assert_array_equal(u, other.dropout.uniform((2,)))


def test_b15_sown_intermediates(x):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            y = self.dense(x)
            self.sow(nnx.Intermediate, "hidden", y)
            return 2 * y

    model = Model(nnx.Rngs(0))
    y, mids = nnx.capture(model, nnx.Intermediate)(x)
    np.testing.assert_array_equal(2 * mids["hidden"].value[0], y)
    assert not hasattr(model, "hidden")


def test_b16_freeze(m, x):
    nnx.freeze(m, nnx.PathContains("dense"))
    before = values_of(m.dense)
    for write in (
        lambda: m.dense.kernel.set_value(jnp.ones((4, 8))),
        lambda: m.dense.kernel.__setitem__(..., 0),
        lambda: nnx.jit(lambda m: m.dense.kernel.__iadd__(1))(m),
        lambda: nnx.update(m, {"dense": {"kernel": jnp.ones((4, 8))}}),
    ):
        with pytest.raises(ValueError, match="frozen.*nnx.unfreeze"):
            write()
    assert_same(before, values_of(m.dense))
    paths = nnx.to_flat_state(nnx.grad(loss)(m, x)).paths
    assert ("dense", "kernel") not in paths and ("head", "kernel") in paths
    nnx.unfreeze(m)
    m.dense.kernel[...] = 0
    assert ("dense", "kernel") in nnx.to_flat_state(nnx.grad(loss)(m, x)).paths
    with pytest.raises(ValueError, match="nothing in Net matches.*named_parameters"):
        nnx.freeze(m, nnx.PathContains("decoder"))
    with pytest.raises(ValueError, match="there are BatchStat.*kind=..."):
        nnx.freeze(m, nnx.BatchStat)


def test_b17_metadata(m):
    p = nnx.Param(jnp.ones(2), init_name="zeros")
    p.set_metadata(note=1)
    assert (p.init_name, p.note) == ("zeros", 1)
    nnx.set_metadata(m, only=nnx.Param, lr=0.1)
    assert m.head.bias.lr == 0.1 and not m.bn.mean.has_metadata("lr")


def test_b18_sharing(m, x):
    m.head2 = nnx.Linear(4, 8, rngs=nnx.Rngs(3))
    m.head2.kernel = m.dense.kernel
    m.dense.kernel[...] = 7
    assert m.head2.kernel[0, 0] == 7
    assert nnx.clone(m).head2.kernel is not m.dense.kernel
    assert nnx.find_duplicates(m) == [[("dense", "kernel"), ("head2", "kernel")]]


# Operations on whole states


def test_b19_filters(m):
    f = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("head")))
    paths = nnx.to_flat_state(nnx.state(m, f)).paths
    assert paths and not any("head" in path for path in paths)
    s = nnx.state(m, lambda path, v: path[-1] == "bias")
    assert {path[-1] for path in nnx.to_flat_state(s).paths} == {"bias"}


def test_b20_rename_in_a_checkpoint(m):
    state = nnx.state(m, nnx.PathContains("dense"))
    old = nnx.rename(state, {"dense": "old_name"})
    assert list(old) == ["old_name"]
    new = nnx.rename(old, {"old_name": "dense"})
    assert new.dense.kernel is m.dense.kernel
    with pytest.raises(ValueError, match="no path begins with decoder; there are"):
        nnx.rename(state, {"decoder": "dense"})
    both = nnx.state(m, nnx.Any(nnx.PathContains("dense"), nnx.PathContains("head")))
    with pytest.raises(ValueError, match="'dense.bias' and 'head.bias' would both be"):
        nnx.rename(both, {"head": "dense"})
    with pytest.raises(ValueError, match="'a' would be a leaf and hold 'a.b'"):
        nnx.rename({"x": 1, "y": 2}, {"x": "a", "y": "a.b"})


def test_b21_migrate_prefixes(m):
    state = nnx.state(m, nnx.Param)
    flat = {
        ("enc", *p) if p[0] == "dense" else p: v for p, v in nnx.to_flat_state(state)
    }
    by_hand = nnx.from_flat_state(flat)
    assert nnx.to_flat_state(by_hand).paths == (
        nnx.to_flat_state(nnx.rename(state, {"dense": "enc.dense"})).paths
    )
    moved = nnx.rename(state, lambda p: ("enc", *p))
    assert list(moved) == ["enc"] and moved.enc.head.bias is m.head.bias
    assert nnx.rename(state, {"": "enc"}).enc.head.bias is m.head.bias


def test_b22_merge_with_conflicts():
    a, b = {"x": 1, "y": {"z": 2}}, {"y": {"z": 3, "w": 4}}
    expected = {"new": 3, "old": 2, "sum": 5}
    for name, value in expected.items():
        how = name if name != "sum" else (lambda path, x, y: x + y)
        merged = nnx.merge_state(a, b, on_conflict=how)
        assert nnx.to_pure_dict(merged) == {"x": 1, "y": {"z": value, "w": 4}}
    with pytest.raises(ValueError, match="more than one State has y.z.*on_conflict"):
        nnx.merge_state(a, b, on_conflict="error")
    with pytest.raises(ValueError, match="on_conflict='newest': use 'new'"):
        nnx.merge_state(a, b, on_conflict="newest")


def test_b23_delete_one_variable(m):
    s = nnx.clone(nnx.state(m))
    del s["head"]["bias"]
    assert "bias" not in s["head"] and hasattr(m.head, "bias")
    t = nnx.clone(m)
    del t.head.bias
    assert not hasattr(t.head, "bias") and hasattr(m.head, "bias")
    nnx.at(m, "head.bias", copy=False).remove()
    assert not hasattr(m.head, "bias")


def test_b24_delete_by_filter(m):
    gone = nnx.pop(nnx.clone(m), nnx.BatchStat)
    assert nnx.to_flat_state(gone).paths == (("bn", "mean"), ("bn", "var"))
    t = nnx.clone(m)
    nnx.pop(t, nnx.BatchStat, nnx.PathContains("bn"))
    assert "bn" not in nnx.state(t)


def test_b25_traversal(m):
    shapes = {p: v.shape for p, v in nnx.to_flat_state(nnx.state(m, nnx.Param))}
    assert shapes["blocks", 1, "kernel"] == (8, 8)
    modules = dict(nnx.iter_modules(m))
    assert modules["blocks", 0] is m.blocks[0] and modules[()] is m
    assert dict(nnx.named_modules(m))["blocks.0"] is m.blocks[0]
    assert dict(nnx.named_parameters(m))["blocks.0.bias"] is m.blocks[0].bias
    assert nnx.count_parameters(m) == sum(np.prod(shape) for shape in shapes.values())
    assert nnx.count_parameters(m, nnx.PathContains("head")) == 8 * 3 + 3


def test_b26_copies(m):
    a, b = copy.deepcopy(m), nnx.clone(m)
    assert a.dense.kernel[...] is not m.dense.kernel[...]
    assert b.dense.kernel[...] is m.dense.kernel[...]
    assert copy.copy(m).dense is m.dense
    c = nnx.clone(nnx.state(m, nnx.PathContains("dense")))
    c.dense.kernel[...] = 0
    assert m.dense.kernel[...].any()


def test_b27_check_a_state_against_a_model(m):
    gd = nnx.graphdef(Net(nnx.Rngs(1)))
    assert nnx.graphdef(m) == gd
    like = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    assert nnx.check(nnx.state(m), like)
    state = nnx.to_pure_dict(nnx.state(m, nnx.Param))
    state["head"]["kernel"] = jnp.ones((8, 4))
    state["head"]["bias"] = jnp.ones(3, jnp.int32)
    state["tail"] = jnp.ones(1)
    with pytest.raises(ValueError) as caught:
        nnx.check(state, like)
    for part in (
        "missing: bn.mean, bn.var",
        "unexpected: tail",
        "head.kernel wants float32[8, 3], got float32[8, 4]",
        "head.bias wants float32, got int32",
    ):
        assert part in str(caught.value)
    assert not nnx.check(state, like, strict=False)


def test_b28_files(m, x, tmp_path):
    m(x)
    d = nnx.to_pure_dict(nnx.state(m))
    state = nnx.state(Net(nnx.Rngs(1)))
    nnx.replace_by_pure_dict(state, d)
    file = tmp_path / "m.nnx"
    nnx.save(file, m)
    like = Net(nnx.Rngs(1))
    loaded = nnx.load(file, like=like)
    assert_same(values_of(m), values_of(loaded))
    np.testing.assert_array_equal(m(x), loaded(x))  # the same masks, too
    assert not np.allclose(like.head.kernel[...], m.head.kernel[...])


def test_b29_pickle(m, x):
    m2 = pickle.loads(pickle.dumps(m))
    np.testing.assert_array_equal(m2(x), m(x))


# Module system


def test_b30_lists_and_dicts_of_modules(m):
    rngs = nnx.Rngs(0)
    m.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(3)])
    m.heads = {"a": nnx.Linear(8, 2, rngs=rngs)}
    paths = nnx.to_flat_state(nnx.state(m, nnx.Param)).paths
    assert ("blocks", 2, "kernel") in paths and ("heads", "a", "kernel") in paths


class Compact(nnx.Module):
    def __init__(self, rngs):
        self.rngs = rngs

    @nnx.compact
    def __call__(self, x):
        x = nnx.relu(nnx.Linear(x.shape[-1], 128)(x))
        x = nnx.Linear(None, 16)(x)
        return nnx.Linear(16, 1, name="head")(x)


def test_b31_compact_methods(x):
    model = Compact(nnx.Rngs(0))
    y = model(x)
    names = {path[0] for path in nnx.to_flat_state(nnx.state(model, nnx.Param)).paths}
    assert names == {"Linear_0", "Linear_1", "head"}
    np.testing.assert_array_equal(model(x), y)
    assert model.Linear_1.kernel.shape == (128, 16)
    rngs = nnx.Rngs(0)
    by_hand = nnx.Sequential(
        nnx.Linear(4, 128, rngs=rngs),
        nnx.relu,
        nnx.Linear(128, 16, rngs=rngs),
        nnx.Linear(16, 1, rngs=rngs),
    )
    np.testing.assert_allclose(by_hand(x), y, rtol=1e-5)


def test_b32_names_and_paths(m):
    assert nnx.path_of(m, m.blocks[0]) == ("blocks", 0)
    assert nnx.path_of(m, m.head.bias) == ("head", "bias")
    assert nnx.path_of(m, m) == ()
    with pytest.raises(ValueError, match="this Linear is not in the Net"):
        nnx.path_of(m, nnx.clone(m.head))


def test_b33_parents(m):
    parents = nnx.parents(m)
    assert parents[m.dense] is m and parents[m.dense.kernel] is m.dense
    assert parents[m.blocks[0]] is m.blocks
    m.me = m  # a cycle
    assert nnx.parents(m)[m.dense] is m


def test_b34_named_scopes(m, x):
    def program():
        lowered = nnx.jit(lambda m, x: m(x)).lower(m, x)
        return lowered.as_text(debug_info=True)

    with nnx.named_scopes(True):
        named = program()
    assert "Net/dense/" in named and "Net/blocks[1]/" in named
    assert "Net/dense/" not in program()


def test_b35_interceptors(m, x):
    m.eval()
    log = []

    def outer(next, args, kwargs, call):
        log.append(("outer", call.path, call.method_name))
        return next(*args, **kwargs)

    def inner(next, args, kwargs, call):
        log.append(("inner", call.path, call.method_name))
        return next(*args, **kwargs)

    y = m(x)
    with nnx.intercept(outer), nnx.intercept(inner, only=nnx.Linear):
        np.testing.assert_array_equal(m(x), y)
    assert log[:4] == [
        ("outer", (), "__call__"),
        ("outer", ("dense",), "__call__"),
        ("inner", ("dense",), "__call__"),
        ("outer", ("bn",), "__call__"),
    ]
    log.clear()
    m(x)
    assert not log


def test_b36_init_and_apply(m, x):
    gd, st = nnx.split(Net(nnx.Rngs(0)))
    y, (gd, st) = nnx.call((gd, st))(x)
    np.testing.assert_array_equal(y, m(x))
    np.testing.assert_array_equal(st["bn"]["mean"][...], m.bn.mean[...])


def test_b37_shapes_only():
    abstract = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    assert isinstance(abstract.dense.kernel[...], jax.ShapeDtypeStruct)
    assert nnx.count_parameters(abstract) == nnx.count_parameters(Net(nnx.Rngs(0)))


def test_b38_lazy_sizes(x):
    layer = nnx.Linear(None, 128, rngs=nnx.Rngs(0))
    nnx.lazy_init(layer, x)
    assert layer.kernel.shape == (4, 128)


def test_b39_conditional_parts(m, x):
    m.extra = None
    y = m.extra(m.dense(x)) if m.extra is not None else m.dense(x)
    m.extra = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    z = m.extra(m.dense(x)) if m.extra is not None else m.dense(x)
    assert y.shape == z.shape and not np.allclose(y, z)


def test_b40_repr(m):
    text = repr(m)
    assert "Net" in text and "Linear" in text and "float32[4,8]" in text


def test_b41_injected_layers(x):
    norm = functools.partial(nnx.RMSNorm, rngs=nnx.Rngs(0))
    block = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), norm(4), nnx.gelu)
    assert block(x).shape == (5, 4)


def test_b42_residual_blocks(m, x):
    y = m.dense(x)
    for b in m.blocks:
        y = y + nnx.relu(b(y)) if y.shape[-1] == 8 else y
    assert y.shape == (5, 8)


def test_b43_init_and_apply_as_functions(x):
    def init_fn(key):
        return nnx.split(Net(nnx.Rngs(key)))

    def apply_fn(gs, x):
        return nnx.merge(*gs)(x)

    y = jax.jit(apply_fn)(init_fn(jax.random.key(0)), x)
    np.testing.assert_allclose(y, Net(nnx.Rngs(0))(x), rtol=1e-5, atol=1e-6)


# Layers and numerics


def test_b44_dense(x):
    layer = nnx.Linear(4, 8, use_bias=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(x), x @ layer.kernel + layer.bias, rtol=1e-5)


def test_b45_dense_over_several_axes():
    rngs = nnx.Rngs(0)
    layer = nnx.LinearGeneral((3, 4), (2, 5), axis=(-2, -1), rngs=rngs)
    assert layer(jnp.ones((7, 3, 4))).shape == (7, 2, 5)
    layer = nnx.LinearGeneral(4, 5, batch_axis={0: 3}, rngs=rngs)
    assert layer(jnp.ones((3, 4))).shape == (3, 5)


def test_b46_batch_axes_come_first():
    with pytest.raises(ValueError, match="batch_axis"):
        nnx.LinearGeneral(4, 5, batch_axis={1: 3}, rngs=nnx.Rngs(0))


def test_b47_contraction_injected(x):
    used = []

    def dot_general(*args, **kwargs):
        used.append(kwargs.get("preferred_element_type"))
        return jax.lax.dot_general(*args, **kwargs)

    layer = nnx.Linear(
        4,
        8,
        dot_general=dot_general,
        preferred_element_type=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    plain = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(x), plain(x), rtol=1e-6)
    assert used == [jnp.float32]


def test_b48_precision(x):
    highest = jax.lax.Precision.HIGHEST
    layer = nnx.Linear(4, 8, precision=highest, rngs=nnx.Rngs(0))
    assert "HIGHEST" in str(jax.make_jaxpr(lambda x: layer(x))(x))


def test_b49_dtypes(x):
    rngs = nnx.Rngs(0)
    layer = nnx.Linear(4, 8, param_dtype=jnp.float32, dtype=jnp.bfloat16, rngs=rngs)
    assert layer(x).dtype == jnp.bfloat16 and layer.kernel.dtype == jnp.float32
    with nnx.dtype_policy(param=jnp.bfloat16, compute=jnp.float16):
        m = Net(nnx.Rngs(0))
        own = nnx.Linear(4, 8, dtype=jnp.float32, rngs=rngs)
    assert m.dense.kernel.dtype == jnp.bfloat16 and m(x).dtype == jnp.float16
    assert own(x).dtype == jnp.float32
    assert Net(nnx.Rngs(0)).dense.kernel.dtype == jnp.float32
    with contextlib.suppress(ZeroDivisionError), nnx.dtype_policy(param=jnp.bfloat16):
        raise ZeroDivisionError
    assert nnx.Linear(4, 8, rngs=rngs).kernel.dtype == jnp.float32


def test_b50_initializers():
    layer = nnx.Linear(
        4,
        8,
        kernel_init=lambda key, shape, dtype: jax.random.normal(key, shape, dtype),
        bias_init=nnx.initializers.ones_init(),
        rngs=nnx.Rngs(0),
    )
    expected = jax.random.normal(nnx.Rngs(0).params(), (4, 8))
    np.testing.assert_array_equal(layer.kernel[...], expected)
    assert layer.bias[...].all()


def test_b51_activations(x):
    a = nnx.PReLU(0.1)
    np.testing.assert_allclose(a(x), jnp.where(x < 0, 0.1 * x, x), rtol=1e-6)
    assert nnx.gelu(a(x)).shape == x.shape


# Choosing what learns


class FiLM(nnx.Module):
    def __init__(self, rngs, modulate_scale):
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.film = nnx.Linear(4, 4, rngs=rngs)
        self.modulate_scale = modulate_scale

    def __call__(self, x):
        s = self.film.kernel[...]
        s = s if self.modulate_scale else jax.lax.stop_gradient(s)
        return self.bn(x) @ s + self.film.bias


@pytest.mark.parametrize("modulate_scale", [True, False])
def test_b52_stop_gradient_by_a_switch(x, modulate_scale):
    model = FiLM(nnx.Rngs(0), modulate_scale)
    grads = nnx.jit(nnx.grad(loss))(model, x)
    assert bool(grads.film.kernel[...].any()) == modulate_scale
    assert grads.film.bias[...].any()


def test_b53_static_fields(m):
    m.modulate_scale = True
    m.cfg = nnx.static((1, 2))
    paths = nnx.to_flat_state(nnx.state(m)).paths
    assert not {path[0] for path in paths} & {"modulate_scale", "cfg"}


def test_b54_numpy_arrays(m, x):
    m.dense.bias.set_value(np.zeros(8, np.float32))
    m.eval()
    np.testing.assert_allclose(nnx.jit(m)(x), m(x), rtol=1e-5, atol=1e-6)


def test_b55_which_parameters_learn(m):
    names = nnx.to_flat_state(nnx.state(m, nnx.Param)).paths
    assert ("head", "bias") in names
    nnx.freeze(m, nnx.PathContains("blocks"))
    learning = [name for name, _ in nnx.named_parameters(m, nnx.trainable)]
    assert learning == [
        "bn.bias",
        "bn.scale",
        "dense.bias",
        "dense.kernel",
        "head.bias",
        "head.kernel",
    ]
    assert "frozen=True" in repr(m.blocks[0])


def test_b56_partition_and_combine(x):
    h = Hyper(nnx.Rngs(0))
    wanted = nnx.All(nnx.Param, nnx.PathContains("hyper_net"))
    gd, hyper, rest = nnx.split(h, wanted, ...)
    np.testing.assert_array_equal(nnx.merge(gd, hyper, rest)(x), h(x))
    hyper, rest = nnx.partition(h, wanted)
    np.testing.assert_array_equal(nnx.combine(rest, hyper)(x), h(x))
    grads = jax.jit(jax.grad(lambda p: loss(nnx.combine(p, rest), x)))(hyper)
    expected = nnx.grad(loss)(h, x)
    np.testing.assert_allclose(
        grads.hyper_net.kernel[...], expected.hyper_net.kernel[...], rtol=1e-5
    )
    bools = nnx.map_state(lambda path, v: path[-1] == "bias", nnx.state(h))
    biases, rest = nnx.partition(h, nnx.to_pure_dict(bools))
    assert nnx.to_flat_state(biases).paths == (("bias",), ("hyper_net", "bias"))
    with pytest.raises(ValueError, match="'hyper_net.bias' matches .*nnx.Not"):
        nnx.partition(h, wanted, nnx.PathContains("bias"))
    with pytest.raises(ValueError, match="two parts have 'bias'"):
        nnx.combine(biases, biases, rest)
    with pytest.raises(ValueError, match="missing bias, hyper_net.bias"):
        nnx.combine(rest)
    with pytest.raises(ValueError, match="nothing at hyper_nett"):
        nnx.partition(h, {"hyper_nett": True})


def test_b57_functional_edit_of_one_place(x):
    h = Hyper(nnx.Rngs(0))
    before, w = values_of(h), jnp.zeros((2, 12))
    t = nnx.clone(h)
    t.hyper_net = nnx.Linear(2, 3, rngs=nnx.Rngs(1))
    h2 = nnx.at(h, lambda h: h.hyper_net.kernel).set(w)
    np.testing.assert_array_equal(h2.hyper_net.kernel[...], w)
    assert h2.bias is h.bias  # the rest is shared
    assert_same(before, values_of(h))
    h3 = nnx.at(h, lambda h: (h.hyper_net.bias, h.bias)).apply(lambda b: b + 1)
    assert h3.bias[0] == 1 and h3.hyper_net.bias[0] == 1
    assert_same(before, values_of(h))
    h4 = nnx.at(h, lambda h: [h.hyper_net.bias, h.bias]).set_each(
        [jnp.ones(12), w[0, :3]]
    )
    assert h4.hyper_net.bias[...].all()
    with pytest.raises(ValueError, match="did you mean 'hyper_net.kernel'"):
        nnx.at(h, lambda h: h.hyper_net.kernels)
    with pytest.raises(ValueError, match="must return places of the model"):
        nnx.at(h, lambda _: h.bias)
    with pytest.raises(ValueError, match=r"bias wants float32\[3\], got float32\[4\]"):
        nnx.at(h, lambda h: h.bias).set(jnp.ones(4))


def flops(step: Any, *args: Any) -> float:
    return step.lower(*args).compile().cost_analysis()["flops"]


def train(model: Any, x: Any, wrt: Any) -> tuple[Any, Any, Any]:
    """Two steps; values before and after, and the compiled step."""
    opt = nnx.Optimizer(model, optax.adam(0.1), wrt=wrt)

    @nnx.jit
    def step(model, opt, x):
        grads = nnx.grad(loss, argnums=nnx.DiffState(0, wrt))(model, x)
        opt.update(model, grads)

    before = values_of(model)
    for _ in range(2):
        step(model, opt, x)
    return before, values_of(model), functools.partial(flops, step, model, opt, x)


def assert_only_changed(before: Any, after: Any, is_meant: Any) -> None:
    for path in before:
        changed = not np.array_equal(before[path], after[path])
        assert changed == is_meant(path), path


def test_b58_only_the_hyper_network_learns(x):
    h = Hyper(nnx.Rngs(0))
    f = nnx.All(nnx.Param, nnx.PathContains("hyper_net"))
    before, after, count = train(h, x, f)
    assert_only_changed(before, after, lambda path: "hyper_net" in path)
    frozen = Hyper(nnx.Rngs(0))
    nnx.freeze(frozen, nnx.Not(nnx.PathContains("hyper_net")))
    also_before, also_after, also_count = train(frozen, x, nnx.Param)
    assert_same(after, also_after)
    assert also_count() == count()


@pytest.mark.parametrize("style", ["wrt", "freeze"])
def test_b59_transfer_learning(m, x, style):
    *_, all_of_it = train(Net(nnx.Rngs(0)), x, nnx.Param)
    m.eval()
    head = nnx.PathContains("head")
    wrt = nnx.All(nnx.Param, head) if style == "wrt" else nnx.Param
    if style == "freeze":
        nnx.freeze(m, nnx.Not(head))
    before, after, count = train(m, x, wrt)
    assert_only_changed(before, after, lambda path: "head" in path)
    assert count() < 0.6 * all_of_it()


def test_b60_lora(x):
    layer = nnx.LoRALinear(4, 8, lora_rank=2, rngs=nnx.Rngs(0))
    before, after, _ = train(layer, x, nnx.LoRAParam)
    assert_only_changed(before, after, lambda path: "lora" in path)
    m = Net(nnx.Rngs(0))
    m.eval()
    y, *_, all_of_it = m(x), train(Net(nnx.Rngs(0)), x, nnx.Param)[2]
    nnx.loraify(m, nnx.PathContains("blocks"), rank=2, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(m(x), y)
    before, after, count = train(m, x, nnx.Param)
    assert_only_changed(before, after, lambda path: path[-1].startswith("lora"))
    assert count() < all_of_it()
    y = m(x)
    nnx.merge_lora(m)
    assert nnx.graphdef(m.blocks[0]).paths == nnx.graphdef(m.dense).paths
    np.testing.assert_allclose(m(x), y, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no Linear or .* Net matches.*dense"):
        nnx.loraify(m, nnx.PathContains("decoder"), rank=2, rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="Net has no LoRA"):
        nnx.merge_lora(m)


def test_b61_a_standalone_variable():
    p = nnx.Param(jnp.array(0.0))
    opt = nnx.Optimizer(p, optax.sgd(0.25), wrt=nnx.Param)
    for _ in range(20):
        opt.update(p, nnx.grad(lambda p: (p[...] - 3) ** 2)(p))
    np.testing.assert_allclose(p[...], 3, atol=1e-4)


def test_b62_the_wrapper_of_old():
    wrap = nnx.Dict(var=nnx.Param(jnp.array(0.0)))
    opt = nnx.Optimizer(wrap, optax.sgd(0.25), wrt=nnx.Param)
    for _ in range(20):
        opt.update(wrap, nnx.grad(lambda w: (w.var[...] - 3) ** 2)(wrap))
    np.testing.assert_allclose(wrap.var[...], 3, atol=1e-4)


# Transforms, memory, debugging


def test_b63_vmap(m, x):
    y = nnx.vmap(lambda layer, x: layer(x), in_axes=(None, 0))(m.dense, x)
    np.testing.assert_allclose(y, m.dense(x), rtol=1e-5)


def test_b64_shard_map(m, x):
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("d",))
    P = jax.sharding.PartitionSpec
    y = nnx.shard_map(
        lambda layer, x: layer(x), mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d")
    )(m.dense, x)
    np.testing.assert_allclose(y, m.dense(x), rtol=1e-5)


def test_b65_jit_with_state(m, x):
    other = nnx.clone(m)
    y = nnx.jit(lambda m, x: m(x))(m, x)
    np.testing.assert_allclose(y, other(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(m.bn.mean[...], other.bn.mean[...], rtol=1e-5, atol=1e-7)


def test_b66_donation(m, x):
    o = nnx.Optimizer(m, optax.adam(0.1), wrt=nnx.Param)
    step = nnx.jit(
        lambda m, o: o.update(m, nnx.grad(loss)(m, x)) and None, donate_argnums=(0, 1)
    )
    before = m.dense.kernel[...]
    step(m, o)
    assert before.is_deleted() and not m.dense.kernel[...].is_deleted()


def test_b67_explicit_modes(m, x):
    m.train()
    m(x)
    m.eval()
    np.testing.assert_array_equal(m(x), m(x))


def test_b68_debugging(m, x, capsys):
    nnx.jit(lambda m: jax.debug.print("{}", m.dense.bias[...].sum()))(m)
    jax.effects_barrier()
    assert capsys.readouterr().out == "0.0\n"
    step = nnx.assert_max_traces(nnx.jit(lambda m, x: m(x)), 1)
    step(m, x)
    step(m, x)
    before = values_of(m)
    with pytest.raises(RuntimeError, match=r"x: float32\[5,4\] -> float32\[3,4\]"):
        step(m, x[:3])
    assert_same(before, values_of(m))


def test_b69_pitfalls(m, x):
    with pytest.raises(nnx.TraceContextError, match="nnx.jit"):
        jax.jit(lambda x: m(x))(x)
    half = jnp.asarray(x, jnp.bfloat16)
    assert m.dense(half).dtype == jnp.float32
    with pytest.raises(TypeError, match=r"cannot differentiate.*\.n.*int32"):
        nnx.grad(lambda m: 1.0)(nnx.Dict(n=nnx.Param(jnp.array(1))))


def test_b70_objects_outside_a_pure_graph_inside(m, x):
    pure = jax.make_jaxpr(lambda state, x: nnx.merge(nnx.graphdef(m), state)(x))
    assert (
        len(pure(nnx.state(m), x).jaxpr.invars)
        == len(jax.tree.leaves(nnx.state(m))) + 1
    )
