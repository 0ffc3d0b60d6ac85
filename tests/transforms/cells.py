"""Objects that the tests of several transforms use."""

from typing import Any

import jax.numpy as jnp

import nnxlite as nnx

from ..properties.comparison import Snapshot
from ..properties.programs import reachable


class Cell(nnx.Module):
    """A counter, a part that is reached twice, and a bare array."""

    def __init__(self):
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))
        self.part = nnx.Dict(w=nnx.Param(jnp.ones(2)))
        self.same = self.part
        self.array = jnp.ones(2)


class Trainer:
    """A plain object that holds a model."""

    def __init__(self, model: Any = None):
        self.model = Cell() if model is None else model
        self.array = jnp.ones(2)


def snapshot(*roots: Any) -> Snapshot:
    """What the objects below some roots are like now."""
    return Snapshot(reachable(roots))
