"""Transforms are transparent: a compiled program does what the plain one does.

Random programs (see `programs`) run on two graphs that are built alike, plainly on
one and under `nnx.jit` on the other, two calls each. Results, values, structure,
sharing and identity must agree after each call. If a call raises, the compiled one
must raise the same, and leave its graph exactly as it was before.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
from hypothesis import given, seed, settings

import nnxlite as nnx

from .comparison import Correspondence, Snapshot
from .generation import programs
from .programs import Bound, Halt, Machine, Program, reachable


def check(program: Program) -> None:
    """Raises AssertionError if the program does something else under `nnx.jit`."""
    graphs = program.built(), program.built()
    plain = Bound(program, graphs[0], lambda function: function)
    compiled = Bound(program, graphs[1], nnx.jit)
    known = Correspondence(*graphs)
    if not call(plain, compiled, known, 1):
        return
    if program.between:
        for objects in (known.left, known.right):
            Machine(objects, jnp.float32(2)).run(program.between)
        known.check(None, None)
    if call(plain, compiled, known, 2) and program.fresh and plain.can_rebind:
        graphs = program.built(), program.built()
        plain.bind(graphs[0])
        compiled.bind(graphs[1])
        call(plain, compiled, Correspondence(*graphs), 1)


def call(plain: Any, compiled: Any, known: Correspondence, x: int) -> bool:
    """Calls both and compares; False if they raised."""
    before = Snapshot(reachable(known.right))
    expected, error = outcome(plain, x)
    result, other = outcome(compiled, x)
    if type(error) is not type(other):
        raise AssertionError(f"{error!r} on the left, {other!r} on the right") from (
            other or error
        )
    if error is not None:
        before.check()
        return False
    known.check(expected, result)
    return True


def outcome(function: Callable[[Any], Any], x: int) -> tuple[Any, Exception | None]:
    try:
        return function(jnp.float32(x)), None
    except Exception as error:
        return None, error


REGRESSIONS: list[Program] = [Program(objects=(("module", "Node", ()),))]


@pytest.mark.parametrize("program", REGRESSIONS)
def test_regressions(program: Program) -> None:
    check(program)


@given(program=programs)
@settings(max_examples=min(settings.default.max_examples, 500))  # pyright: ignore[reportOptionalMemberAccess]
def test_jit_is_transparent(program: Program) -> None:
    check(program)


@pytest.mark.slow
def test_jit_is_transparent_for_as_long_as_time_allows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """NNXLITE_SLOW_SECONDS (default 600) says how long."""
    end = time.monotonic() + float(os.environ.get("NNXLITE_SLOW_SECONDS", "600"))
    met: list[int] = []

    def run(program: Program) -> None:
        met.append(hash(program))
        check(program)

    batch = settings(max_examples=200, derandomize=False, database=None)
    number = time.time_ns() % 2**32
    while time.monotonic() < end:
        seed(number)(batch(given(program=programs)(run)))()
        number += 1
        if number % 5 == 0:
            with capsys.disabled():
                print(f"{len(met)} programs, {len(set(met))} different ones")
