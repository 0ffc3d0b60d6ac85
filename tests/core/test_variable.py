"""Variables: reading, writing, operators, metadata, copies, pytrees, trace levels."""

import copy
import gc
import math
import operator
import pickle
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

KINDS = [
    nnx.Variable,
    nnx.Param,
    nnx.BatchStat,
    nnx.Cache,
    nnx.Intermediate,
    nnx.Perturbation,
    nnx.RngState,
    nnx.RngKey,
    nnx.RngCount,
    nnx.OptState,
    nnx.metrics.MetricState,
]


class Positive(nnx.Param):
    """Stores the logarithm of what it shows."""

    def get_value(self, **kwargs):
        return jnp.exp(super().get_value(**kwargs))

    def set_value(self, value, **kwargs):
        super().set_value(jnp.log(value), **kwargs)


class Clipped(nnx.Param):
    """Changes only how it is written."""

    def set_value(self, value, **kwargs):
        super().set_value(jnp.clip(value, 0, 1), **kwargs)


class Zeros(nnx.Param):
    """Has a constructor of its own."""

    def __init__(self, size, **metadata):
        super().__init__(jnp.zeros(size), **metadata)


class Holder(nnx.Module):
    def __init__(self, w):
        self.w = w


def arange():
    return nnx.Param(jnp.arange(3.0), note="three")


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(np.all(x == y)), a, b))


# D1 to D12


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (jnp.ones(3), jnp.zeros((2, 2), jnp.int32)),
        (np.ones(3, np.float32), jnp.zeros(3)),
        (1, jnp.ones(2)),
        (None, 3.5),
        ("text", {"a": jnp.ones(2)}),
        ({"a": [1, 2]}, (jnp.ones(2), None)),
    ],
)
def test_d1_reading_and_replacing(old, new):
    v = nnx.Variable(old)
    cell = id(v)
    for read in (
        v[...],
        v.value,
        v.get_value(),
        v.get_value(index=...),
        v.raw_value,
        v.get_raw_value(),
    ):
        assert equal(read, old) and not isinstance(read, nnx.Variable)
    for write in (v.set_value, v.set_raw_value, lambda x: setattr(v, "value", x)):
        write(old)
        write(new)
        assert id(v) == cell
        assert equal(v.value, new)
        assert jax.tree.map(jnp.shape, v.value) == jax.tree.map(jnp.shape, new)


def test_d1_get_value_copies_containers():
    v = nnx.Variable({"a": [1, 2]})
    copied = v.get_value()
    copied["a"].append(3)
    copied["b"] = 4
    assert v.value == {"a": [1, 2]}


@pytest.mark.parametrize("index", [0, -1, slice(1, None), (), np.array([0, 2])])
def test_d1_reading_a_part(index):
    v = arange()
    assert equal(v[index], jnp.arange(3.0)[index])
    assert equal(v.get_value(index=index), jnp.arange(3.0)[index])


def test_d1_index_may_be_a_variable():
    v, one = arange(), nnx.Variable(jnp.array(1))
    assert v[one] == 1.0
    v[one] = 5.0
    assert v[1] == 5.0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, bool])
@pytest.mark.parametrize(
    "new",
    [
        2,
        2.0,
        True,
        np.float64(2.0),
        np.arange(3),
        jnp.arange(3.0),
        jnp.ones((2, 1)),
        nnx.Variable(jnp.arange(3)),
    ],
)
def test_d2_writing_in_place_keeps_shape_and_dtype(dtype, new):
    v = nnx.Variable(jnp.zeros((2, 3), dtype))
    v[...] = new
    assert (v.shape, v.dtype) == ((2, 3), dtype)
    value = new.value if isinstance(new, nnx.Variable) else new
    assert equal(v.value, jnp.broadcast_to(jnp.asarray(value), (2, 3)).astype(dtype))


@pytest.mark.parametrize(
    ("index", "new"),
    [
        (1, 5.0),
        (-1, 5),
        (slice(None, 2), jnp.array([7.0, 8.0])),
        (np.array([True, False, True]), 9.0),
        (..., 4),
    ],
)
def test_d2_writing_a_part(index, new):
    v, before = arange(), jnp.arange(3.0)
    old = v.value
    v[index] = new
    assert equal(v.value, before.at[index].set(new))
    assert v.dtype == jnp.float32
    assert equal(old, before), "arrays are immutable"
    v.set_value(1.0, index=0)
    assert v[0] == 1.0


def test_d2_writing_keeps_the_very_array():
    v, new = arange(), jnp.ones(3)
    v[...] = new
    assert v.value is new


def test_d2_writing_a_part_of_a_pytree():
    v = nnx.Variable({"a": 1, "b": [2]})
    old = v.value
    v["a"] = 5
    assert v.value == {"a": 5, "b": [2]}
    assert old == {"a": 1, "b": [2]}


@pytest.mark.parametrize("new", [jnp.ones(4), jnp.ones((3, 1)), np.ones((1, 3))])
def test_d2_writing_another_shape(new):
    v = arange()
    advice = r"keeps the shape \(3,\), but x has the shape .* write `v.value = x`"
    with pytest.raises(ValueError, match=advice):
        v[...] = new
    assert equal(v.value, jnp.arange(3.0))


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.float32])
def test_d2_writing_where_a_numpy_array_is(dtype):
    v = nnx.Variable(np.zeros(3, dtype))
    v[...] = 2
    v[0] = 1
    assert v.value.tolist() == [1, 2, 2]


AUGMENTED = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.imatmul: operator.matmul,
}
BITS = {operator.lshift, operator.rshift, operator.and_, operator.or_, operator.xor}


@pytest.mark.parametrize("augmented", AUGMENTED)
@pytest.mark.parametrize(
    "place", ["name", "item", "value", "attribute", "list", "dict"]
)
@pytest.mark.parametrize("is_variable", [False, True])
def test_d3_augmented_assignment_writes_in_place(augmented, place, is_variable):
    plain = AUGMENTED[augmented]
    dtype = jnp.int32 if plain in BITS else jnp.float32
    if plain is operator.matmul:
        a, b = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.ones((2, 2))
    else:
        a, b = jnp.array([6, 7], dtype), jnp.array([2, 3], dtype)
    v = nnx.Param(a, note=1)
    other = nnx.Variable(b) if is_variable else b
    if place == "name":
        assert augmented(v, other) is v
    elif place == "item":
        v[...] = augmented(v[...], b)
    elif place == "value":
        v.value = augmented(v.value, b)
    else:
        holder = {"attribute": Holder(v), "list": nnx.List([v]), "dict": nnx.Dict(w=v)}
        held = holder[place]
        if place == "attribute":
            held.w = augmented(held.w, other)
        else:
            key = 0 if place == "list" else "w"
            held[key] = augmented(held[key], other)
        assert nnx.to_flat_state(nnx.state(held))[0][1] is v
    assert equal(v.value, plain(a, b)) and v.note == 1


def test_d3_augmented_assignment_of_an_attribute():
    m = Holder(arange())
    v = m.w
    m.w += 1
    m.w *= 2
    m.w[0] += 1
    assert m.w is v
    assert v.value.tolist() == [3.0, 4.0, 6.0]


BINARY = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
    "eq": operator.eq,
    "ne": operator.ne,
    "lshift": operator.lshift,
    "rshift": operator.rshift,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "matmul": operator.matmul,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "divmod": divmod,
}
OTHERS = {
    "number": lambda a: 2,
    "numpy": lambda a: np.full(a.shape, 2, a.dtype),
    "jax": lambda a: jnp.full(a.shape, 2, a.dtype),
    "variable": lambda a: nnx.Variable(jnp.full(a.shape, 2, a.dtype)),
}


def check_operator(apply, other, reflected):
    integral = apply in BITS
    a = jnp.array([[5, 6], [7, 8]], jnp.int32 if integral else jnp.float32)
    b = OTHERS[other](a)
    plain = b.value if isinstance(b, nnx.Variable) else b
    v = nnx.Param(a)
    pairs = ((b, v), (plain, a)) if reflected else ((v, b), (a, plain))
    got, expected = apply(*pairs[0]), apply(*pairs[1])
    jitted = nnx.jit(lambda x, y: apply(x, y))(*pairs[0])
    for result in (got, jitted):
        leaves = jax.tree.leaves(result)
        assert all(isinstance(x, jax.Array) for x in leaves), result
        assert [x.dtype for x in leaves] == [x.dtype for x in jax.tree.leaves(expected)]
        assert equal(result, expected)
    assert equal(v.value, a), "the Variable is not changed"


D5 = ("lt", "le", "gt", "ge", "divmod")
D4 = [
    (name, other)
    for name in BINARY
    for other in OTHERS
    if name not in D5 and (name, other) != ("matmul", "number")
]


@pytest.mark.parametrize(("name", "other"), D4)
@pytest.mark.parametrize("reflected", [False, True])
def test_d4_operators_give_plain_arrays(name, other, reflected):
    check_operator(BINARY[name], other, reflected)


@pytest.mark.parametrize("apply", [operator.neg, operator.pos, abs, operator.invert])
def test_d4_unary_operators(apply):
    a = jnp.array([1, -2, 3])
    assert isinstance(apply(nnx.Param(a)), jax.Array)
    assert equal(apply(nnx.Param(a)), apply(a))


@pytest.mark.parametrize(
    "function",
    [
        jnp.sin,
        jnp.sum,
        lambda v: jnp.dot(v, v),
        lambda v: jnp.stack([v, v]),
        lambda v: jnp.where(v > 1, v, 0),
        lambda v: jnp.broadcast_to(v, (2, 3)),
        lambda v: jnp.einsum("i,i->", v, v),
        lambda v: jnp.concatenate([v, jnp.ones(1)]),
        lambda v: jax.nn.relu(v),
        lambda v: jnp.asarray(v),
        lambda v: v.at[0].set(1),
        lambda v: jnp.zeros_like(v),
        lambda v: v.astype(jnp.int32),
    ],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, nnx.jit])
def test_d4_functions_of_arrays_take_variables(function, transform):
    a = jnp.arange(3.0)
    got = transform(function)(nnx.Param(a))
    assert isinstance(got, jax.Array)
    assert equal(got, function(a))


def test_d4_functions_of_numpy_take_variables():
    v = arange()
    assert np.sin(v).tolist() == np.sin(np.arange(3.0, dtype=np.float32)).tolist()
    assert np.asarray(v, np.float16).dtype == np.float16
    assert np.array(v, copy=True).flags.writeable


@pytest.mark.parametrize(
    ("convert", "value"),
    [
        (int, 3),
        (float, 2.5),
        (complex, 2.5),
        (operator.index, 3),
        (lambda v: list(range(v)), 3),
        (lambda v: f"{v:.1f}", 2.5),
        (lambda v: round(v, 1), 2.5),
        (math.floor, 2.5),
    ],
)
@pytest.mark.parametrize("wrap", [lambda x: x, jnp.asarray])
def test_d4_conversions(convert, value, wrap):
    assert convert(nnx.Variable(wrap(value))) == convert(wrap(value))


def test_d4_length_and_elements():
    v = arange()
    assert len(v) == 3
    assert all(isinstance(x, jax.Array) for x in v)
    assert [*v] == [0.0, 1.0, 2.0] and [*reversed(v)] == [2.0, 1.0, 0.0]
    assert 2.0 in v and 5.0 not in v
    assert nnx.Variable(jnp.array(2.0)) in v


@pytest.mark.parametrize("function", [len, iter])
def test_d4_a_scalar_has_no_length(function):
    with pytest.raises(TypeError, match="unsized object|0-d array"):
        function(nnx.Variable(jnp.array(1.0)))


def test_d4_lax_takes_the_value():
    v = arange()
    assert equal(jax.lax.sin(v[...]), jnp.sin(jnp.arange(3.0)))


@pytest.mark.skipif(
    jax.__version_info__ < (0, 10),
    reason="jax 0.9 refuses whatever has __jax_array__ in lax, and has no hook for it",
)
def test_jax_24460_lax_takes_a_variable():
    assert equal(jax.lax.sin(arange()), jnp.sin(jnp.arange(3.0)))
    assert equal(jax.lax.add(nnx.Param(1.0), 2.0), jnp.array(3.0))


@pytest.mark.parametrize("name", D5)
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("reflected", [False, True])
def test_d5_comparisons_and_divmod(name, other, reflected):
    check_operator(BINARY[name], other, reflected)


@pytest.mark.parametrize("value", [True, False, 0, 1, 0.0, 2.5])
@pytest.mark.parametrize("wrap", [lambda x: x, jnp.asarray, np.asarray])
def test_d5_truth_of_a_scalar(value, wrap):
    assert bool(nnx.Variable(wrap(value))) is bool(value)
    assert (1 if nnx.Variable(wrap(value)) else 0) == bool(value)


def test_d5_truth_of_an_array():
    with pytest.raises(ValueError, match=r"ambiguous. Use a.any\(\) or a.all\(\)"):
        bool(arange())


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.shape,
        lambda x: x.dtype,
        lambda x: x.ndim,
        lambda x: x.size,
        lambda x: x.nbytes,
        lambda x: x.T,
        lambda x: x.sharding,
        lambda x: x.mean(),
        lambda x: x.reshape(3, 1),
        lambda x: x.astype(jnp.int32),
        lambda x: x.item(0),
    ],
)
def test_d6_attributes_are_those_of_the_value(read):
    assert equal(read(arange()), read(jnp.arange(3.0)))


class Config:
    pass


def test_d6_attributes_of_any_object():
    config = Config()
    config.rate = 0.1
    v = nnx.Variable(config)
    assert v.rate == 0.1
    v.value = jnp.ones(2)
    assert not hasattr(v, "rate") and v.shape == (2,)


@pytest.mark.parametrize("kind", [nnx.Variable, nnx.Param, Positive])
@pytest.mark.parametrize("value", [jnp.ones(2), 1.0, None])
def test_d6_unknown_attribute(kind, value):
    v = kind.from_metadata(value, {})
    with pytest.raises(AttributeError, match="'unheard_of'"):
        _ = v.unheard_of
    assert not hasattr(v, "unheard_of")
    assert getattr(v, "unheard_of", 5) == 5


@pytest.mark.parametrize("name", ["foo", "note", "shape", "kernel"])
def test_d6_attributes_cannot_be_set(name):
    v = arange()
    advice = rf"`v.value = x`, and its metadata with `v.set_metadata\({name}=...\)`"
    with pytest.raises(AttributeError, match=advice):
        setattr(v, name, 1)
    assert v.get_metadata() == {"note": "three"}


@pytest.mark.parametrize("kind", KINDS)
def test_d7_metadata(kind):
    v = kind(jnp.ones(2), a=1, b="text")
    assert (v.a, v.b) == (1, "text")
    v.set_metadata(a=2, c=(1, 2))
    v.set_metadata("d", None)
    v.set_metadata({"e": jnp.float32})
    assert v.get_metadata() == {
        "a": 2,
        "b": "text",
        "c": (1, 2),
        "d": None,
        "e": jnp.float32,
    }
    assert v.has_metadata("d") and not v.has_metadata("z")
    assert (v.get_metadata("a"), v.get_metadata("z", 7)) == (2, 7)
    v.del_metadata("a")
    assert not v.has_metadata("a") and not hasattr(v, "a")


def test_d7_metadata_comes_before_the_value_and_after_the_class():
    v = nnx.Variable(jnp.ones(2), ndim="mine", copy="mine")
    assert v.ndim == "mine"
    assert v.get_metadata("copy") == "mine" and callable(v.copy)


def test_d7_metadata_belongs_to_one_variable():
    a, b = nnx.Param(1, group="x"), nnx.Param(2, group="x")
    a.set_metadata(group="y")
    assert (a.group, b.group) == ("y", "x")
    given = a.get_metadata()
    given["group"] = "z"
    assert a.group == "y"


@pytest.mark.parametrize("method", ["get_metadata", "del_metadata"])
def test_d7_missing_metadata(method):
    with pytest.raises(KeyError, match="Param has no metadata 'z'"):
        getattr(arange(), method)("z")


@pytest.mark.parametrize("value", [{}, {1}, jnp.ones(2), np.ones(2), [{}]])
@pytest.mark.parametrize("how", ["constructor", "set_metadata", "copy"])
def test_d7_metadata_must_be_hashable(value, how):
    v = nnx.Param(1)
    advice = "'bad' is .*: use a tuple or a frozen dataclass"
    with pytest.raises(TypeError, match=advice):
        if how == "constructor":
            nnx.Param(1, bad=value)
        elif how == "copy":
            v.copy(bad=value)
        else:
            v.set_metadata(bad=value)
    assert v.get_metadata() == {}


def test_d7_lists_in_metadata_become_tuples():
    v = nnx.Param(1, names=["a", ["b", None]])
    assert v.names == ("a", ("b", None))


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        2.5,
        True,
        "text",
        jnp.ones(2),
        np.ones(2),
        np.float32(1),
        jax.random.key(0),
        jax.ShapeDtypeStruct((2,), jnp.float32),
        {"a": jnp.ones(2), "b": [1, {"c": None}]},
        (jnp.ones(2), "text"),
        [],
        Config(),
    ],
)
def test_d8_any_value_is_one_leaf_of_the_state(value):
    v = nnx.Param(value)
    model = nnx.Dict(w=v)
    flat = nnx.to_flat_state(nnx.state(model))
    assert (flat.paths, flat.leaves) == ((("w",),), [v])
    assert v.value is value
    merged = nnx.merge(*nnx.split(model))
    assert merged.w.value is value
    assert isinstance(nnx.clone(model).w, nnx.Param)


def test_d8_a_ref_is_no_value():
    advice = r"a Param cannot hold a jax Ref.*pass its value, `ref\[...\]`"
    with pytest.raises(ValueError, match=advice):
        nnx.Param(jax.new_ref(jnp.ones(2)))


class Weight(nnx.Param):
    pass


@pytest.mark.parametrize("kind", [*KINDS, Weight, Positive, Zeros])
def test_d9_kinds_are_classes(kind):
    v = kind(jnp.ones(2)) if kind is not Zeros else kind(2)
    model = nnx.Dict(w=v, other=nnx.Cache(1))
    for parent in kind.__mro__:
        if issubclass(parent, nnx.Variable):
            assert "w" in nnx.state(model, parent)
    assert v.type is kind
    assert set(nnx.state(model, nnx.Variable)) == {"w", "other"}
    assert ("w" in nnx.state(model, nnx.Param)) == issubclass(kind, nnx.Param)


def test_d9_perturbation_is_an_intermediate():
    assert issubclass(nnx.Perturbation, nnx.Intermediate)
    assert issubclass(nnx.RngKey, nnx.RngState) and issubclass(
        nnx.RngCount, nnx.RngState
    )


def test_d10_parametrisation_is_seen_everywhere():
    p = Positive(jnp.zeros(3))
    ones = jnp.ones(3)
    for read in (p.value, p[...], p.get_value(), +p, jnp.asarray(p), p.reshape(3)):
        assert equal(read, ones)
    assert p[0] == 1.0 and p.sum() == 3.0 and [*p] == [1.0] * 3
    assert equal(p.raw_value, jnp.zeros(3))
    np.testing.assert_allclose(np.asarray(p), ones)


@pytest.mark.parametrize("how", ["value", "[...]", "set_value", "+=", "item"])
def test_d10_parametrisation_is_written_through(how):
    p = Positive(jnp.zeros(2))
    if how == "value":
        p.value = jnp.array([3.0, 3.0])
    elif how == "[...]":
        p[...] = 3.0
    elif how == "set_value":
        p.set_value(jnp.array([3.0, 3.0]))
    elif how == "+=":
        p += 2.0
    else:
        p[0] = 3.0
        p[1] = 3.0
    np.testing.assert_allclose(p.raw_value, np.log([3.0, 3.0]), rtol=1e-6)
    p.raw_value = jnp.zeros(2)
    assert equal(p.value, jnp.ones(2))


@pytest.mark.parametrize("transform", [lambda f: f, nnx.jit])
def test_d10_gradients_are_of_what_is_stored(transform):
    p = Positive(jnp.array([0.0, 1.0]))
    grads = transform(nnx.grad(lambda p: (p * 3).sum()))(p)
    assert type(grads) is Positive
    np.testing.assert_allclose(grads.raw_value, 3 * np.exp([0.0, 1.0]), rtol=1e-6)


@pytest.mark.parametrize("transform", [lambda f: f, nnx.jit, jax.jit])
def test_d10_parametrisation_crosses_transforms(transform):
    p = Positive(jnp.zeros(2))
    assert equal(transform(lambda p: p * 2)(p), jnp.full(2, 2.0))
    assert equal(nnx.clone(p).raw_value, p.raw_value)
    assert equal(pickle.loads(pickle.dumps(p)).raw_value, p.raw_value)
    if transform is nnx.jit:
        transform(lambda p: p.set_value(jnp.full(2, 2.0)))(p)
        np.testing.assert_allclose(p.raw_value, np.log([2.0, 2.0]), rtol=1e-6)


def test_d10_only_writing_overridden():
    p = Clipped(jnp.zeros(2))
    p.value = jnp.full(2, 5.0)
    assert equal(p.value, jnp.ones(2))
    p -= 7.0
    assert equal(p.value, jnp.zeros(2))
    p[0] = 3.0
    assert equal(p.value, jnp.array([1.0, 0.0]))
    nnx.jit(lambda p: p.set_value(p + 9))(p)
    assert equal(p.value, jnp.ones(2))
    assert equal(jax.tree.map(lambda x: x + 9, p).value, jnp.full(2, 10.0)), "raw"


@pytest.mark.parametrize("method", ["copy", "replace"])
@pytest.mark.parametrize("value", [(), (jnp.zeros((2, 2)),), (None,), ("text",)])
@pytest.mark.parametrize("metadata", [{}, {"b": 2}, {"a": 3}])
def test_d11_copies(method, value, metadata):
    v = Weight(jnp.ones(2), a=1)
    new = getattr(v, method)(*value, **metadata)
    assert type(new) is Weight and new is not v
    assert new.value is (value[0] if value else v.value)
    assert new.get_metadata() == {"a": 1, **metadata}
    new.value = 5
    new.set_metadata(a=9)
    assert equal(v.value, jnp.ones(2)) and v.get_metadata() == {"a": 1}


def test_d11_copy_of_the_value_of_another():
    assert nnx.Param(1).replace(nnx.Cache(jnp.ones(2))).shape == (2,)


@pytest.mark.parametrize(
    "copied",
    [
        lambda v: v.to_state(),
        copy.copy,
        copy.deepcopy,
        nnx.clone,
        lambda v: pickle.loads(pickle.dumps(v)),
    ],
)
@pytest.mark.parametrize("kind", [nnx.Param, Weight, Positive, Zeros])
def test_d11_other_copies(copied, kind):
    v = kind(2, a=1) if kind is Zeros else kind(jnp.ones(2), a=1)
    new = copied(v)
    assert type(new) is kind and new is not v
    assert equal(new.raw_value, v.raw_value) and new.get_metadata() == {"a": 1}
    new.value = jnp.full(2, 3.0)
    assert not equal(new.raw_value, v.raw_value)


def test_d11_deepcopy_keeps_what_is_shared_and_copies_containers():
    v = nnx.Variable({"a": [1]})
    a, b = copy.deepcopy([v, v])
    assert a is b and a is not v
    a.value["a"].append(2)
    assert v.value == {"a": [1]}


def test_d11_copy_from_takes_value_and_metadata():
    a, b = nnx.Param(1, x=1), nnx.Param(jnp.ones(2), y=2)
    a.copy_from(b)
    assert equal(a.value, jnp.ones(2)) and a.get_metadata() == {"y": 2}
    advice = "cannot copy a Cache into a Param.*copy the value, `a.value = b.value`"
    with pytest.raises(ValueError, match=advice):
        a.copy_from(nnx.Cache(0))


def test_d11_update_from_state_takes_what_is_stored():
    a = Positive(jnp.zeros(2), x=1)
    a.update_from_state(Positive(jnp.ones(2), y=2))
    assert equal(a.raw_value, jnp.ones(2)) and a.get_metadata() == {"y": 2}


def test_d11_from_metadata_skips_the_constructor():
    v = Zeros.from_metadata(jnp.ones(5), {"a": 1})
    assert type(v) is Zeros and v.shape == (5,) and v.a == 1


@pytest.mark.parametrize(
    ("given", "metadata", "expected"),
    [
        (nnx.VariableMetadata(5, {"a": 1}), {}, {"a": 1}),
        (nnx.VariableMetadata(5, {"a": 1}), {"a": 2, "b": 3}, {"a": 2, "b": 3}),
        (nnx.Cache(5, a=1), {"b": 3}, {"a": 1, "b": 3}),
        (nnx.VariableMetadata(5), {}, {}),
    ],
)
def test_d11_constructor_takes_value_and_metadata(given, metadata, expected):
    v = nnx.Param(given, **metadata)
    assert type(v) is nnx.Param and v.value == 5
    assert v.get_metadata() == expected


@pytest.mark.parametrize("kind", [*KINDS, Weight, Positive, Clipped, Zeros])
def test_d12_a_variable_is_a_pytree(kind):
    v = kind(2, a=1) if kind is Zeros else kind(jnp.ones(2), a=1)
    ((path, leaf),), treedef = jax.tree_util.tree_flatten_with_path(v)
    assert jax.tree_util.keystr(path) == ".value" and leaf is v.raw_value
    new = jax.tree.map(lambda x: x + 1, v)
    assert type(new) is kind and new.get_metadata() == {"a": 1}
    assert equal(new.raw_value, v.raw_value + 1)
    assert treedef == jax.tree.structure(v.copy())
    assert treedef != jax.tree.structure(v.copy(a=2)), "metadata is structure"
    assert treedef != jax.tree.structure(nnx.Variable(jnp.ones(2), b=1))
    stacked = jax.vmap(lambda v: v)(kind.from_metadata(jnp.ones((3, 2)), {"a": 1}))
    assert type(stacked) is kind and stacked.raw_value.shape == (3, 2)


def test_d12_the_value_of_a_pytree_variable_is_flattened():
    v = nnx.Param({"a": 1, "b": (2, None)})
    assert jax.tree.leaves(v) == [1, 2]
    assert jax.tree.map(lambda x: x * 2, v).value == {"a": 2, "b": (4, None)}


def test_d12_different_metadata_do_not_map_together():
    a, b = nnx.Param(1, group="x"), nnx.Param(2, group="y")
    with pytest.raises(ValueError, match="different pytree metadata|Mismatch custom"):
        jax.tree.map(operator.add, a, b)


# Identity


@pytest.mark.parametrize("kind", KINDS)
def test_hash_is_by_identity_and_equality_elementwise(kind):
    a, b = kind(jnp.ones(2)), kind(jnp.ones(2))
    assert (a == b).tolist() == [True, True]
    assert len({a, b}) == 2 and {a: 1}[a] == 1
    assert hash(a) == hash(a)


def test_variables_are_collected():
    v = arange()
    gone = weakref.ref(v)
    nnx.jit(lambda v: v * 2)(v)
    del v
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("v", "text"),
    [
        (nnx.Param(1), "Param(value=1)"),
        (nnx.Variable("a", note=(1, None)), "Variable(value='a', note=(1, None))"),
        (nnx.Cache(jnp.zeros((20, 20))), "Cache(value=float32[20,20])"),
    ],
)
def test_repr(v, text):
    assert repr(v) == text


# Trace levels

PLAIN = {
    "jit": lambda f: jax.jit(f)(1.0),
    "grad": lambda f: jax.grad(f)(1.0),
    "vmap": lambda f: jax.vmap(f)(jnp.ones(2)),
    "scan": lambda f: jax.lax.scan(lambda c, x: (f(c), None), 1.0, jnp.ones(2)),
    "cond": lambda f: jax.lax.cond(True, f, lambda x: x, 1.0),
    "checkpoint": lambda f: jax.checkpoint(f)(1.0),
    "eval_shape": lambda f: jax.eval_shape(f, 1.0),
}
WRITES = {
    "value": lambda v, x: setattr(v, "value", x),
    "[...]": lambda v, x: operator.setitem(v, ..., x),
    "item": lambda v, x: operator.setitem(v, 0, x),
    "+=": lambda v, x: operator.iadd(v, x),
    "raw": lambda v, x: v.set_raw_value(x),
    "constant": lambda v, x: v.set_value(jnp.zeros(3)),
    "set_metadata": lambda v, x: v.set_metadata(note="other"),
    "del_metadata": lambda v, x: v.del_metadata("note"),
}


@pytest.mark.parametrize("plain", PLAIN)
@pytest.mark.parametrize("write", WRITES)
def test_writing_from_inside_a_plain_transform(plain, write):
    v = arange()
    model = Holder(v)

    def f(x):
        WRITES[write](model.w, x)
        return x

    advice = (
        "Param 'Holder.w' cannot be changed here.*Use the nnxlite transform .*nnx.jit"
    )
    with pytest.raises(nnx.TraceContextError, match=advice):
        PLAIN[plain](f)
    assert equal(v.value, jnp.arange(3.0)) and v.note == "three"
    v += 1


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Holder, "Holder.w"),
        (lambda v: nnx.List([v]), r"List\[0\]"),
        (lambda v: nnx.Dict(w=v), "Dict.w|Dict\\['w'\\]"),
    ],
    ids=["module", "list", "dict"],
)
def test_trace_error_names_the_holder(make, name):
    held = [make(arange())]

    @jax.jit
    def f(x):
        jax.tree.leaves(held, is_leaf=lambda v: isinstance(v, nnx.Variable))[
            0
        ].value = x
        return x

    with pytest.raises(nnx.TraceContextError, match=f"Param '({name})' cannot be ch"):
        f(1.0)


@pytest.mark.parametrize("plain", PLAIN)
def test_reading_inside_a_plain_transform(plain):
    v = arange()
    PLAIN[plain](lambda x: x * v.sum() + v[0] + v.shape[0])
    assert equal(v.value, jnp.arange(3.0))


@pytest.mark.parametrize("plain", PLAIN)
def test_variables_made_inside_a_plain_transform_are_writable_there(plain):
    def f(x):
        v = nnx.Param(x, note=1)
        v += 1
        v.set_metadata(note=2)
        return v.value * v.note

    PLAIN[plain](f)


@pytest.mark.parametrize("transform", [jax.jit, nnx.jit])
def test_variables_returned_from_a_transform_are_writable(transform):
    v = transform(lambda x: nnx.Param(x, note=1))(2.0)
    v += 1
    v.set_metadata(note=2)
    assert (v.value, v.note) == (3.0, 2)


def test_variables_that_outlive_their_transform():
    kept = []

    @nnx.jit
    def f(x):
        kept.append(nnx.Param(x))
        return x

    f(1.0)
    advice = "was made inside a transform that has ended.*Return it from the function"
    with pytest.raises(nnx.TraceContextError, match=advice):
        _ = kept[0].value
    with pytest.raises(nnx.TraceContextError, match=advice):
        kept[0].value = 1.0
    with pytest.raises(nnx.TraceContextError, match=advice):
        kept[0] + 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda v: v.copy()])
def test_copies_made_inside_belong_there(copied):
    v = arange()

    @jax.jit
    def f(x):
        new = copied(v)
        new += x
        return new.value

    assert equal(f(1.0), jnp.arange(3.0) + 1)


# Flax NNX


@pytest.mark.parametrize(
    "operation",
    [
        lambda nnx, v: v.get_metadata("note"),
        lambda nnx, v: v.has_metadata("note"),
        lambda nnx, v: v.copy(jnp.ones(2), extra=1).get_metadata("extra"),
        lambda nnx, v: v.replace(jnp.ones(2)).get_value(),
        lambda nnx, v: nnx.Param(nnx.VariableMetadata(5, metadata={"a": 1})).a,
        lambda nnx, v: jax.tree.leaves(v),
        lambda nnx, v: jax.tree_util.keystr(
            jax.tree_util.tree_flatten_with_path(v)[0][0][0]
        ),
        lambda nnx, v: (v.shape, v.dtype, v.T, v[0], v[1:], v.mean()),
        lambda nnx, v: [
            op(v, 2.0) for op in (operator.add, operator.pow, operator.mod)
        ],
        lambda nnx, v: [2.0 - v, np.ones(3) - v, jnp.ones(3) @ v, v == 1, -v, abs(v)],
    ],
)
def test_as_flax(oracle, operation):
    results = []
    for module in (nnx, oracle("flax.nnx")):
        results.append(operation(module, module.Param(jnp.arange(3.0), note="three")))
    assert equal(*results)


@pytest.mark.parametrize(
    ("operation", "error", "advice"),
    [
        (lambda v: v.unheard_of, AttributeError, "unheard_of"),
        (lambda v: setattr(v, "foo", 1), AttributeError, r"set_metadata\(foo=...\)"),
        (lambda v: v.get_metadata("z"), KeyError, "no metadata 'z'"),
        (lambda v: len(v[0]), TypeError, "unsized"),
        (lambda v: v.__setitem__(..., jnp.ones(4)), ValueError, "write `v.value = x`"),
        (lambda v: v.copy_from(0), (ValueError, AttributeError), "copy the value"),
    ],
)
def test_refuses_what_flax_refuses(oracle, operation, error, advice):
    with pytest.raises(error, match=advice):
        operation(nnx.Param(jnp.arange(3.0)))
    with pytest.raises(error, match="."):
        operation(oracle("flax.nnx").Param(jnp.arange(3.0)))


@pytest.mark.parametrize("name", ["on_get_value", "on_set_value", "on_create_value"])
def test_hooks_in_metadata_are_refused(name):
    with pytest.raises(TypeError, match=f"'{name}' would be a hook.* of Param .*set_v"):
        nnx.Param(1.0, **{name: lambda variable, value: value * 3})
    w = nnx.Param(1.0, note=2, **{name: ()})
    with pytest.raises(TypeError, match=name):
        w.set_metadata(name, (print,))
    assert w.note == 2 and not w.get_metadata(name)
