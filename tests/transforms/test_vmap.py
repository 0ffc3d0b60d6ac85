"""`nnx.vmap` is the loop over slices: items D88-D92, its labels, metadata, errors."""

import functools
import gc
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnxlite as nnx

from .cells import Trainer, snapshot

SIZE = 3


class Net(nnx.Module):
    """A weight to map, a counter, a shared part, and a string."""

    def __init__(self):
        self.w = nnx.Param(jnp.arange(6.0).reshape(SIZE, 2))
        self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.name = nnx.Variable("net")
        self.size = 3


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(2, 2, rngs=rngs)

    @nnx.vmap(in_axes=(None, 0))
    def each(self, x: Any) -> Any:
        """Documented."""
        return self.linear(x)

    def __call__(self, x: Any) -> Any:
        return self.linear(x)


WEIGHTS_ONLY = nnx.StateAxes({nnx.Param: 0, ...: None})


def stack(size: int = SIZE) -> Any:
    """Several Linear layers as one."""
    make = nnx.vmap(
        lambda rngs: nnx.Linear(2, 2, rngs=rngs),
        in_axes=None,
        axis_size=size,
        split_rngs=True,
    )
    return make(nnx.Rngs(0))


# D88: construction


def test_d88_stacked_parameters_are_those_of_the_members():
    rngs = nnx.Rngs(0, noise=1)
    make = nnx.split_rngs(splits=SIZE)(nnx.vmap(Block))
    blocks = make(rngs)
    assert rngs.default.key.shape == () and int(rngs.default.count[...]) == 1
    keys = jax.random.split(nnx.Rngs(0)(), SIZE)
    for number in range(SIZE):
        alone = Block(nnx.Rngs(keys[number]))
        np.testing.assert_array_equal(blocks.linear.kernel[number], alone.linear.kernel)


def test_d88_with_one_keyword():
    rngs = nnx.Rngs(0)
    make = nnx.vmap(Block, in_axes=None, axis_size=SIZE, split_rngs=True)
    blocks = make(rngs=rngs)
    keys = jax.random.split(nnx.Rngs(0)(), SIZE)
    for number in range(SIZE):
        np.testing.assert_array_equal(
            blocks.linear.kernel[number], Block(nnx.Rngs(keys[number])).linear.kernel
        )
    assert rngs.default.key.shape == () and int(rngs.default.count[...]) == 1


def test_d88_as_flax(oracle: Callable[[str], Any]):
    flax_nnx = oracle("flax.nnx")

    def build(lib: Any) -> Any:
        @lib.split_rngs(splits=SIZE)
        @lib.vmap(in_axes=0, out_axes=0)
        def make(rngs: Any) -> Any:
            return lib.Linear(2, 4, rngs=rngs)

        return np.asarray(make(lib.Rngs(params=7)).kernel[...])

    np.testing.assert_array_equal(build(nnx), build(flax_nnx))


# D89: axes


def test_d89_none_broadcasts_the_model():
    linear, x = nnx.Linear(2, 2, rngs=nnx.Rngs(0)), jnp.arange(6.0).reshape(3, 2)
    got = nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(linear, x)
    np.testing.assert_allclose(got, linear(x), rtol=1e-6)


def test_d89_state_axes_map_by_filter():
    net = Net()

    def f(net: Any, x: Any) -> Any:
        assert net.w.shape == (2,) and net.count.shape == ()
        return net.w + net.count + x

    got = nnx.vmap(f, in_axes=(WEIGHTS_ONLY, 0))(net, jnp.arange(3.0))
    np.testing.assert_array_equal(got, net.w + jnp.arange(3.0)[:, None])


def test_d89_state_axes_of_a_state():
    linear = stack()
    linear.bias.value = jnp.ones(2)
    axes = nnx.map_state(
        lambda path, _: 0 if path[-1] == "kernel" else None, nnx.state(linear)
    )
    call = nnx.vmap(lambda m, x: m(x), in_axes=(nnx.StateAxes(axes), None))
    np.testing.assert_allclose(
        call(linear, jnp.ones(2)), linear.kernel.sum(1) + 1, rtol=1e-6
    )


def test_d89_an_unmatched_variable_raises():
    axes = nnx.StateAxes({nnx.PathContains("kernel"): 0})
    with pytest.raises(ValueError, match=r"no filter of .* matches Param at 'bias': a"):
        nnx.vmap(lambda m: m.bias * 1, in_axes=(axes,))(stack())


def test_d89_prefixes_of_containers():
    def f(parts: Any, x: Any) -> Any:
        return {"a": parts["a"](x) + parts["b"](x), "b": 1.0}

    parts = {"a": stack(), "b": nnx.Linear(2, 2, rngs=nnx.Rngs(1))}
    axes = {"a": 0, "b": None}
    got = nnx.vmap(f, in_axes=(axes, None), out_axes=axes)(parts, jnp.ones(2))
    assert got["a"].shape == (SIZE, 2) and got["b"].shape == ()


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_axes_may_be_negative(axis: int):
    net = nnx.Dict(w=nnx.Param(jnp.arange(6.0).reshape(2, 3)))
    size = net.w.shape[axis]

    def f(net: Any) -> Any:
        net.w *= 2
        net.new = nnx.Param(net.w + 1)
        return net.w * 1

    got = nnx.vmap(f, in_axes=axis, out_axes=axis)(net)
    wanted = 2 * np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(net.w, wanted)
    np.testing.assert_array_equal(net.new, wanted + 1)
    assert net.w.shape[axis] == size


# D90: updates


def test_d90_mapped_variables_are_written_per_lane():
    net = Net()
    before = net.w.value

    def f(net: Any, x: Any) -> None:
        net.w += x
        net.count += 1

    assert nnx.vmap(f, in_axes=(WEIGHTS_ONLY, 0))(net, jnp.arange(3.0)) is None
    np.testing.assert_array_equal(net.w, before + jnp.arange(3.0)[:, None])
    assert int(net.count[...]) == 1  # broadcast, and the same in all lanes


@pytest.mark.parametrize("way", ["argument", "captured", "nested"])
def test_d90_lane_dependent_writes_to_what_is_broadcast_raise(way: str):
    net = Net()
    before = snapshot(net)

    def write(net: Any, x: Any) -> Any:
        net.count.value = x
        return x

    calls = {
        "argument": lambda: nnx.vmap(write, in_axes=(None, 0))(net, jnp.arange(3)),
        "captured": lambda: nnx.vmap(lambda x: write(net, x))(jnp.arange(3)),
        "nested": lambda: nnx.vmap(nnx.vmap(lambda x: write(net, x)))(
            jnp.ones((2, 2), int)
        ),
    }
    with pytest.raises(
        ValueError, match=r"BatchStat 'Net\.count' differs from slice to slice.*axis"
    ):
        calls[way]()
    before.check()


def test_d90_new_attributes_are_stacked_and_static_ones_set_once():
    net = Net()

    def f(net: Any, x: Any) -> None:
        net.new = nnx.Param(jnp.full(2, x))
        net.array = x * 2
        net.note = "static"
        del net.size

    axes = nnx.StateAxes({nnx.BatchStat: None, ...: 0})
    nnx.vmap(f, in_axes=(axes, 0))(net, jnp.arange(3.0))
    np.testing.assert_array_equal(net.new, [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    np.testing.assert_array_equal(net.array, [0.0, 2.0, 4.0])
    assert net.note == "static" and not hasattr(net, "size")


def test_d90_new_attributes_of_what_is_broadcast_must_be_the_same():
    net = Net()
    before = snapshot(net)

    def set_new(net: Any, x: Any) -> None:
        net.new = x

    with pytest.raises(ValueError, match=r"Net\.new differs from slice to slice"):
        nnx.vmap(set_new, in_axes=(None, 0))(net, jnp.arange(3.0))
    before.check()
    nnx.vmap(lambda net, x: set_new(net, 1.0), in_axes=(None, 0))(net, jnp.arange(3.0))
    assert float(net.new) == 1.0


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_nothing_is_changed_by_a_call_that_raises(compiled: bool):
    net, dropout = Net(), nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    constant = jnp.ones(2)  # a captured array: the call is not compiled
    before = snapshot(net)

    def f(net: Any, x: Any) -> Any:
        dropout(constant * x)
        net.w *= 2
        net.count += 1
        net.new = 1
        net.w.set_metadata(note=1)
        raise RuntimeError("stop")

    call = nnx.vmap(f, in_axes=(WEIGHTS_ONLY, 0), split_rngs=True)

    def caught() -> Any:
        with pytest.raises(RuntimeError, match="stop"):
            call(net, jnp.arange(3.0))
        return net.w * 1

    (nnx.jit(caught) if compiled else caught)()
    before.check()
    assert int(dropout.rngs.count[...]) == 0  # the key that was split is given back


# D91: aliasing


@pytest.mark.parametrize(
    ("argument", "axes", "first", "second"),
    [
        (lambda m: (m, m), (0, None), r"args\[0\]\.bias", r"args\[1\]\.bias"),
        (lambda m: ([m, m],), ([0, None],), r"args\[0\]\[0\]\.b", r"args\[0\]\[1\]\.b"),
        (lambda m: (m.bias, m), (None, 0), r"args\[0\]", r"args\[1\]\.bias"),
        (
            lambda m: (nnx.Dict(a=m, b=nnx.Dict(c=m)),),
            (nnx.StateAxes({nnx.PathContains("a"): 0, ...: None}),),
            r"args\[0\]\.a\.bias",
            r"args\[0\]\.b\.c\.bias",
        ),
        (
            lambda m: (nnx.Dict(a=m.bias, b=nnx.List([m.bias])),),
            (nnx.StateAxes({nnx.PathContains("a"): 0, ...: None}),),
            r"args\[0\]\.a",
            r"args\[0\]\.b\[0\]",
        ),
    ],
    ids=["two arguments", "one list", "variable", "shared module", "shared variable"],
)
def test_d91_two_labels_for_one_variable_raise(
    argument: Any, axes: Any, first: str, second: str
):
    model = stack()
    before = snapshot(model)
    with pytest.raises(
        ValueError,
        match=rf"Inconsistent aliasing.*{first}.* the label .*{second}.*give both",
    ):
        nnx.vmap(lambda *args: 1.0, in_axes=axes)(*argument(model))
    before.check()


def test_d91_two_labels_for_one_bare_array_raise():
    class Holder(nnx.Module):
        def __init__(self):
            self.array = jnp.arange(3.0)

    holder = Holder()
    with pytest.raises(ValueError, match=r"the array at args\[0\]\.array .*args\[1\]"):
        nnx.vmap(lambda a, b: a.array + b.array, in_axes=(0, None))(holder, holder)


def test_d91_under_the_same_label_it_is_one_object():
    model = stack()

    def f(a: Any, parts: Any) -> Any:
        assert a is parts[0] is parts[1]
        a.bias += 1
        return parts[0].bias * 1

    np.testing.assert_array_equal(nnx.vmap(f)(model, [model, model]), np.ones((3, 2)))
    np.testing.assert_array_equal(model.bias, np.ones((3, 2)))


def test_a_cycle_has_the_labels_of_its_first_path():
    root = nnx.Dict(head=stack())
    root["head"].parent = root
    axes = nnx.StateAxes({nnx.PathContains("kernel"): 0, ...: 0})
    got = nnx.vmap(lambda r, x: r.head.parent.head(x), in_axes=(axes, None))
    assert got(root, jnp.ones(2)).shape == (SIZE, 2)


# D92: random numbers


def test_d92_a_broadcast_stream_gives_all_lanes_one_mask():
    dropout, x = nnx.Dropout(0.5, rngs=nnx.Rngs(0)), jnp.ones((3, 32))
    got = nnx.vmap(lambda d, x: d(x), in_axes=(None, 0))(dropout, x)
    alone = nnx.Dropout(0.5, rngs=nnx.Rngs(0))(x[0])
    np.testing.assert_array_equal(got, np.stack([alone] * 3))
    assert int(dropout.rngs.count[...]) == 1


def test_d92_a_split_stream_gives_each_lane_its_own_mask():
    dropout, x = nnx.Dropout(0.5, rngs=nnx.Rngs(0)), jnp.ones((3, 32))
    axes = nnx.StateAxes({nnx.RngState: 0, ...: None})
    call = nnx.split_rngs(splits=3)(nnx.vmap(lambda d, x: d(x), in_axes=(axes, 0)))
    got = np.asarray(call(dropout, x))
    assert not (got[0] == got[1]).all() and not (got[1] == got[2]).all()
    assert dropout.rngs.key.shape == () and int(dropout.rngs.count[...]) == 1


def test_google_flax_4195_independent_masks_with_one_keyword():
    one, other = (nnx.Dropout(0.5, rngs=nnx.Rngs(0)) for _ in range(2))
    x, axes = jnp.ones((3, 32)), nnx.StateAxes({nnx.RngState: 0, ...: None})
    got = nnx.vmap(lambda d, x: d(x), in_axes=(None, 0), split_rngs=True)(one, x)
    wanted = nnx.split_rngs(splits=3)(nnx.vmap(lambda d, x: d(x), in_axes=(axes, 0)))
    np.testing.assert_array_equal(got, wanted(other, x))
    assert int(one.rngs.count[...]) == 1


@pytest.mark.parametrize("way", ["argument", "captured", "module"])
def test_streams_are_split_wherever_the_function_sees_them(way: str):
    dropout, x = nnx.Dropout(0.5, rngs=nnx.Rngs(0)), jnp.ones((3, 32))
    got = {
        "argument": lambda: nnx.vmap(
            lambda d, x: d(x), in_axes=(None, 0), split_rngs="dropout"
        )(dropout, x),
        "captured": lambda: nnx.vmap(lambda x: dropout(x), split_rngs=True)(x),
        "module": lambda: nnx.vmap(dropout, split_rngs=True)(x),
    }[way]()
    assert len({row.tobytes() for row in np.asarray(got)}) == 3
    assert int(dropout.rngs.count[...]) == 1


def test_a_stack_of_dropouts_is_vmapped():
    make = nnx.split_rngs(splits=SIZE)(
        nnx.vmap(lambda rngs: nnx.Dropout(0.5, rngs=rngs))
    )
    dropouts = make(nnx.Rngs(0))
    got = nnx.vmap(lambda d, x: d(x))(dropouts, jnp.ones((3, 32)))
    assert len({row.tobytes() for row in np.asarray(got)}) == 3
    np.testing.assert_array_equal(dropouts.rngs.count, [1, 1, 1])


# What is decorated, and how it is called


def test_as_a_method():
    block = Block(nnx.Rngs(0))
    np.testing.assert_allclose(block.each(jnp.ones((3, 2))), block(jnp.ones((3, 2))))
    assert Block.each.__name__ == "each" and Block.each.__doc__ == "Documented."
    assert list(inspect.signature(Block.each).parameters) == ["self", "x"]


@pytest.mark.parametrize(
    "make",
    [
        lambda block: block.__call__,
        lambda block: block,
        lambda block: functools.partial(Block.__call__, block),
        lambda block: functools.partial(lambda m, x, y: m(x), block, y=1),
        lambda block: nnx.jit(block.__call__),
        lambda block: lambda x: block(x),
    ],
    ids=["bound method", "module", "partial", "partial kw", "jitted", "lambda"],
)
def test_what_can_be_mapped(make: Any):
    block = Block(nnx.Rngs(0))
    got = nnx.vmap(make(block))(jnp.ones((3, 2)))
    np.testing.assert_allclose(got, block(jnp.ones((3, 2))), rtol=1e-6)


@pytest.mark.parametrize("transform", [nnx.vmap, nnx.scan, nnx.pmap])
def test_google_flax_4981_the_signature_is_kept(transform: Any):
    def documented(model: Block, x: float, *, scale: float = 1.0) -> float:
        """Tells."""
        return x

    wrapped = transform(documented)
    assert inspect.signature(wrapped) == inspect.signature(documented)
    assert wrapped.__name__ == "documented" and wrapped.__doc__ == "Tells."


def test_keywords_are_bound_to_positions():
    def f(a: Any, b: Any) -> Any:
        return a + b

    got = nnx.vmap(f, in_axes=(None, 0))(b=jnp.arange(2.0), a=jnp.ones(3))
    np.testing.assert_array_equal(got, [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])


def test_keyword_only_arguments_are_mapped_as_in_jax():
    def f(a: Any, *, b: Any) -> Any:
        return a + b

    got = nnx.vmap(f, in_axes=(None,))(1.0, b=jnp.arange(2.0))
    np.testing.assert_array_equal(got, [1.0, 2.0])


@pytest.mark.parametrize("call", [lambda f, x: f(2, True, x), lambda f, x: f(x=x, n=2)])
def test_flags_and_sizes_that_are_not_mapped_are_static(call: Any):
    def f(n: int, flag: bool = True, x: Any = None) -> Any:
        return jnp.ones(n) * x if flag else x

    mapped = nnx.vmap(f, in_axes=(None, None, 0))
    if call(lambda *args, **kwargs: bool(kwargs), None):
        mapped = nnx.vmap(lambda n, x: f(n, True, x), in_axes=(None, 0))
    assert call(mapped, jnp.arange(3.0)).shape == (3, 2)


def test_static_values_pass():
    def f(name: str, function: Any, x: Any) -> Any:
        return name, function(x), None

    name, got, nothing = nnx.vmap(f)("a", jnp.tanh, jnp.arange(3.0))
    assert name == "a" and nothing is None
    np.testing.assert_allclose(got, jnp.tanh(jnp.arange(3.0)), rtol=1e-6)


def test_empty_containers_and_objects():
    got = nnx.vmap(lambda a, m, x: (a, m, {}, x))([], nnx.Dict(), jnp.ones(3))
    assert got[0] == [] and type(got[1]) is nnx.Dict and got[2] == {}


def test_axis_size_alone():
    assert nnx.vmap(lambda: jnp.ones(2), axis_size=3)().shape == (3, 2)


@pytest.mark.parametrize(
    ("f", "options", "args", "match"),
    [
        (lambda: 1.0, {}, (), r"maps none of its arguments: .*axis_size=\.\.\."),
        (
            lambda x: x,
            {"in_axes": 1},
            (jnp.ones(3),),
            r"args\[0\] over axis 1, but its",
        ),
        (
            lambda m, x: x,
            {},
            (nnx.Dict(w=nnx.Param(jnp.ones(2))), jnp.ones(3)),
            r"different sizes: 2 for args\[0\]\.w, and 3 for axis 0 of args\[1\]",
        ),
        (lambda x: x, {"in_axes": (0, 0)}, (jnp.ones(3),), r"2 entries.* 1 positional"),
        (
            lambda x: {"a": x},
            {"out_axes": {"b": 0}},
            (jnp.ones(3),),
            r"out_axes has nothing for 'a'",
        ),
    ],
    ids=["nothing", "no such axis", "sizes", "entries", "out_axes"],
)
def test_axes_that_do_not_fit(f: Any, options: Any, args: Any, match: str):
    with pytest.raises(ValueError, match=match):
        nnx.vmap(f, **options)(*args)


@pytest.mark.parametrize("kind", ["in_axes", "out_axes"])
def test_labels_that_are_no_axes(kind: str):
    with pytest.raises(TypeError, match=rf"{kind} of nnx\.vmap.*Carry is for nnx\.sca"):
        nnx.vmap(lambda x: x, **{kind: nnx.Carry})
    with pytest.raises(TypeError, match=rf"{kind} of nnx\.vmap must be an int, None"):
        nnx.vmap(lambda x: x, **{kind: "batch"})


# Values of every kind


def test_a_value_may_be_a_pytree_or_no_array():
    v = nnx.Variable({"a": jnp.arange(3.0), "s": "text"})
    net = nnx.Dict(v=v, w=nnx.Param(jnp.ones((2, 3))), name=nnx.Variable("x"))

    def f(net: Any) -> Any:
        assert net["v"]["a"].shape == () and net["name"].value == "x"
        net["v"].value = {"a": net["v"]["a"] * 2, "s": "text"}
        net["w"] += 1
        return net["v"]["a"]

    axes = nnx.StateAxes({nnx.Param: 1, ...: 0})
    np.testing.assert_array_equal(nnx.vmap(f, in_axes=(axes,))(net), [0.0, 2.0, 4.0])
    np.testing.assert_array_equal(v["a"], [0.0, 2.0, 4.0])
    assert v["s"] == "text" and net["w"].shape == (2, 3)
    alone = nnx.Variable({"a": jnp.arange(3.0)})
    np.testing.assert_array_equal(nnx.vmap(lambda v: v["a"] + 1)(alone), [1, 2, 3])


def test_random_keys():
    keys = nnx.Variable(jax.random.split(jax.random.key(0), 3))

    def draw(v: Any) -> Any:
        key, v.value = jax.random.split(v.value)
        return jax.random.normal(key)

    before = keys.value
    got = nnx.vmap(draw)(keys)
    for number in range(3):
        key, rest = jax.random.split(before[number])
        np.testing.assert_allclose(got[number], jax.random.normal(key), rtol=1e-6)
        assert keys[number] == rest


def test_bfloat16_stays():
    linear = nnx.Linear(2, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    got = nnx.vmap(linear)(jnp.ones((3, 2), jnp.bfloat16))
    assert got.dtype == jnp.bfloat16


def test_numbers_as_values_and_results():
    count = nnx.Variable(3)

    def f(x: Any) -> Any:
        count.value += 1
        return x, 2

    got = nnx.vmap(f, out_axes=(0, None))(jnp.arange(3))
    assert int(count.value) == 4 and int(got[1]) == 2


def test_bare_arrays_of_objects_are_sliced():
    class Holder(nnx.Module):
        def __init__(self):
            self.array = jnp.arange(3.0)

    def f(holder: Any) -> Any:
        holder.array = holder.array * 2
        return holder.array + 1

    holder = Holder()
    np.testing.assert_array_equal(nnx.vmap(f)(holder), [1.0, 3.0, 5.0])
    np.testing.assert_array_equal(holder.array, [0.0, 2.0, 4.0])


# Plain objects


def test_a_plain_object_is_seen_like_what_is_captured():
    trainer = Trainer(Net())

    def f(trainer: Any, x: Any) -> Any:
        trainer.model.count += 1
        trainer.note = "done"
        trainer.array = trainer.array * 2
        return x * trainer.array.sum()

    got = nnx.vmap(f, in_axes=(None, 0))(trainer, jnp.arange(2.0))
    np.testing.assert_array_equal(got, [0.0, 4.0])
    assert int(trainer.model.count[...]) == 1 and trainer.note == "done"
    np.testing.assert_array_equal(trainer.array, [2.0, 2.0])


def test_a_field_of_a_plain_object_must_be_the_same_in_all_lanes():
    trainer = Trainer(Net())
    before = dict(vars(trainer))

    def f(trainer: Any, x: Any) -> None:
        trainer.last = x

    with pytest.raises(ValueError, match=r"Trainer\.last differs from slice to slice"):
        nnx.vmap(f, in_axes=(None, 0))(trainer, jnp.arange(2.0))
    assert vars(trainer) == before


def test_a_plain_object_with_an_axis_raises():
    with pytest.raises(
        ValueError, match=r"args\[0\] of nnx\.vmap is a Trainer, .*label 0: give None"
    ):
        nnx.vmap(lambda t, x: x)(Trainer(Net()), jnp.arange(3.0))


# Metadata


@pytest.mark.parametrize("name", [None, "layers"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_out_sharding_follows_the_rank(axis: int, name: str | None):
    full = ["a", "b"]
    full.insert(axis, name)
    net = nnx.Dict(w=nnx.Param(jnp.ones((2, 2, 2)), out_sharding=tuple(full)))
    names = {nnx.PARTITION_NAME: name} if name else {}

    def f(net: Any) -> Any:
        assert net.w.out_sharding == ("a", "b")
        net.w *= 2
        net.new = nnx.Param(jnp.ones((2, 2)), out_sharding=("c", "d"))
        return nnx.Param(jnp.ones((2, 2)), out_sharding=("e", "f"))

    got = nnx.vmap(f, in_axes=axis, out_axes=axis, transform_metadata=names)(net)
    assert net.w.out_sharding == tuple(full)
    for variable, rest in ((net.new, ["c", "d"]), (got, ["e", "f"])):
        rest.insert(axis, name)
        assert variable.out_sharding == tuple(rest)


def test_metadata_changed_inside():
    net = nnx.Dict(w=nnx.Param(jnp.ones((3, 2)), out_sharding=(None, "a")))
    nnx.vmap(lambda net: net.w.set_metadata(note=1))(net)
    assert net.w.note == 1 and net.w.out_sharding == (None, "a")
    nnx.vmap(lambda net: net.w.set_metadata(out_sharding=("b",)))(net)
    assert net.w.out_sharding == (None, "b")


def test_other_metadata_follows_if_it_is_named():
    net = nnx.Dict(w=nnx.Param(jnp.ones((3, 2)), axes=("layer", "in"), note=("x", "y")))

    def f(net: Any) -> Any:
        assert net.w.axes == ("in",) and net.w.note == ("x", "y")
        return nnx.Param(jnp.ones(2), axes=("out",))

    got = nnx.vmap(f, transform_metadata={"axes": "layer"})(net)
    assert got.axes == ("layer", "out") and net.w.axes == ("layer", "in")


def test_google_flax_5112_an_optimizer_of_stacked_sharded_layers():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    init = nnx.with_metadata(nnx.initializers.lecun_normal(), out_sharding=("d", None))
    with jax.set_mesh(mesh):
        make = nnx.vmap(
            lambda rngs: nnx.Linear(4, 4, kernel_init=init, rngs=rngs),
            in_axes=None,
            axis_size=3,
            split_rngs=True,
        )
        model = make(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        call = nnx.vmap(lambda m, x: m(x), in_axes=(0, None))
        grads = nnx.grad(lambda m: call(m, jnp.ones(4)).sum())(model)
        optimizer.update(model, grads)
    assert model.kernel.out_sharding == (None, "d", None)
    assert grads["kernel"].out_sharding == (None, "d", None)
    assert optimizer.opt_state[0].mu["kernel"].out_sharding == (None, "d", None)


def forms(f: Any, form: str) -> Any:
    named = nnx.transform_metadata(in_axes=0, out_axes=0, partition="layers")
    return {
        "inside": lambda: nnx.vmap(named(f)),
        "outside": lambda: named(nnx.vmap(f)),
        "scan": lambda: named(nnx.scan(f, in_axes=0, out_axes=0)),
        "jax": lambda: lambda net: jax.vmap(named(f))(net),
    }[form]()


@pytest.mark.parametrize("form", ["inside", "outside", "scan", "jax"])
def test_transform_metadata_names_the_axis(form: str):
    net = nnx.Dict(w=nnx.Param(jnp.ones((3, 2)), out_sharding=("layers", "a")))

    def f(net: Any) -> Any:
        assert net.w.out_sharding == ("a",) and net.w.shape == (2,)
        return nnx.Param(net.w * 2, out_sharding=("b",))

    got = forms(f, form)(net)
    assert got.out_sharding == ("layers", "b") and got.shape == (3, 2)
    assert net.w.out_sharding == ("layers", "a")


def test_transform_metadata_as_flax(oracle: Callable[[str], Any]):
    flax_nnx = oracle("flax.nnx")

    def build(lib: Any) -> Any:
        @lib.vmap
        @lib.transform_metadata(in_axes=0, out_axes=0, partition="layers")
        def f(x: Any) -> Any:
            return lib.Param(x, out_sharding=("a",))

        with lib.use_eager_sharding(False):
            return f(jnp.ones((3, 2))).get_metadata()["out_sharding"]

    assert tuple(build(nnx)) == tuple(build(flax_nnx)) == ("layers", "a")


# Levels and compositions


@pytest.mark.parametrize("outer", [nnx.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("inner", ["vmap(grad)", "grad(vmap)"])
def test_d101_vmap_and_grad_compose(inner: str, outer: Any):
    models, x = stack(), jnp.ones(2)

    def loss(m: Any, x: Any) -> Any:
        return (m(x) ** 2).sum()

    if inner == "vmap(grad)":
        got = outer(nnx.vmap(nnx.grad(loss), in_axes=(0, None)))(models, x)
    else:
        total = nnx.vmap(loss, in_axes=(0, None))
        got = outer(nnx.grad(lambda ms, x: total(ms, x).sum()))(models, x)
    for number in range(SIZE):
        alone = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        alone.kernel.value = models.kernel[number]
        wanted = nnx.grad(loss)(alone, x)
        np.testing.assert_allclose(got["kernel"][number], wanted["kernel"], rtol=1e-5)


def test_vmap_in_vmap_writes_on_both_levels():
    net, count = nnx.Dict(a=nnx.Variable(jnp.arange(3.0))), nnx.Variable(0)

    def outer(net: Any, x: Any) -> Any:
        def inner(y: Any) -> Any:
            net.a.value = net.a * 2
            count.value += 1
            return net.a * y

        return nnx.vmap(inner)(x)

    got = nnx.vmap(outer)(net, jnp.ones((3, 2)))
    np.testing.assert_array_equal(net.a, [0.0, 2.0, 4.0])
    np.testing.assert_array_equal(got, [[0.0, 0.0], [2.0, 2.0], [4.0, 4.0]])
    assert int(count.value) == 1


@pytest.mark.parametrize(
    "plain",
    [
        lambda f, xs: jax.vmap(f)(xs),
        lambda f, xs: jax.lax.map(f, xs),
        lambda f, xs: jax.jit(jax.vmap(f))(xs),
        lambda f, xs: jax.lax.scan(lambda c, x: (c, f(x)), 0, xs)[1],
    ],
    ids=["vmap", "map", "jit", "scan"],
)
def test_google_flax_4720_plain_transforms_over_vmap(plain: Any):
    models, xs = stack(), jnp.arange(8.0).reshape(4, 2)

    def f(x: Any) -> Any:
        return nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(models, x)

    np.testing.assert_allclose(plain(f, xs), [f(x) for x in xs], rtol=1e-6)


def test_a_write_under_plain_vmap_raises_and_writes_nothing():
    count = nnx.Variable(jnp.zeros(()))

    def f(x: Any) -> Any:
        def write(y: Any) -> Any:
            count.value += 1
            return y

        return nnx.vmap(write)(x)

    with pytest.raises(nnx.TraceContextError, match=r"Use the nnxlite transform"):
        jax.vmap(f)(jnp.ones((2, 2)))
    assert float(count.value) == 0.0


def test_google_flax_4760_batch_norm_under_vmap_stays_usable():
    norm, x = nnx.BatchNorm(2, rngs=nnx.Rngs(0)), jnp.ones((3, 4, 2))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"BatchStat 'BatchNorm\.mean' differs"):
            nnx.vmap(lambda x: norm(x))(x)
    got = nnx.vmap(lambda x: norm(x, use_running_average=True))(x)
    assert got.shape == (3, 4, 2) and not isinstance(norm.mean.value, jax.core.Tracer)
    synced = nnx.BatchNorm(2, axis_name="b", rngs=nnx.Rngs(0))
    nnx.vmap(lambda x: synced(x), axis_name="b")(x)
    np.testing.assert_allclose(synced.mean, [0.01, 0.01], rtol=1e-5)


# Traces and memory


def test_equal_calls_trace_once():
    traces: list[int] = []
    total = 0

    def body(m: Any, x: Any) -> Any:
        nonlocal total
        total += 1
        traces.append(1)
        return m(x)

    mapped = nnx.vmap(body, in_axes=(0, None))
    for _ in range(3):
        models = stack()
        mapped(models, jnp.ones(2))
        models.kernel *= 2
        mapped(models, jnp.ones(2))
        nnx.vmap(body, in_axes=(0, None))(models, jnp.ones(2))
    assert len(traces) == total == 1


def test_fresh_but_equal_functions_trace_once_and_see_their_own():
    traces: list[int] = []

    def call(model: Any, factor: float) -> Any:
        def body(x: Any) -> Any:
            traces.append(1)
            return model(x) * factor

        return nnx.vmap(body)(jnp.ones((3, 2)))

    for seed in range(3):
        model = nnx.Linear(2, 2, rngs=nnx.Rngs(seed))
        wanted = model(jnp.ones((3, 2))) * 2.0
        np.testing.assert_allclose(call(model, 2.0), wanted, rtol=1e-6)
    assert len(traces) == 1
    np.testing.assert_allclose(call(model, 3.0), wanted * 1.5, rtol=1e-6)
    assert len(traces) == 2


def test_captured_objects_are_not_kept_alive():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    reference = weakref.ref(model)

    def call(model: Any) -> None:
        nnx.vmap(lambda x: model(x))(jnp.ones((3, 2)))
        nnx.vmap(model)(jnp.ones((3, 2)))
        nnx.scan(lambda c, x: (c, model(x)))(0.0, jnp.ones((3, 2)))
        nnx.cond(True, lambda: model.bias * 1, lambda: model.bias * 2)

    call(model)
    del model
    gc.collect()
    assert reference() is None


def test_axes_by_path_of_a_state():
    state = nnx.State({"a": {"kernel": nnx.Param(jnp.ones((3, 2)))}, "b": jnp.ones(3)})
    axes = nnx.StateAxes({nnx.PathContains("kernel"): 0, ...: None})

    summed = nnx.vmap(lambda s: s.a.kernel.sum() + s.b.sum(), in_axes=(axes,))(state)

    np.testing.assert_array_equal(summed, [5.0, 5.0, 5.0])
