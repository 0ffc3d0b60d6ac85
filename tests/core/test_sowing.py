"""`Module.sow` and `Module.perturb`, without any transform."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

from ..properties.comparison import Snapshot
from ..properties.programs import reachable


class Net(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.array(3.0))

    def __call__(self, x: Any) -> Any:
        x = self.perturb("inner", x**2)
        self.sow(nnx.Intermediate, "inner_value", x)
        return self.scale * x


def test_each_call_appends():
    net = Net()
    net(jnp.array(2.0))
    net(jnp.array(3.0))

    assert type(net.inner_value) is nnx.Intermediate
    np.testing.assert_array_equal(net.inner_value.value, [4.0, 9.0])
    popped = nnx.pop(net, nnx.Intermediate)
    assert set(popped) == {"inner", "inner_value"}
    assert not hasattr(net, "inner_value")


def test_reduce_and_init():
    net = nnx.Module()
    for x in (1.0, 5.0, 3.0):
        assert net.sow(nnx.Cache, "most", x, max, lambda: -jnp.inf)

    assert type(net.most) is nnx.Cache and net.most.value == 5.0


def test_kinds_by_name():
    net = nnx.Module()
    net.sow("batch_stats", "stat", jnp.ones(2))
    net.sow("sown_here", "other", jnp.ones(2))

    assert type(net.stat) is nnx.BatchStat
    assert type(net.other) is nnx.variable_type_from_name("sown_here")


def test_a_sown_variable_is_its_value():
    net = nnx.Module()
    v = nnx.Param(jnp.ones(2))
    net.sow(nnx.Intermediate, "seen", {"v": v})
    v[...] = 0

    np.testing.assert_array_equal(net.seen.value[0]["v"], [1.0, 1.0])


@pytest.mark.parametrize("held", [nnx.Param(jnp.ones(2)), "text", 0])
def test_a_name_that_is_taken(held: Any):
    net = nnx.Module()
    net.seen = held
    before = Snapshot(reachable([net]))

    with pytest.raises(ValueError, match=r"sow cannot keep its Intermediate in 'seen'"):
        net.sow(nnx.Intermediate, "seen", 1.0)
    with pytest.raises(ValueError, match=r"perturb .* which holds a .*another name"):
        net.perturb("seen", jnp.ones(2))
    before.check()


def test_gradients_of_what_is_inside():
    net = Net()
    net(jnp.array(2.0))
    both = nnx.DiffState(0, nnx.Any(nnx.Param, nnx.Perturbation))
    for wrap in (lambda f: f, nnx.jit):
        grads = wrap(nnx.grad(lambda net, x: net(x), argnums=both))(net, 2.0)
        assert grads.inner.value == 3.0 and grads.scale.value == 4.0


def test_perturbed_inputs_keep_their_shape():
    net = Net()
    net(jnp.ones(2))

    with pytest.raises(ValueError, match=r"Net\.inner.*shape \(3,\).*made for \(2,\)"):
        net(jnp.ones(3))


def test_sown_in_a_compiled_step_and_in_slices():
    """google/flax#5051 and #5130: sow breaks in scan, and on the fast path."""
    net = Net()
    nnx.jit(lambda net, x: net(x))(net, jnp.array(2.0))
    np.testing.assert_array_equal(nnx.pop(net, nnx.Intermediate).inner_value[0], 4.0)

    nets = nnx.stack([Net() for _ in range(3)])
    xs = jnp.arange(3.0)
    nnx.scan(lambda net, x: net(x), in_axes=(0, 0), out_axes=0)(nets, xs)
    np.testing.assert_array_equal(nets.inner_value.value[0], xs**2)
    nnx.pop(nets, nnx.Intermediate)
    nnx.vmap(lambda net, x: net(x))(nets, xs)
    np.testing.assert_array_equal(nets.inner_value.value[0], xs**2)

    layers = nnx.Stack(lambda rngs: Net(), 3, rngs=nnx.Rngs(0))
    layers(jnp.array(1.0))
    seen = nnx.state(layers, nnx.Intermediate)
    assert [x.shape for x in jax.tree.leaves(seen)] == [(3,), (3,)]
