"""`nnx.plot`: what is drawn, from what, and what cannot be drawn."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

Annotation = pytest.importorskip("matplotlib.text").Annotation


@pytest.fixture
def model() -> nnx.Module:
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(4, 20, rngs=rngs), nnx.BatchNorm(20, rngs=rngs))


def curves(axis):
    return {line.get_label(): line.get_data() for line in axis.lines}


def test_history_of_named_curves():
    figure = nnx.plot.history(
        {"train_loss": [3.0, 2.0], "val_loss": jnp.array([4.0, 3.0]), "rate": [1, 2]},
        x=[10, 20],
        x_label="epoch",
        log=True,
    )
    loss, rate = figure.axes
    assert (loss.get_title(), rate.get_title()) == ("loss", "rate")
    assert loss.get_xlabel() == "epoch" and loss.get_yscale() == "log"
    drawn = curves(loss)
    assert set(drawn) == {"train", "val"}
    np.testing.assert_array_equal(drawn["val"], [[10, 20], [4, 3]])


def test_history_of_steps_with_gaps():
    loss = nnx.Variable(jnp.array(1.0))
    figure = nnx.plot.history([{"loss": loss}, {"loss": 2.0, "new": 5}, {"loss": 3}])
    losses, new = figure.axes
    np.testing.assert_array_equal(losses.lines[0].get_data(), [[0, 1, 2], [1, 2, 3]])
    np.testing.assert_array_equal(new.lines[0].get_data(), [[1], [5]])


def test_notebooks_show_figures_without_pyplot():
    figure = nnx.plot.history({"loss": [2, 1]})
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_nothing_to_draw(model):
    with pytest.raises(ValueError, match="nnx.plot.history: there are no values"):
        nnx.plot.history([])
    with pytest.raises(
        ValueError, match=r"'loss' has the shape \(3,\), and wants \(2,\)"
    ):
        nnx.plot.history({"loss": [1, 2, 3]}, x=[1, 2])
    with pytest.raises(
        ValueError, match=r"'value' has the shape \(3, 2\), and wants \(3,"
    ):
        nnx.plot.history(jnp.ones((3, 2)))
    assert len(nnx.plot.history({"loss": jnp.array(1.0)}).axes) == 1
    with pytest.raises(ValueError, match="nnx.plot.parameters: there are no Variables"):
        nnx.plot.parameters(model, nnx.Cache)
    with pytest.raises(ValueError, match="depth must not be negative, and is -1"):
        nnx.plot.graph(model, depth=-1)


def test_parameters(model):
    model.layers[0].kernel[0, 0] = jnp.nan
    figure = nnx.plot.parameters(model, bins=7)
    titles = [axis.get_title() for axis in figure.axes]
    assert "layers[0].kernel float32[4,20]" in titles and len(titles) == 4
    axis = figure.axes[titles.index("layers[0].kernel float32[4,20]")]
    assert len(axis.patches) == 7
    assert sum(bar.get_height() for bar in axis.patches) == 79
    assert axis.get_xlabel().endswith("1 NaN or inf")
    assert len(nnx.plot.parameters(model, nnx.BatchStat).axes) == 2


def test_parameters_of_odd_values():
    odd = nnx.List(
        [nnx.Param(jnp.array([1j, 2])), nnx.Param(jnp.zeros(0)), nnx.Param(3.0)]
    )
    odd.append(nnx.Param(jnp.ones(3, jnp.bfloat16)))
    figure = nnx.plot.parameters(odd)
    assert [axis.get_title() for axis in figure.axes] == [
        "[0] complex64[2]",
        "[3] bfloat16[3]",
    ]


def test_parameters_are_described_as_they_are_drawn():
    (axis,) = nnx.plot.parameters(nnx.Dict(a=nnx.Param(jnp.array([1j, -3])))).axes
    assert axis.get_xlabel() == "2 ± 1\n1 to 3"
    constant = nnx.Dict(a=nnx.Param(jnp.full(3, 3e5)))
    assert sum(
        bar.get_height() for bar in nnx.plot.parameters(constant).axes[0].patches
    )
    abstract = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="there are no Variables to draw"):
        nnx.plot.parameters(abstract)


def test_without_matplotlib(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install 'nnxlite"):
        nnx.plot.parameters(model)
    with pytest.raises(ImportError, match="nnx.plot.graph needs the package matplotl"):
        nnx.plot.graph(model)


def boxes(figure):
    """The names, the notes beside them, and the pairs of rows that arrows join."""
    (axis,) = figure.axes
    drawn = [text for text in axis.texts if isinstance(text, Annotation)]
    texts = [text.get_text() for text in axis.texts if text not in drawn]
    starts = [line.get_ydata()[0] for line in axis.lines if line.get_color() != "#999"]
    ends = [text.xy[1] for text in drawn]
    return texts[::2], texts[1::2], list(zip(starts, ends, strict=True))


def test_graph(model):
    model.tied, model.me = model.layers[0].kernel, (model,)
    nnx.freeze(model, nnx.PathContains("bias"))
    figure = nnx.plot.graph(model)
    names, notes, arrows = boxes(figure)
    assert names[:4] == ["Sequential", "layers List", "0 Linear", "kernel Param"]
    tied = names.index("tied Param")
    assert notes[tied] == "the same as layers[0].kernel"
    assert "frozen, float32[20]" in notes and "the same as the root" in notes
    root = notes.index("the same as the root")
    assert arrows == [(tied, names.index("kernel Param")), (root, 0)]
    svg = figure._repr_svg_()
    assert "<svg" in svg and "the same as layers[0].kernel" in svg
    assert svg == nnx.plot.graph(model)._repr_svg_()


def test_graph_folds_alike_layers_and_stops_at_a_depth(model):
    layers = nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(n)) for n in range(9)])
    names, notes, _ = boxes(nnx.plot.graph(layers))
    assert names == ["List", "9 x Linear", "kernel Param", "bias Param"]
    assert notes[1] == "each 6 (24 B)"
    assert boxes(nnx.plot.graph(model, depth=0))[0] == ["Sequential"]


def test_names_are_no_markup():
    figure = nnx.plot.graph(nnx.Dict({"<b>&$x$": nnx.Param(1.0)}))
    assert boxes(figure)[0][1] == "<b>&$x$ Param"
    assert "&lt;b&gt;&amp;$x$ Param" in figure._repr_svg_()
