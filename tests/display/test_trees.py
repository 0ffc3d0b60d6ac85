"""`nnx.display` and what treescope shows: sharing, cycles, kinds, statistics."""

import jax
import jax.numpy as jnp
import pytest
import treescope

import nnxlite as nnx


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.a = nnx.Linear(2, 3, rngs=rngs)
        self.tied = self.a
        self.kernel = self.a.kernel
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.items = [nnx.Dropout(0.5, rngs=rngs), nnx.relu]
        self.me = self


@pytest.fixture
def net() -> Net:
    return Net(nnx.Rngs(0))


def test_text_outside_of_notebooks(net, capsys):
    nnx.display(net, net.a.bias)
    nnx.autovisualize()
    assert capsys.readouterr().out == f"{net}\n{net.a.bias}\n"


def test_what_is_shared_is_shown_once(net):
    text = treescope.render_to_text(net)
    assert "tied=Linear(the same as a)" in text
    assert "kernel=Param(the same as a.kernel)" in text
    assert "me=Net(the same as the root)" in text
    assert "0x" not in text
    assert treescope.render_to_text(net) == text  # nothing is remembered


def test_kinds_statistics_and_frozen_parts(net):
    nnx.freeze(net.a)
    net.a.bias._write(jnp.array([1.0, jnp.nan, 3.0]))
    text = treescope.render_to_text(net)
    assert "frozen, float32[3], 2 ± 1, 1 to 3, 1 NaN or inf" in text
    assert "rngs=RngStream(2 (12 B))" in text and "relu" in text  # folded
    text = "".join(map(treescope.render_to_text, (net.norm, net.items[0])))
    assert "BatchStat(" in text and "RngCount(" in text
    html = treescope.render_to_html(net)
    assert "<script" in html or "<div" in html


def test_states_and_variables_alone(net):
    assert "Param(" in treescope.render_to_text(nnx.state(net.a))
    assert treescope.render_to_text(nnx.Param(jnp.ones(2), note="x")).count("note") == 1


def test_models_without_values():
    abstract = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert "float32[2,3]" in treescope.render_to_text(abstract)
    lazy = nnx.Linear(None, 3, rngs=nnx.Rngs(0))
    assert "Uninferred" in treescope.render_to_text(lazy)
    texts = []
    jax.jit(lambda x: texts.append(treescope.render_to_text(nnx.Param(x))))(jnp.ones(2))
    assert "float32[2]" in texts[0]
