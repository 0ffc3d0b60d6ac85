"""Transforms are transparent: a compiled program does what the plain one does.

Random programs (see `programs`) run on two graphs that are built alike, plainly on
one (here always the left one) and under `nnx.jit` on the other, two calls each.
Results, values, structure, sharing and identity must agree after each call. If a call
raises, the compiled one must raise the same, and leave its graph exactly as it was.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import pytest
from hypothesis import given, seed, settings

import nnxlite as nnx

from .binding import Bound
from .comparison import Correspondence, Difference, Snapshot
from .generation import programs
from .machine import Machine, built
from .programs import Halt, Program, reachable

# JAX says so when a later call of a donating function returns arrays of other shapes.
pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")


class Run:
    """One program on two graphs, the right one compiled."""

    def __init__(self, program: Program):
        self.program = program
        donate = "state" if program.donates else None
        graphs = built(program), built(program)
        self.plain = Bound(program, graphs[0], lambda function: function)
        self.compiled = Bound(
            program, graphs[1], lambda function: nnx.jit(function, donate=donate)
        )
        self._know(graphs)

    def _know(self, graphs: tuple[Any, Any]) -> None:
        left, right = self.plain.objects, self.compiled.objects
        self.known = Correspondence(
            reachable([*graphs[0], *left]), reachable([*graphs[1], *right])
        )

    def check(self) -> None:
        """Raises AssertionError if the program does something else when compiled."""
        if not self.call(0):
            return
        if self.program.forgets:
            self._know(((), ()))
        self.between()
        if self.program.again and self.plain.can_rebind:
            self.bind((self.known.left, self.known.right), self.program.again)
        if self.call(1) and self.program.fresh and self.plain.can_rebind:
            del self.known
            self.bind((built(self.program), built(self.program)))
            self.call(0)

    def bind(self, graphs: tuple[Any, Any], numbers: Sequence[int] = ()) -> None:
        """Gives both functions other objects."""
        self.plain.bind(graphs[0], numbers)
        self.compiled.bind(graphs[1], numbers)
        self._know(graphs)

    def call(self, number: int) -> bool:
        """Calls both functions and compares; False if they raised."""
        kind = self.program.inputs[number]
        before = Snapshot(reachable(self.known.right))
        expected, error = outcome(self.plain, kind, number + 1)
        for _ in range(1 if error is None else 2):
            result, other = outcome(self.compiled, kind, number + 1)
            if type(error) is not type(other):
                message = f"{error!r} on the left, {other!r} on the right"
                raise Difference(message) from other
            if error is not None:
                before.check()
        if error is None:
            self.known.check(expected, result)
        return error is None

    def between(self) -> None:
        instructions = self.program.between

        def work(objects: list[Any]) -> None:
            Machine(objects, jnp.float32(2)).run(instructions)

        work(list(self.known.left))
        compiled = nnx.jit(work) if self.program.is_between_compiled else work
        compiled(list(self.known.right))
        self.known.check(None, None)


def outcome(function: Bound, kind: str, number: int) -> tuple[Any, Exception | None]:
    """The result, or the exception if it is one that programs raise."""
    try:
        return function(kind, number), None
    except (Halt, ValueError) as error:
        return None, error


_text = ("variable", "BatchStat", ("static", "text"), ())
_value = ("traced", (2,), 1)
_array = ("variable", "BatchStat", _value, ())
REGRESSIONS: list[Program] = [
    Program(objects=(("module", "Node", ()),)),
    Program(  # two Variables exchange an array and a static value
        objects=(("module", "Node", (("b", _text), ("a", _array))),),
        ways=((0, "bare"),),
        body=(
            ("assign", 0, 1),
            ("write", 1, _value),
            ("survey",),
            ("give_total",),
        ),
        again=(0,),
        inputs=("array", "array"),
    ),
    Program(  # a Variable that holds a pytree loses metadata between two calls
        objects=(
            ("module", "Node", ()),
            ("variable", "BatchStat", ("dict", (("w", _value),)), (("note", 1),)),
        ),
        edges=(("set", 0, "a", ("list", (("object", 1),))),),
        ways=((0, "bare"),),
        body=(("survey",), ("give_total",)),
        between=(("del_metadata", 0, "note"),),
        inputs=("array", "array"),
    ),
]


@pytest.mark.parametrize("program", REGRESSIONS)
def test_regressions(program: Program) -> None:
    Run(program).check()


_most = min(settings().max_examples, 500)


@given(program=programs)
@settings(max_examples=_most)
def test_jit_is_transparent(program: Program) -> None:
    Run(program).check()


@pytest.mark.slow
def test_jit_is_transparent_for_as_long_as_time_allows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """NNXLITE_SLOW_SECONDS (default 600) says how long."""
    end = time.monotonic() + float(os.environ.get("NNXLITE_SLOW_SECONDS", "600"))
    met: list[int] = []

    def run(program: Program) -> None:
        met.append(hash(program))
        Run(program).check()

    batch = settings(max_examples=200, derandomize=False, database=None)
    number = time.time_ns() % 2**32
    while time.monotonic() < end:
        seed(number)(batch(given(program=programs)(run)))()
        number += 1
    with capsys.disabled():
        print(f"\n{len(met)} programs ran, {len(set(met))} different ones")
