"""`nnx.scan` is the loop over slices: items D93-D98, its carry, labels, errors."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

from .cells import Cell, Trainer, snapshot

STEPS = 3
Carry = nnx.Carry


class Mixed(nnx.Module):
    """Per step, carried, broadcast."""

    def __init__(self):
        self.w = nnx.Param(jnp.arange(1.0, 4.0))
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))
        self.scale = nnx.BatchStat(jnp.full((), 2.0))


class Method(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.full((), 2.0))
        self.count = nnx.Variable(0)

    @nnx.scan(in_axes=(nnx.Carry, None, 0), out_axes=(nnx.Carry, 0))
    def counted(self, scale: Any, x: Any) -> Any:
        """Documented."""
        self.count += 1
        return self, x * self.w * scale

    @nnx.scan(in_axes=(None, nnx.Carry, 0))
    def read(self, total: Any, x: Any) -> Any:
        return total + x * self.w, total


MIXED = nnx.StateAxes({nnx.Param: 0, nnx.BatchStat: None, ...: Carry})


def stack(size: int = STEPS) -> Any:
    make = nnx.vmap(
        lambda rngs: nnx.Linear(2, 2, rngs=rngs),
        in_axes=None,
        axis_size=size,
        split_rngs=True,
    )
    return make(nnx.Rngs(0))


def member(stacked: Any, number: int) -> Any:
    alone = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    alone.kernel.value = stacked.kernel[number]
    alone.bias.value = stacked.bias[number]
    return alone


# D93, D94: layers and carries


@pytest.mark.parametrize("options", [{}, {"unroll": 3}, {"unroll": True}])
def test_d93_stacked_layers_are_the_loop(options: Any):
    layers, x = stack(), jnp.ones(2)
    got, seen = nnx.scan(lambda x, layer: (layer(x), x.sum()), **options)(x, layers)
    wanted, sums = x, []
    for number in range(STEPS):
        sums.append(wanted.sum())
        wanted = member(layers, number)(wanted)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    np.testing.assert_allclose(seen, sums, rtol=1e-6)


def test_d93_in_reverse():
    layers, x = stack(), jnp.ones(2)
    got, _ = nnx.scan(lambda x, layer: (layer(x), 0), reverse=True)(x, layers)
    wanted = x
    for number in reversed(range(STEPS)):
        wanted = member(layers, number)(wanted)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_d93_written_layers():
    layers = stack()

    def f(x: Any, layer: Any) -> Any:
        layer.bias += x
        return layer(x), None

    nnx.scan(f)(jnp.ones(2), layers)
    x, wanted = jnp.ones(2), stack()
    for number in range(STEPS):
        alone = member(wanted, number)
        alone.bias += x
        np.testing.assert_allclose(layers.bias[number], alone.bias, rtol=1e-6)
        x = alone(x)


def test_d94_a_module_as_carry():
    cell = Cell()

    def f(cell: Any, x: Any) -> Any:
        assert cell.same is cell.part
        cell.count += x
        cell.part.w *= 2
        return cell, cell.count * 1

    got, seen = nnx.scan(f)(cell, jnp.arange(4))
    assert got is cell and cell.same is cell.part
    np.testing.assert_array_equal(seen, [0, 1, 3, 6])
    np.testing.assert_array_equal(cell.part.w, [16.0, 16.0])
    assert int(cell.count[...]) == 6


def test_google_flax_4436_two_modules_as_carry():
    one, other = Cell(), Cell()

    def f(carry: Any, x: Any) -> Any:
        one, other = carry["pair"]
        one.count += x
        other.count -= x
        return carry, one.count - other.count

    got, seen = nnx.scan(f)({"pair": (one, other), "n": 0}, jnp.arange(3))
    assert got["pair"][0] is one and got["pair"][1] is other
    np.testing.assert_array_equal(seen, [0, 2, 6])
    assert int(one.count[...]) == -int(other.count[...]) == 3


def test_d94_as_flax(oracle: Callable[[str], Any]):
    flax_nnx = oracle("flax.nnx")

    def run(lib: Any) -> Any:
        @lib.split_rngs(splits=STEPS)
        @lib.vmap(in_axes=0, out_axes=0)
        def make(rngs: Any) -> Any:
            return lib.Linear(2, 2, rngs=rngs)

        layers = make(lib.Rngs(3))

        @lib.scan(in_axes=(lib.Carry, 0), out_axes=lib.Carry)
        def forward(x: Any, layer: Any) -> Any:
            return jnp.tanh(layer(x))

        return np.asarray(forward(jnp.ones((4, 2)), layers))

    np.testing.assert_allclose(run(nnx), run(flax_nnx), rtol=1e-6)


@pytest.mark.parametrize("carry", [1.0, 1, jnp.ones(2), {"a": jnp.ones(2), "b": "s"}])
def test_carry_alone(carry: Any):
    def double(x: Any) -> Any:
        if isinstance(x, dict):
            return {"a": x["a"] * 2, "b": "s"}
        return x * 2

    got = nnx.scan(double, in_axes=Carry, out_axes=Carry, length=3)(carry)
    wanted = double(double(double(carry)))
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(
        np.testing.assert_array_equal,
        *(
            {k: v for k, v in x.items() if k != "b"} if isinstance(x, dict) else x
            for x in (got, wanted)
        ),
    )


def test_the_carry_may_stand_anywhere():
    def f(x: Any, total: Any, y: Any) -> Any:
        return x, y, total + x * y

    scanned = nnx.scan(f, in_axes=(0, Carry, None), out_axes=(0, 0, Carry))
    xs, ys, total = scanned(jnp.arange(3.0), 0.0, jnp.array(2.0))
    np.testing.assert_array_equal(xs, [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(ys, [2.0, 2.0, 2.0])
    assert float(total) == 6.0


@pytest.mark.parametrize(
    ("start", "xs"),
    [
        (0, jnp.ones(3)),
        (0.0, jnp.ones(3, jnp.bfloat16)),
        (0.0, jnp.ones(3, jnp.int8)),
        (jnp.zeros((), jnp.bfloat16), jnp.ones(3, jnp.bfloat16)),
    ],
)
def test_numbers_take_the_type_that_they_get(start: Any, xs: Any):
    total, _ = nnx.scan(lambda c, x: (c + x, None))(start, xs)
    wanted = start
    for x in xs:
        wanted = wanted + x
    assert float(total) == float(wanted) and total.dtype == wanted.dtype


# D95, D96: labels and random numbers


def test_d95_per_step_carried_and_broadcast_in_one_module():
    model = Mixed()

    def f(model: Any, x: Any) -> Any:
        model.count += 1
        model.w *= model.scale
        return model.w * model.count + x

    got = nnx.scan(f, in_axes=(MIXED, 0), out_axes=0)(model, jnp.arange(3.0))
    np.testing.assert_array_equal(got, [2.0, 9.0, 20.0])
    np.testing.assert_array_equal(model.w, [2.0, 4.0, 6.0])
    assert int(model.count[...]) == 3 and float(model.scale[...]) == 2.0


@pytest.mark.parametrize("way", ["carry", "captured", "state axes"])
def test_d96_a_carried_stream_draws_anew_in_each_step(way: str):
    dropout, xs = nnx.Dropout(0.5, rngs=nnx.Rngs(0)), jnp.ones((4, 16))
    axes = nnx.StateAxes({...: Carry})
    got = {
        "carry": lambda: nnx.scan(lambda d, x: (d, d(x)))(dropout, xs)[1],
        "captured": lambda: nnx.scan(lambda x: dropout(x), in_axes=0, out_axes=0)(xs),
        "state axes": lambda: nnx.scan(
            lambda d, x: d(x), in_axes=(axes, 0), out_axes=0
        )(dropout, xs),
    }[way]()
    again = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(got, [again(x) for x in xs])
    assert int(dropout.rngs.count[...]) == 4


def test_google_flax_4589_a_stack_of_dropouts_is_scanned():
    make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: nnx.Dropout(0.5, rngs=rngs)))
    layers = make(nnx.Rngs(0))
    scanned = nnx.scan(lambda x, layer: (x, layer(x)))
    _, got = scanned(jnp.ones(32), layers)
    assert len({row.tobytes() for row in np.asarray(got)}) == 3
    np.testing.assert_array_equal(layers.rngs.count, [1, 1, 1])


def test_split_rngs_gives_each_step_keys_of_its_own():
    dropout, xs = nnx.Dropout(0.5, rngs=nnx.Rngs(0)), jnp.ones((3, 32))
    scanned = nnx.scan(
        lambda d, x: d(x), in_axes=(None, 0), out_axes=0, split_rngs=True
    )
    got = scanned(dropout, xs)
    assert len({row.tobytes() for row in np.asarray(got)}) == 3
    assert int(dropout.rngs.count[...]) == 1


# D97, D98: what raises, and changes nothing


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("body", "axes", "error", "match"),
    [
        (
            lambda m, x: m.count.set_value(m.count + 1),
            (None, 0),
            ValueError,
            r"'Cell\.count' is written .* None for it.* lost.*nnx\.Carry",
        ),
        (
            lambda m, x: setattr(m, "new", nnx.Param(1.0)),
            (None, 0),
            ValueError,
            r"structure of Cell: it sets 'new'.*before the loop",
        ),
        (
            lambda m, x: (setattr(m, "new", 1), m)[1],
            (Carry, 0),
            ValueError,
            r"structure of Cell: it sets 'new'.*before the loop",
        ),
        (
            lambda m, x: (delattr(m, "same"), m)[1],
            (Carry, 0),
            ValueError,
            r"structure of Cell: it deletes 'same'",
        ),
        (
            lambda m, x: (m.count.set_metadata(note=1), m)[1],
            (Carry, 0),
            ValueError,
            r"'Cell\.count': it changes its metadata",
        ),
        (
            lambda m, x: Cell(),
            (Carry, 0),
            ValueError,
            r"object that it got as the carry, Cell, but it returned another Cell",
        ),
        (
            lambda m, x: (m, m),
            (Carry, 0),
            ValueError,
            r"return a value of the structure that it got",
        ),
        (
            lambda m, x: (m.count.set_value(m.count + 0.5), m)[1],
            (Carry, 0),
            TypeError,
            r"'Cell\.count' is int32\[\] before .* float32\[\] after it.*astype",
        ),
        (
            lambda m, x: (m.count.set_value({"a": m.count * 1}), m)[1],
            (Carry, 0),
            TypeError,
            r"value of Variable 'Cell\.count' has another structure after a step",
        ),
    ],
    ids=[
        "D97 broadcast write",
        "broadcast set",
        "D98 set",
        "D98 delete",
        "D98 metadata",
        "D98 another object",
        "D98 structure",
        "dtype",
        "value",
    ],
)
def test_d97_d98_what_must_stay(
    body: Any, axes: Any, error: Any, match: str, compiled: bool
):
    cell, other = Cell(), nnx.Variable(0)
    before = snapshot(cell, other)

    def f(m: Any, x: Any) -> Any:
        other.value += 1
        return body(m, x)

    out = Carry if axes[0] is Carry else 0
    scanned = nnx.scan(f, in_axes=axes, out_axes=out)

    def caught(m: Any) -> Any:
        with pytest.raises(error, match=match):
            scanned(m, jnp.arange(3.0))
        return m.count * 1

    (nnx.jit(caught) if compiled else caught)(cell)
    before.check()


@pytest.mark.parametrize(
    ("axes", "error", "match"),
    [
        ({"in_axes": (0, 0)}, ValueError, r"Carry in out_axes but none in in_axes"),
        ({"out_axes": (0, 0)}, ValueError, r"Carry in in_axes but none in out_axes"),
        ({"out_axes": (Carry, None)}, ValueError, r"out_axes .* cannot be None"),
        ({"in_axes": (Carry, Carry)}, ValueError, r"one Carry.*put them in one tuple"),
        (
            {"in_axes": ((Carry, 0), 0)},
            ValueError,
            r"one Carry, as the label of a whol",
        ),
        ({"in_axes": (Carry, "x")}, TypeError, r"int, None, nnx\.Carry, a StateAxes"),
    ],
)
def test_d98_axes_are_checked_at_once(axes: Any, error: Any, match: str):
    with pytest.raises(error, match=match):
        nnx.scan(lambda c, x: (c, x), **axes)


@pytest.mark.parametrize(
    ("f", "options", "args", "error", "match"),
    [
        (
            lambda c, x: c,
            {},
            (0.0, jnp.ones(3)),
            ValueError,
            r"2 entries.* not an array",
        ),
        (lambda c, x: (c,), {}, (0.0, jnp.ones(3)), ValueError, r"tuple.*not one of 1"),
        (
            lambda c, x: (c, x),
            {},
            (0.0, 1.0),
            ValueError,
            r"args\[1\] over axis 0, but",
        ),
        (
            lambda c: c,
            {"in_axes": Carry, "out_axes": Carry},
            (0.0,),
            ValueError,
            r"needs a length",
        ),
        (
            lambda c, x: (c, x),
            {"length": 2},
            (0.0, jnp.ones(3)),
            ValueError,
            r"different sizes: 2 for axis_size or length, and 3 for",
        ),
        (
            lambda c, x: (c, x),
            {"out_axes": (Carry, 2)},
            (0.0, jnp.ones(3)),
            ValueError,
            r"the result\[0\] cannot be stacked along axis 2",
        ),
        (
            lambda c, x: (c + x, x),
            {},
            (jnp.zeros(()), jnp.ones((3, 2))),
            TypeError,
            r"the carry is float32\[\] before .* float32\[2\] after it",
        ),
    ],
)
def test_d98_what_a_call_can_get_wrong(
    f: Any, options: Any, args: Any, error: Any, match: str
):
    with pytest.raises(error, match=match):
        nnx.scan(f, **options)(*args)


def test_an_axis_that_does_not_exist_leaves_captured_variables_alone():
    total = nnx.Variable(jnp.zeros(()))

    def f(c: Any, x: Any) -> Any:
        total.value += x
        return c, x

    @nnx.jit
    def caught() -> Any:
        with pytest.raises(ValueError, match=r"cannot be stacked"):
            nnx.scan(f, out_axes=(Carry, 3))(0.0, jnp.ones(3))
        return total * 1

    assert float(caught()) == float(total.value) == 0.0


def test_a_plain_object_with_an_axis_raises():
    with pytest.raises(ValueError, match=r"args\[0\] of nnx\.scan is a Trainer.*None"):
        nnx.scan(lambda t, x: x, in_axes=(0, 0), out_axes=0)(Trainer(), jnp.ones(3))


def test_two_labels_for_one_variable_raise():
    model = Cell()
    axes = nnx.StateAxes({nnx.PathContains("part"): Carry, ...: None})
    with pytest.raises(
        ValueError, match=r"aliasing.*args\[0\]\.part\.w .*args\[0\]\.same\.w"
    ):
        nnx.scan(lambda m, x: x, in_axes=(axes, 0), out_axes=0)(model, jnp.ones(3))


# What the body writes


@pytest.mark.parametrize("unroll", [1, True])
def test_captured_variables_are_written_in_every_step(unroll: Any):
    total, count = nnx.Variable(jnp.zeros(())), nnx.Variable(0)
    other = nnx.Variable({"a": jnp.zeros(()), "s": "text"})
    untouched = nnx.Variable(jnp.ones(()))
    value = untouched.value

    def f(x: Any) -> Any:
        total.value += x
        count.value = count.value + 1
        other.value = {"a": other["a"] + x * untouched, "s": "text"}
        return total * 1

    got = nnx.scan(f, in_axes=0, out_axes=0, unroll=unroll)(jnp.arange(3.0))
    np.testing.assert_array_equal(got, [0.0, 1.0, 3.0])
    assert float(total.value) == 3.0 and int(count.value) == 3
    assert float(other["a"]) == 3.0 and other["s"] == "text"
    assert untouched.value is value


def test_no_steps_write_nothing():
    total = nnx.Variable(jnp.ones(()))

    def f(c: Any, x: Any) -> Any:
        total.value += x
        return c + x, x

    got, xs = nnx.scan(f)(5.0, jnp.zeros(0))
    assert float(got) == 5.0 and xs.shape == (0,) and float(total.value) == 1.0


@pytest.mark.parametrize("way", ["carry", "captured", "sliced"])
def test_bare_arrays_of_objects_are_written(way: str):
    class Holder(nnx.Module):
        def __init__(self, array: Any):
            self.array = array
            self.table = {"k": array}

    holder = Holder(jnp.ones(3))

    def f(holder: Any, x: Any) -> Any:
        holder.array = holder.array * 2
        holder.table["k"] = holder.table["k"] + x
        return holder

    xs = jnp.arange(3.0)
    if way == "carry":
        got = nnx.scan(f, out_axes=Carry)(holder, xs)
        assert got is holder
    elif way == "captured":
        nnx.scan(lambda x: (f(holder, x), x)[1], in_axes=0, out_axes=0)(xs)
    else:
        nnx.scan(f, in_axes=(0, 0), out_axes=0)(holder, xs)
    factor, added = (2.0, xs) if way == "sliced" else (8.0, xs.sum())
    np.testing.assert_array_equal(holder.array, jnp.full(3, factor))
    np.testing.assert_array_equal(holder.table["k"], jnp.ones(3) + added)


def test_bare_arrays_of_a_broadcast_argument_are_not_written():
    class Holder(nnx.Module):
        def __init__(self):
            self.array = jnp.ones(3)

    holder = Holder()
    before = snapshot(holder)

    def f(holder: Any, x: Any) -> Any:
        holder.array = holder.array * x
        return x

    with pytest.raises(ValueError, match=r"'array' of Holder is written .* None for"):
        nnx.scan(f, in_axes=(None, 0), out_axes=0)(holder, jnp.ones(3))
    before.check()


def test_sliced_objects_gain_and_lose_parts():
    layers = stack()

    def f(x: Any, layer: Any) -> Any:
        layer.seen = nnx.Intermediate(x)
        layer.note = "static"
        x = layer(x)
        del layer.bias
        return x

    nnx.scan(f, out_axes=Carry)(jnp.ones(2), layers)
    assert layers.seen.shape == (3, 2) and layers.note == "static"
    np.testing.assert_array_equal(layers.seen[0], [1.0, 1.0])
    assert not hasattr(layers, "bias")


def test_results_may_be_new_objects():
    rngs, again = nnx.Rngs(0), nnx.Rngs(0)
    make = nnx.scan(lambda rngs, _: (rngs, nnx.Linear(2, 2, rngs=rngs)), length=3)
    got, layers = make(rngs, None)
    assert got is rngs
    for number in range(3):
        wanted = nnx.Linear(2, 2, rngs=again)
        np.testing.assert_array_equal(layers.kernel[number], wanted.kernel)
    assert int(rngs.default.count[...]) == int(again.default.count[...])


def test_results_may_be_static_values():
    total, (xs, text, nothing) = nnx.scan(lambda c, x: (c, (x, "a", None)))(
        0.0, jnp.ones(3)
    )
    assert text == "a" and nothing is None and xs.shape == (3,)


@pytest.mark.parametrize("place", ["broadcast", "carry"])
def test_a_plain_object_is_seen_like_what_is_captured(place: str):
    trainer = Trainer()

    def f(trainer: Any, x: Any) -> Any:
        trainer.model.count += 1
        trainer.array = trainer.array * 2
        return (trainer, x) if place == "carry" else x

    axes = Carry if place == "carry" else None
    out = (Carry, 0) if place == "carry" else 0
    nnx.scan(f, in_axes=(axes, 0), out_axes=out)(trainer, jnp.ones(3))
    assert int(trainer.model.count[...]) == 3
    np.testing.assert_array_equal(trainer.array, [8.0, 8.0])


def test_a_new_field_of_a_plain_object_raises():
    trainer = Trainer()
    before = dict(vars(trainer))

    def f(trainer: Any, x: Any) -> Any:
        trainer.last = x
        return x

    with pytest.raises(ValueError, match=r"structure of Trainer: it sets 'last'"):
        nnx.scan(f, in_axes=(None, 0), out_axes=0)(trainer, jnp.ones(3))
    assert vars(trainer) == before


# How it is called


def test_as_a_method():
    model = Method()
    got, xs = model.counted(2.0, jnp.arange(3.0))
    assert got is model and int(model.count[...]) == 3
    np.testing.assert_array_equal(xs, [0.0, 4.0, 8.0])
    total, _ = model.read(0.0, jnp.arange(3.0))
    assert float(total) == 6.0
    assert Method.counted.__name__ == "counted"
    assert Method.counted.__doc__ == "Documented."
    assert list(inspect.signature(Method.read).parameters) == ["self", "total", "x"]


def test_keywords_and_flags():
    def f(total: Any, flag: bool, x: Any, *, scale: Any) -> Any:
        return (total + x * scale if flag else total), x

    scanned = nnx.scan(f, in_axes=(Carry, None, 0))
    ones = jnp.ones(3)
    total, _ = scanned(0.0, x=jnp.arange(3.0), flag=True, scale=ones * 2)
    assert float(total) == 6.0
    assert float(scanned(1.0, False, ones, scale=ones)[0]) == 1.0


def test_axes_may_be_negative():
    net = nnx.Dict(w=nnx.Param(jnp.arange(6.0).reshape(2, 3)))

    def f(net: Any) -> Any:
        net.w *= 2
        return net.w * 1

    got = nnx.scan(f, in_axes=-1, out_axes=-1)(net)
    np.testing.assert_array_equal(got, 2 * np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(net.w, got)


def test_out_sharding_follows_the_rank():
    net = nnx.Dict(w=nnx.Param(jnp.ones((3, 2)), out_sharding=("layers", "a")))

    def f(net: Any) -> Any:
        assert net.w.out_sharding == ("a",)
        net.new = nnx.Param(jnp.ones(2), out_sharding=("b",))
        return nnx.Param(jnp.ones(2), out_sharding=("c",))

    names = {nnx.PARTITION_NAME: "layers"}
    got = nnx.scan(f, in_axes=0, out_axes=0, transform_metadata=names)(net)
    assert net.w.out_sharding == ("layers", "a")
    assert net.new.out_sharding == ("layers", "b")
    assert got.out_sharding == ("layers", "c")


# Levels and compositions


def test_d101_gradient_of_a_scan():
    layers, x = stack(), jnp.ones(2)

    def loss(layers: Any) -> Any:
        return nnx.scan(lambda x, m: m(x), out_axes=Carry)(x, layers).sum()

    def plain(kernels: Any, biases: Any) -> Any:
        y = x
        for kernel, bias in zip(kernels, biases, strict=True):
            y = y @ kernel + bias
        return y.sum()

    got = nnx.jit(nnx.grad(loss))(layers)
    kernel, bias = jax.grad(plain, (0, 1))(layers.kernel.value, layers.bias.value)
    np.testing.assert_allclose(got["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(got["bias"], bias, rtol=1e-5)


def test_cond_in_scan_in_jit_in_grad():
    layers, calls = stack(), nnx.Variable(jnp.zeros((), jnp.int32))

    @nnx.jit
    def loss(layers: Any, x: Any) -> Any:
        def step(x: Any, layer: Any) -> Any:
            def apply() -> Any:
                calls.value += 1
                return layer(x)

            return nnx.cond(x.sum() > 0, apply, lambda: x)

        return nnx.scan(step, out_axes=Carry)(x, layers).sum()

    x, taken = jnp.ones(2), []
    for number in range(STEPS):
        taken.append(bool(x.sum() > 0))
        x = member(layers, number)(x) if taken[-1] else x
    grads = nnx.grad(loss)(layers, jnp.ones(2))
    assert int(calls.value) == sum(taken)
    np.testing.assert_array_equal((grads["bias"] != 0).any(1), taken)


def test_nested_loops_write_captured_variables():
    inner_count, outer_count = (nnx.Variable(jnp.zeros((), int)) for _ in range(2))

    def inner(i: Any, c: Any) -> Any:
        def even() -> None:
            inner_count.value += i

        nnx.cond(c % 2 == 0, even, lambda: None)
        return c + 1

    def outer(c: Any, x: Any) -> Any:
        outer_count.value += 1
        return nnx.fori_loop(0, 3, inner, c), inner_count * 1

    carry, seen = nnx.scan(outer)(0, jnp.arange(3))
    count, wanted, c = 0, [], 0
    for _ in range(3):
        for i in range(3):
            count += i if c % 2 == 0 else 0
            c += 1
        wanted.append(count)
    np.testing.assert_array_equal(seen, wanted)
    assert int(inner_count.value) == count and int(outer_count.value) == 3
    assert int(carry) == 9


@pytest.mark.parametrize(
    "plain",
    [
        lambda f, xs: jax.lax.map(f, xs, batch_size=2),
        lambda f, xs: jax.vmap(f)(xs),
        lambda f, xs: jax.lax.scan(lambda c, x: (c, f(x)), 0, xs)[1],
        lambda f, xs: jnp.stack([jax.checkpoint(f)(x) for x in xs]),
    ],
    ids=["map", "vmap", "scan", "checkpoint"],
)
def test_google_flax_5025_plain_transforms_over_scan(plain: Any):
    layers, xs = stack(), jnp.arange(8.0).reshape(4, 2)

    def f(x: Any) -> Any:
        return nnx.scan(lambda x, m: m(x), out_axes=Carry)(x, layers)

    np.testing.assert_allclose(plain(f, xs), [f(x) for x in xs], rtol=1e-5)
    got = jax.grad(jax.checkpoint(lambda x: f(x).sum()))(xs[0])
    np.testing.assert_allclose(got, jax.grad(lambda x: f(x).sum())(xs[0]), rtol=1e-6)


def test_google_flax_4871_an_outer_loop_keeps_no_copies_of_the_parameters():
    layers, x = stack(), jnp.ones((1, 2))
    kernel, bias = layers.kernel.value, layers.bias.value

    def ours(x: Any) -> Any:
        return nnx.scan(lambda x, m: jnp.tanh(m(x)), out_axes=Carry)(x, layers)

    def plain(x: Any) -> Any:
        def step(x: Any, layer: Any) -> Any:
            return jnp.tanh(x @ layer[0] + layer[1]), None

        return jax.lax.scan(step, x, (kernel, bias))[0]

    def used(f: Any) -> int:
        def loss(x: Any) -> Any:
            return jax.lax.scan(lambda x, _: (f(x), None), x, None, length=50)[0].sum()

        analysis = jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert used(ours) <= 1.05 * used(plain) + 256


def test_the_old_buffers_are_donated():
    layers = stack()

    @nnx.jit(donate="state")
    def step(layers: Any) -> None:
        def f(x: Any, layer: Any) -> Any:
            layer.kernel *= 2
            return x

        nnx.scan(f, out_axes=Carry)(0.0, layers)

    place, wanted = layers.kernel.value.unsafe_buffer_pointer(), layers.kernel * 2
    step(layers)
    assert layers.kernel.value.unsafe_buffer_pointer() == place  # used again
    np.testing.assert_array_equal(layers.kernel, wanted)


# Traces


def test_google_flax_5512_equal_calls_trace_once():
    traces: list[int] = []
    total = 0

    def body(x: Any, layer: Any) -> Any:
        nonlocal total
        total += 1
        traces.append(1)
        return layer(x)

    scanned = nnx.scan(body, out_axes=Carry)
    for _ in range(3):
        layers = stack()
        scanned(jnp.ones(2), layers)
        layers.kernel *= 2
        nnx.scan(body, out_axes=Carry)(jnp.ones(2), layers)
    assert len(traces) == total == 1


def test_fresh_but_equal_functions_trace_once():
    traces: list[int] = []

    def call(start: float) -> Any:
        def body(total: Any, x: Any) -> Any:
            traces.append(1)
            return total + x, total

        return nnx.scan(body)(start, jnp.arange(3.0))[0]

    assert [float(call(start)) for start in (0.0, 1.0, 2.0)] == [3.0, 4.0, 5.0]
    assert len(traces) == 1


def test_a_broadcast_stream_that_is_drawn_from() -> None:
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    each = nnx.scan(lambda d, x: d(x), in_axes=(None, 0), out_axes=0)
    with pytest.raises(ValueError, match="keys of its own, with split_rngs=True"):
        each(dropout, jnp.ones((3, 2)))
