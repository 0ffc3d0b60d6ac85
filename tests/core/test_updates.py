"""`nnx.update`: what does not fit is told, and nothing is written then."""

import jax.numpy as jnp
import pytest

import nnxlite as nnx


class Net(nnx.Module):
    def __init__(self):
        self.bias = nnx.Param(jnp.zeros(3))
        self.items = [1]
        self.pair = (nnx.Param(jnp.zeros(2)),)
        self.array = jnp.zeros(2)
        self.mode = "a"


@pytest.mark.parametrize(
    ("state", "strict", "text"),
    [
        ({"q": {nnx.Param(1.0)}}, False, "a set would hide its Param"),
        ({"bias": jnp.ones(3), "mode": {nnx.Param(1.0)}}, True, "would hide its Param"),
        ({"items": {7: 2}}, False, r"items\[7\] is unknown \(there is no data\)"),
        ({"pair": {5: 1}}, False, r"pair\[5\] is unknown \(there are 0\)"),
        ({"new": 1}, True, r"new is unknown \(.*; strict=False adds it\)"),
        ({"array": {"x": 1}}, True, "array is a float32.2., but the State has no leaf"),
        ({"pair": 3}, True, "pair is a tuple, but the State has a leaf there, a int"),
        ({"array": jnp.ones(3)}, True, r"array wants float32\[2\]"),
    ],
)
def test_what_does_not_fit_leaves_all_as_it_was(state, strict, text):
    net = Net()
    with pytest.raises((ValueError, TypeError), match=text):
        nnx.update(net, {"bias": jnp.ones(3), **state}, strict=strict)
    assert net.bias.sum() == 0


def test_lists_grow_at_their_end():
    net = Net()
    nnx.update(net, {"items": {1: 2, 2: [3]}}, strict=False)
    assert net.items[1] == 2 and net.items[2][0] == 3


def test_several_states_grow_one_list():
    net = Net()
    nnx.update(net, {"items": {1: 2}}, {"items": {2: 3}}, strict=False)
    assert list(net.items) == [1, 2, 3]
