"""`nnx.eval_shape`: items D105, D106."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import nnxlite as nnx

from ..properties.comparison import Snapshot
from ..properties.programs import reachable


class Net(nnx.Module):
    """A model with sharing, statistics, random state and a bare array."""

    def __init__(self, rngs: nnx.Rngs, width: int = 4):
        self.linear = nnx.Linear(2, width, rngs=rngs)
        self.tied = nnx.Linear(2, width, rngs=rngs)
        self.tied.kernel = self.linear.kernel
        self.layers = [nnx.BatchNorm(width, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)]
        self.again = self.layers[0]
        self.array = jnp.ones((width,), jnp.bfloat16)
        self.width = width
        self.me = self

    def __call__(self, x: Any) -> Any:
        x = self.linear(x)
        for layer in self.layers:
            x = layer(x)
        return x + self.array


def snapshot(*roots: Any) -> Snapshot:
    return Snapshot(reachable(roots))


def abstract(like: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(like.shape, like.dtype)


CONSTRUCTORS: dict[str, Callable[[], Any]] = {
    "lambda": lambda: nnx.eval_shape(lambda: Net(nnx.Rngs(0))),
    "class": lambda: nnx.eval_shape(Net, nnx.Rngs(0)),
    "keyword": lambda: nnx.eval_shape(lambda *, rngs: Net(rngs), rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_d105_a_constructor_gives_an_abstract_module(name: str):
    model = CONSTRUCTORS[name]()
    real = Net(nnx.Rngs(0))
    assert type(model) is Net and model.width == 4
    leaves = nnx.to_flat_state(nnx.state(model))
    wanted = nnx.to_flat_state(nnx.state(real))
    assert leaves.paths == wanted.paths
    for leaf, like in zip(
        jax.tree.leaves(leaves), jax.tree.leaves(wanted), strict=True
    ):
        assert leaf == abstract(like)
    assert type(model.linear.kernel) is nnx.Param
    assert type(model.array) is jax.ShapeDtypeStruct


def test_d105_nothing_is_allocated():
    live = len(jax.live_arrays())
    model = nnx.eval_shape(lambda: nnx.Param(jnp.zeros((1 << 20, 1 << 20, 1 << 20))))
    assert model.shape == (1 << 20,) * 3
    assert len(jax.live_arrays()) == live


def test_d105_sharing_and_cycles_are_kept():
    model = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    assert model.tied.kernel is model.linear.kernel
    assert model.again is model.layers[0]
    assert model.me is model
    assert nnx.graphdef(model) == nnx.graphdef(Net(nnx.Rngs(0)))


def test_d105_merge_with_real_arrays():
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))
    real = Net(nnx.Rngs(1))
    filled = nnx.merge(graphdef, nnx.state(real))
    assert filled is not real
    filled.eval()
    real.eval()
    x = jnp.ones((3, 2))
    np.testing.assert_array_equal(filled(x), real(x))
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), nnx.state(real, nnx.Param)
    )
    assert jax.tree.structure(zeros) == jax.tree.structure(
        nnx.filter_state(state, nnx.Param)
    )


def test_d105_update_with_real_arrays():
    model = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    real = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    nnx.update(model, nnx.state(real))
    np.testing.assert_array_equal(model(jnp.ones(2)), real(jnp.ones(2)))
    wrong = nnx.eval_shape(lambda: nnx.Linear(2, 4, rngs=nnx.Rngs(0)))
    before = snapshot(wrong)
    with pytest.raises(
        ValueError, match=r"kernel wants float32\[2, 4\], got float32\[2, 3\]"
    ):
        nnx.update(wrong, nnx.state(real))
    before.check()


def test_d105_an_abstract_module_is_usable():
    model = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    model.flag = 1
    model.linear.kernel.set_metadata(note=1)
    assert nnx.clone(model).linear.kernel.note == 1
    assert model.linear.kernel.dtype == jnp.float32
    y = nnx.eval_shape(
        lambda m, x: m(x), model, jax.ShapeDtypeStruct((3, 2), "float32")
    )
    assert y == jax.ShapeDtypeStruct((3, 4), "float32")


def test_d105_inside_jit():
    @nnx.jit
    def shapes(m: Any) -> Any:
        model = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
        assert model.tied.kernel is model.linear.kernel
        m.count.value = m.count + model.linear.kernel.value.size
        return nnx.eval_shape(lambda x: m.count * x, jnp.ones(3)).shape

    holder = nnx.Dict(count=nnx.Variable(jnp.zeros(())))
    assert shapes(holder) == (3,)
    assert float(holder.count[...]) == 8.0


def test_d105_an_rngs_argument_is_not_advanced():
    rngs = nnx.Rngs(0)
    nnx.eval_shape(Net, rngs)
    assert int(rngs.default.count[...]) == 0


SPECS = {
    "array": lambda: jnp.ones((3, 2)),
    "numpy": lambda: np.ones((3, 2), np.float32),
    "abstract": lambda: jax.ShapeDtypeStruct((3, 2), jnp.float32),
}


@pytest.mark.parametrize("how", ["passed", "captured", "called", "method", "keyword"])
@pytest.mark.parametrize("spec", SPECS)
def test_d106_the_model_is_left_unchanged(spec: str, how: str):
    model, x = Net(nnx.Rngs(0)), SPECS[spec]()
    before = snapshot(model)
    y = {
        "passed": lambda: nnx.eval_shape(lambda m, x: m(x), model, x),
        "captured": lambda: nnx.eval_shape(lambda x: model(x), x),
        "called": lambda: nnx.eval_shape(model, x),
        "method": lambda: nnx.eval_shape(model.__call__, x),
        "keyword": lambda: nnx.eval_shape(lambda *, m, x: m(x), m=model, x=x),
    }[how]()
    before.check()
    assert y == jax.ShapeDtypeStruct((3, 4), jnp.float32)
    model(jnp.ones((3, 2)))  # usable


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "new", nnx.Param(m.linear.kernel * 2)),
        lambda m: setattr(m, "width", 5),
        lambda m: delattr(m, "array"),
        lambda m: setattr(m, "array", m.array * 2),
        lambda m: m.layers.append(m.linear),
        lambda m: m.linear.kernel.set_metadata(note=1),
        lambda m: m.linear.kernel.set_value(m.linear.kernel * 2),
        lambda m: setattr(m.linear, "kernel", nnx.Param(jnp.ones(1))),
    ],
    ids="new static deleted array list metadata value rebound".split(),
)
@pytest.mark.parametrize("how", ["passed", "captured"])
def test_d106_no_change_gets_out(how: str, change: Any):
    model = Net(nnx.Rngs(0))
    before = snapshot(model)
    if how == "passed":
        nnx.eval_shape(change, model)
    else:
        nnx.eval_shape(lambda: change(model))
    before.check()


def test_d106_an_exception_changes_nothing():
    model = Net(nnx.Rngs(0))
    before = snapshot(model)

    def failing(m: Any) -> None:
        m.linear.kernel.value = m.linear.kernel * 2
        m.new = 1
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        nnx.eval_shape(failing, model)
    before.check()


def test_d106_returned_objects_are_new():
    """An abstract copy: the real model must not become abstract."""
    model = Net(nnx.Rngs(0))
    before = snapshot(model)
    other, kernel = nnx.eval_shape(lambda m: (m, m.linear.kernel), model)
    before.check()
    assert other is not model and other.linear.kernel is kernel
    assert kernel.value == jax.ShapeDtypeStruct((2, 4), jnp.float32)
    assert other.tied.kernel is kernel and other.me is other
    assert nnx.graphdef(other) == nnx.graphdef(model)


def test_d106_what_the_function_did_is_in_the_returned_copy():
    def grow(m: Any) -> Any:
        m.extra = nnx.Param(m.linear.kernel.value.T)
        m.width = 9
        return m

    model = Net(nnx.Rngs(0))
    other = nnx.eval_shape(grow, model)
    assert other.extra.shape == (4, 2) and other.width == 9
    assert not hasattr(model, "extra") and model.width == 4


def test_results_of_every_kind():
    def f(x: Any) -> Any:
        return {"a": (x * 2, [x.sum()]), "s": "text", "n": None, "f": nnx.relu, "i": 3}

    shapes = nnx.eval_shape(f, jnp.ones((2, 3)))
    assert shapes["a"][0] == jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert shapes["a"][1][0] == jax.ShapeDtypeStruct((), jnp.float32)
    assert (shapes["s"], shapes["n"], shapes["f"]) == ("text", None, nnx.relu)


def test_static_arguments_need_no_declaration():
    y = nnx.eval_shape(
        lambda mode, f, x: f(x) if mode == "train" else x,
        "train",
        lambda x: x[0],
        jnp.ones((2, 3)),
    )
    assert y.shape == (3,)


def test_states_and_graphdefs():
    graphdef, state = nnx.eval_shape(lambda: nnx.split(Net(nnx.Rngs(0))))
    assert type(state) is nnx.State
    assert state["linear"]["kernel"].value == jax.ShapeDtypeStruct((2, 4), jnp.float32)
    assert graphdef == nnx.graphdef(Net(nnx.Rngs(0)))


def test_optimizer():
    import optax

    model, optimizer = nnx.eval_shape(
        lambda: (lambda m: (m, nnx.Optimizer(m, optax.adam(0.1))))(
            nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        )
    )
    assert optimizer.model is model
    assert optimizer.opt_state[0].mu["kernel"].shape == (2, 3)


def test_out_sharding_becomes_a_sharding():
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    init = nnx.with_metadata(nnx.initializers.ones, out_sharding=("d", None))
    with jax.set_mesh(mesh):
        model = nnx.eval_shape(
            lambda: nnx.Linear(2, 3, kernel_init=init, rngs=nnx.Rngs(0))
        )
    assert model.kernel.sharding.spec == PartitionSpec("d", None)
    assert model.kernel.sharding.mesh.shape == mesh.shape
    assert model.bias.sharding is None


def test_real_sharding_of_an_argument_is_kept():
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    sharding = NamedSharding(mesh, PartitionSpec("d"))
    variable = nnx.Param(jax.device_put(jnp.ones(2), sharding))
    other = nnx.eval_shape(lambda v: v, variable)
    assert other.value.shape == (2,)
