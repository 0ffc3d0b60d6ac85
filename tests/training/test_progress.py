"""`nnx.progress`: what it shows, and that it waits for nothing."""

import io
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import nnxlite as nnx
from nnxlite.training import progress as module


def shown(metrics: Any, steps: int = 3, body: Any = None, **options: Any) -> str:
    file = io.StringIO()
    for step in nnx.progress(range(steps), metrics, every=0, file=file, **options):
        if body is not None:
            body(step)
    return file.getvalue()


def test_all_kinds_of_metrics():
    values: dict[str, Any] = {}

    def body(step):
        values.update(loss=jnp.array(0.5 / (step + 1)), rate=nnx.Param(jnp.ones(())))

    assert "loss=0.1667, rate=1" in shown(values, body=body)
    assert "a=2" in shown(lambda: {"a": 2})
    assert "value=7" in shown(lambda: jnp.array(7))
    average = nnx.metrics.Average()
    average.update(values=jnp.array([1.0, 3.0]))
    assert "value=2" in shown(average)
    both = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))
    both.update(loss=jnp.array([1.0, 3.0]))
    assert "loss=2" in shown(both)
    assert "3/3" in shown(None)
    with pytest.raises(TypeError, match="metrics must be a mapping.*not a int"):
        shown(5)


def test_it_yields_everything_once_and_can_be_left():
    seen = []
    for x in nnx.progress(iter("abc"), disable=True):
        seen.append(x)
        if x == "b":
            break
    assert seen == ["a", "b"]


def test_it_shows_the_last_step_that_is_done(monkeypatch):
    """Values that are not ready are not converted before the end."""
    done: set[int] = set()
    values: dict[str, Any] = {}
    monkeypatch.setattr(module, "_is_ready", lambda taken: int(taken["step"]) in done)
    texts = []
    convert = module._texts
    monkeypatch.setattr(
        module,
        "_texts",
        lambda taken: texts.append(int(taken["step"])) or convert(taken),
    )

    def body(step):
        values["step"] = jnp.array(step)
        if step == 3:
            done.update({0, 1})

    shown(values, steps=5, body=body)
    assert texts == [1, 4]  # after step 3 the last one that is done; then the end


def test_in_a_training_loop():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    step = nnx.jit(lambda m, x: (m(x) ** 2).mean())
    values: dict[str, Any] = {}

    def body(_):
        values["loss"] = step(model, jnp.ones((4, 2)))

    expected = f"{float(jax.block_until_ready(step(model, jnp.ones((4, 2))))):.4g}"
    assert f"loss={expected}" in shown(values, body=body)
