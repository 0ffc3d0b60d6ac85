"""`nnx.pmap` and `nnx.shard_map`: item D104.

The tests use all devices that there are. The last one runs them all again, in a
process that has two.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nnxlite as nnx

from .cells import Trainer, snapshot

P = PartitionSpec
COUNT = jax.device_count()
MESHES = [
    jax.make_mesh((COUNT,), ("d",), axis_types=(kind,))
    for kind in (AxisType.Auto, AxisType.Explicit)
]
EACH_MESH = pytest.mark.parametrize("mesh", MESHES, ids=["auto", "explicit"])
LEVELS = pytest.mark.parametrize("wrap", [lambda f: f, nnx.jit], ids=["top", "jit"])
X = jnp.arange(8.0).reshape(4, 2)


def linear() -> Any:
    return nnx.Linear(2, 4, rngs=nnx.Rngs(0))


# shard_map


@LEVELS
@EACH_MESH
def test_d104_shard_map_is_the_plain_call(mesh: Any, wrap: Any):
    model, wanted, count = linear(), linear(), nnx.Variable(jnp.zeros((), jnp.int32))
    total = nnx.Variable(jnp.zeros(()))

    def f(model: Any, x: Any) -> Any:
        assert x.shape == (4 // COUNT, 2)
        count.value += 1
        total.value = jax.lax.psum(x.sum(), "d")
        model.bias += 1
        model.new = nnx.Param(jnp.ones(2))
        return model(x)

    mapped = nnx.shard_map(f, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"))
    got = wrap(mapped)(model, X)
    wanted.bias += 1
    np.testing.assert_allclose(got, wanted(X), rtol=1e-6)
    np.testing.assert_array_equal(model.bias, wanted.bias)
    assert int(count.value) == 1 and float(total.value) == float(X.sum())
    np.testing.assert_array_equal(model.new, [1.0, 1.0])


@LEVELS
@EACH_MESH
def test_shard_map_by_filter(mesh: Any, wrap: Any):
    rule = nnx.StateSharding({nnx.PathContains("kernel"): P(None, "d"), ...: P("d")})

    def f(model: Any, x: Any) -> Any:
        assert model.kernel.shape == (2, 4 // COUNT)
        return model(x)

    mapped = nnx.shard_map(f, mesh=mesh, in_specs=(rule, P()), out_specs=P(None, "d"))
    np.testing.assert_allclose(wrap(mapped)(linear(), X), linear()(X), rtol=1e-6)


@EACH_MESH
def test_shard_map_writes_and_makes_sharded_variables(mesh: Any):
    variable = nnx.Variable(jnp.arange(4.0))

    def f(variable: Any, *, scale: Any) -> Any:
        variable.value = variable * scale
        return variable, nnx.Param(variable * 1, out_sharding=("d",))

    mapped = nnx.shard_map(f, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    with jax.set_mesh(mesh):
        got, made = mapped(variable, scale=2.0)
    assert got is variable and made.out_sharding == ("d",)
    for each in (variable, made):
        np.testing.assert_array_equal(each, [0.0, 2.0, 4.0, 6.0])
        assert each.value.sharding.is_equivalent_to(NamedSharding(mesh, P("d")), 1)


@LEVELS
@EACH_MESH
@pytest.mark.parametrize("way", ["argument", "captured"])
def test_shard_map_what_is_replicated_must_stay_so(way: str, mesh: Any, wrap: Any):
    model = linear()
    before = snapshot(model)

    def f(model: Any, x: Any) -> Any:
        model.bias.value = model.bias + x.sum()
        return model(x)

    def caught(model: Any) -> Any:
        specs = {"mesh": mesh, "out_specs": P("d")}
        with pytest.raises(
            ValueError, match=r"Param 'Linear\.bias' differs from slice .*shard_map"
        ):
            if way == "argument":
                nnx.shard_map(f, in_specs=(P(), P("d")), **specs)(model, X)
            else:
                nnx.shard_map(lambda x: f(model, x), in_specs=P("d"), **specs)(X)
        return model.bias * 1

    wrap(caught)(model)
    before.check()


def test_shard_map_two_specs_for_one_variable_raise():
    model = linear()
    mapped = nnx.shard_map(
        lambda a, b: a(X), mesh=MESHES[0], in_specs=(P(), P("d")), out_specs=P()
    )
    with pytest.raises(
        ValueError, match=r"aliasing.*in_specs.*args\[0\]\.bias.*args\[1\]\.bias.*give"
    ):
        mapped(model, model)


def test_shard_map_of_a_plain_object():
    specs = {"mesh": MESHES[0], "out_specs": P("d")}

    def f(trainer: Any, x: Any) -> Any:
        trainer.model.bias += 1
        trainer.note = "done"
        return trainer.model(x)

    trainer = Trainer(linear())
    nnx.shard_map(f, in_specs=(P(), P("d")), **specs)(trainer, X)
    np.testing.assert_array_equal(trainer.model.bias, np.ones(4))
    assert trainer.note == "done"
    with pytest.raises(ValueError, match=r"args\[0\] of nnx\.shard_map is a Trainer"):
        nnx.shard_map(f, in_specs=(P("d"), P("d")), **specs)(trainer, X)


@EACH_MESH
def test_shard_map_gradients(mesh: Any):
    def loss(model: Any, x: Any) -> Any:
        return (model(x) ** 2).mean()

    def sharded(model: Any, x: Any) -> Any:
        return nnx.shard_map(
            lambda m, x: jax.lax.pmean(loss(m, x), "d"),
            mesh=mesh,
            in_specs=(P(), P("d")),
            out_specs=P(),
        )(model, x)

    with jax.set_mesh(mesh):
        got = nnx.grad(sharded)(linear(), X)
    wanted = nnx.grad(loss)(linear(), X)
    np.testing.assert_allclose(got["kernel"], wanted["kernel"], rtol=1e-5)


def test_shard_map_equal_calls_trace_once():
    traces: list[int] = []

    def f(model: Any, x: Any) -> Any:
        traces.append(1)
        return model(x)

    specs = {"mesh": MESHES[0], "in_specs": (P(), P("d")), "out_specs": P("d")}
    for _ in range(3):
        nnx.shard_map(f, **specs)(linear(), X)
    assert len(traces) == 1


# pmap


def models() -> Any:
    make = nnx.vmap(
        lambda rngs: nnx.Linear(2, 4, rngs=rngs),
        in_axes=None,
        axis_size=COUNT,
        split_rngs=True,
    )
    return make(nnx.Rngs(0))


@LEVELS
def test_d104_pmap_is_vmap(wrap: Any):
    ours, wanted = models(), models()
    counts = [nnx.Variable(jnp.zeros((), jnp.int32)) for _ in range(2)]
    x = jnp.arange(2.0 * COUNT).reshape(COUNT, 2)

    def body(count: Any) -> Any:
        def f(model: Any, x: Any, scale: Any) -> Any:
            count.value += 1
            model.bias += jax.lax.psum(x.sum(), "i")
            model.new = nnx.Param(x * 2)
            return model(x) * scale

        return f

    options = {"axis_name": "i", "in_axes": (0, 0, None)}
    got = wrap(nnx.pmap(body(counts[0]), **options))(ours, x, 2.0)
    right = nnx.vmap(body(counts[1]), **options)(wanted, x, 2.0)
    np.testing.assert_allclose(got, right, rtol=1e-6)
    np.testing.assert_array_equal(ours.bias, wanted.bias)
    np.testing.assert_array_equal(ours.new, wanted.new)
    assert int(counts[0].value) == int(counts[1].value) == 1


def test_d104_pmap_broadcasts_the_model():
    model, x = linear(), jnp.ones((COUNT, 3, 2))
    got = nnx.pmap(lambda m, x: m(x), in_axes=(None, 0))(model, x)
    np.testing.assert_allclose(got, model(x), rtol=1e-6)


@LEVELS
@pytest.mark.parametrize("way", ["argument", "captured"])
def test_pmap_lane_dependent_writes_raise(way: str, wrap: Any):
    model = linear()
    before = snapshot(model)

    def f(model: Any, x: Any) -> Any:
        model.bias.value = model.bias + x
        return x

    def caught(model: Any, x: Any) -> Any:
        with pytest.raises(ValueError, match=r"'Linear\.bias' differs .* nnx\.pmap"):
            if way == "argument":
                nnx.pmap(f, in_axes=(None, 0))(model, x)
            else:
                nnx.pmap(lambda x: f(model, x))(x)
        return model.bias * 1

    wrap(caught)(model, jnp.arange(float(COUNT)))
    before.check()


def test_pmap_static_arguments_and_metadata():
    net = nnx.Dict(w=nnx.Param(jnp.ones((COUNT, 2)), out_sharding=("layers", "a")))

    def f(net: Any, size: int, name: str) -> Any:
        assert net.w.out_sharding == ("a",) and name == "n"
        return nnx.Param(jnp.ones(size), out_sharding=("b",))

    mapped = nnx.pmap(
        f,
        in_axes=(0, None, None),
        static_broadcasted_argnums=(1, 2),
        transform_metadata={nnx.PARTITION_NAME: "layers"},
    )
    got = mapped(net, 3, "n")
    assert got.shape == (COUNT, 3) and got.out_sharding == ("layers", "b")
    assert net.w.out_sharding == ("layers", "a")


def test_pmap_donates():
    variable = nnx.Variable(jnp.arange(float(COUNT)))

    def f(variable: Any) -> None:
        variable.value = variable * 2

    step = nnx.pmap(f, donate_argnums=0)
    step(variable)
    before = variable.value
    step(variable)
    np.testing.assert_array_equal(variable, 4 * jnp.arange(float(COUNT)))
    assert before.is_deleted()


@pytest.mark.parametrize(
    ("options", "args", "match"),
    [
        ({"in_axes": None}, (1.0,), r"nnx\.pmap of 'f' maps none of its arguments"),
        ({"in_axes": (0, 0)}, (1.0,), r"2 entries.*1 positional"),
        ({}, (1.0,), r"args\[0\] over axis 0, but its shape is \(\)"),
    ],
)
def test_pmap_axes_that_do_not_fit(options: Any, args: Any, match: str):
    def f(x: Any) -> Any:
        return x

    with pytest.raises(ValueError, match=match):
        nnx.pmap(f, **options)(*args)


def test_all_of_this_with_two_devices():
    if COUNT > 1:
        return
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n0",
            "-p",
            "no:cacheprovider",
            __file__,
        ],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout and "skipped" not in run.stdout
