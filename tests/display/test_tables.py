"""`nnx.tabulate`: what it counts, that it computes and changes nothing, its forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = [nnx.Linear(8, 8, rngs=rngs) for _ in range(2)]
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x: Any, scale: Any = 1.0) -> Any:
        x = self.dropout(nnx.relu(self.norm(self.conv(x)))).mean((1, 2))
        for block in self.blocks:
            x = block(block(x))
        return self.head(x) * scale

    def features(self, x: Any) -> Any:
        return self.conv(x)


@pytest.fixture
def net() -> Net:
    return Net(nnx.Rngs(0))


X = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)


def test_rows_in_the_order_of_calls(net):
    table = nnx.tabulate(net, X)
    assert [row.path for row in table.rows] == [
        (),
        ("conv",),
        ("norm",),
        ("dropout",),
        ("blocks", 0),
        ("blocks", 1),
        ("head",),
    ]
    rows = {row.path: row for row in table.rows}
    assert rows["conv",].inputs == "float32[4,8,8,1]"
    assert rows["head",].outputs == "float32[4,10]"
    assert rows["blocks", 0].calls == 2 and "Linear x2" in table
    assert rows["norm",].counts == {"BatchStat": 16, "Param": 16}
    assert rows[()].counts["Param"] == nnx.count_parameters(net)
    assert rows[()].share == 1 and rows["head",].bytes == 90 * 4
    np.testing.assert_allclose(rows["head",].share, 90 / nnx.count_parameters(net))


def test_nothing_is_changed(net):
    state = jax.tree.map(lambda x: x, nnx.state(net))
    graphdef = nnx.graphdef(net)
    nnx.tabulate(net, X, compute_flops=True, compute_vjp_flops=True)
    with pytest.raises(TypeError):
        nnx.tabulate(net, X, "too", "many")
    assert nnx.graphdef(net) == graphdef and not nnx.diff(state, nnx.state(net))
    assert nnx.Linear.__call__.__name__ == "__call__"
    net(jnp.ones((4, 8, 8, 1)))


def test_operations(net):
    rows = {
        row.path: row
        for row in nnx.tabulate(net, X, compute_flops=True, compute_vjp_flops=True).rows
    }
    head = rows["head",]
    assert 2 * 4 * 8 * 10 <= head.flops <= 2 * 4 * 8 * 10 + 4 * 10
    assert 2.5 * head.flops < head.vjp_flops < 3.5 * head.flops
    assert rows[()].flops > rows["conv",].flops


def test_inputs_of_all_forms(net):
    real = nnx.tabulate(net, jnp.ones(X.shape), scale=jnp.ones(()))
    assert real.rows[0].inputs == "float32[4,8,8,1], scale=float32[]"
    assert nnx.tabulate(net, X, method="features").rows[2].inputs is None
    assert nnx.tabulate(net).rows[0].inputs is None
    abstract = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    assert str(nnx.tabulate(abstract, X)) == str(nnx.tabulate(net, X))


def test_what_is_shown(net):
    assert [row.path for row in nnx.tabulate(net, X, depth=0).rows] == [()]
    assert len(nnx.tabulate(net, X, depth=1).rows) == 7
    assert len(nnx.tabulate(net, X, only=nnx.Linear).rows) == 3
    with pytest.raises(ValueError, match="depth must not be negative"):
        nnx.tabulate(net, depth=-1)
    shared = nnx.Dict(a=net.head, b=net.head)
    assert [row.path for row in nnx.tabulate(shared).rows] == [(), ("a",)]


def test_forms(net):
    table = nnx.tabulate(net, X)
    lines = table.splitlines()
    assert lines[0].split() == (
        "path type inputs outputs Param BatchStat RngState bytes share".split()
    )
    assert len(lines) == 2 + len(table.rows)
    assert table.to_dict()["blocks[0]"]["counts"] == {"Param": 72}
    html = table._repr_html_()
    assert html.count("<tr>") == 1 + len(table.rows) and "blocks[0]" in html


def test_under_other_interceptors(net):
    with nnx.intercept(lambda next, args, kwargs, call: next(*args, **kwargs)):
        assert len(nnx.tabulate(net, X).rows) == 7


def test_a_stack_and_a_lazy_model():
    stack = nnx.Stack(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 4, rngs=nnx.Rngs(0))
    table = nnx.tabulate(stack, jnp.ones((2, 3)))
    assert table.rows[0].counts == {"Param": 4 * 12}
    lazy = nnx.Sequential(nnx.Linear(None, 3, rngs=nnx.Rngs(0)))
    nnx.tabulate(lazy)
    with pytest.raises(nnx.UninferredError, match="lazy_init"):
        nnx.tabulate(lazy, jnp.ones((2, 3)))


def test_tabulate_names_keyword_arguments():
    class Net(nnx.Module):
        def __call__(self, x, is_causal=False, mask=None):
            return x if is_causal else -x

    inputs = nnx.tabulate(Net(), jnp.ones(2), is_causal=True, mask=jnp.ones(3)).rows[0]
    assert inputs.inputs == "float32[2], is_causal=True, mask=float32[3]"


def test_frozen_numbers_are_told(net):
    assert "frozen" not in nnx.tabulate(net)
    nnx.freeze(net.conv)
    rows = {row.path: row for row in nnx.tabulate(net).rows}
    assert rows["conv",].counts == {"Param": 80, "frozen": 80}
    assert rows[()].counts["frozen"] == 80 and "frozen" in nnx.tabulate(net)


def test_operations_of_integer_inputs_and_objects():
    class Lookup(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(10, 4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5)

        def __call__(self, words, rngs, scale=1.0, flip=False):
            x = self.dropout(self.embed(words), rngs=rngs) * scale
            return -x if flip else x

    words = jax.ShapeDtypeStruct((3,), jnp.int32)
    inputs = {"scale": jnp.ones(()), "flip": True}
    model, rngs = Lookup(nnx.Rngs(0)), nnx.Rngs(1)
    row = nnx.tabulate(
        model, words, rngs, **inputs, compute_flops=True, compute_vjp_flops=True
    ).rows[0]
    assert row.inputs == "int32[3], Rngs, flip=True, scale=float32[]"
    assert 0 < row.flops < row.vjp_flops and int(rngs.default.count[...]) == 0


def test_modules_that_are_not_called_stand_below_their_owner(net):
    net.outer = nnx.Dict(b=nnx.Linear(2, 2, rngs=nnx.Rngs(0)), a=nnx.Dropout(0.1))
    paths = [row.path for row in nnx.tabulate(net).rows]
    assert paths[0] == () and paths[-2:] == [("outer", "a"), ("outer", "b")]
    assert paths[1:3] == [("blocks", 0), ("blocks", 1)]
    with pytest.raises(ValueError, match="no Module in a function"):
        nnx.tabulate(lambda x: x, jnp.ones(2))


def test_plain_numbers_count():
    table = nnx.tabulate(nnx.Dict(a=nnx.Param(1.0), b=nnx.Param(jnp.ones(3))))
    assert table.rows[0].counts == {"Param": 4}
    assert nnx.count_parameters(nnx.Dict(a=nnx.Param(1.0))) == 1


def test_a_cell_is_shown_by_its_step_and_not_by_its_first_carry():
    rnn = nnx.RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)))
    rows = {row.path: row for row in nnx.tabulate(rnn, jnp.ones((2, 5, 3))).rows}
    assert rows["cell",].inputs.endswith("float32[2,3]") and rows["cell",].calls == 2


def test_inputs_that_are_no_arrays():
    class Net(nnx.Module):
        def __call__(self, x, mask, f):
            return f(x)

    row = nnx.tabulate(Net(), jnp.ones(2), None, jnp.tanh, compute_flops=True).rows[0]
    assert row.inputs == "float32[2], None, tanh"
    with pytest.raises(TypeError, match="a list has no method '__call__' to call"):
        nnx.tabulate([Net()], jnp.ones(2))
