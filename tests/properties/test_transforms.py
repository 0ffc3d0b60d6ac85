"""Transforms are the Python statements that they stand for.

The random programs of `programs` run under the transforms of `statements`, which also
say what a transform must refuse. Nested functions of a program are under a second
transform. Each program runs twice on the same graph; where it raises, the transformed
one must leave its graph exactly as it was.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from .binding import Bound
from .comparison import Correspondence, Difference, Snapshot
from .generation import freely, mostly_steady
from .machine import built
from .programs import INPUTS, Halt, Program, reachable
from .statements import (
    NESTED,
    REFUSING,
    STATEMENTS,
    STEPS,
    Forbidden,
    Statement,
    Watch,
    slices,
)

ERRORS = (Halt, ValueError, TypeError, Forbidden)


class Plain:
    """A program on one graph, under plain statements."""

    def __init__(self, program: Program, statement: Statement, nested: Statement):
        self.graph = built(program)
        self.is_unsure = False
        self._statement, self._nested = statement, nested
        self.bound = Bound(program, self.graph, self._outer, self._inner)

    def objects(self) -> list[Any]:
        return reachable([*self.graph, *self.bound.objects])

    def _outer(self, f: Any) -> Any:
        return self._watching(self._statement, f, self.graph)

    def _inner(self, f: Any) -> Any:
        return self._watching(self._nested, f)

    def _watching(self, statement: Statement, f: Any, roots: Sequence[Any] = ()) -> Any:
        def run(*args: Any, **named: Any) -> Any:
            watch = Watch([*roots, *args, *named.values()])
            try:
                return statement.plain(f, watch)(*args, **named)
            finally:
                self.is_unsure |= watch.is_unsure

        return run


class Run:
    """A program on two graphs, plainly and under transforms."""

    def __init__(self, program: Program, statement: Statement, nested: Statement):
        self.program, self.statement, self.nested = program, statement, nested
        count = STEPS if statement.lanes == "copies" else 1
        self.plain = [Plain(program, statement, nested) for _ in range(count)]
        self.graph = built(program)
        self.bound = Bound(
            program, self.graph, statement.transformed, nested.transformed
        )

    def check(self) -> None:
        """Raises AssertionError if transforms do something else."""
        if self.call(1) and not self.statement.refusing:
            self.call(2)

    def call(self, number: int) -> bool:
        """Calls and compares; False if the program raised."""
        x = self.program.inputs[0], number
        right = reachable([*self.graph, *self.bound.objects])
        before = Snapshot(right)
        lanes = range(STEPS) if self.statement.lanes else [None]
        lefts = [self.plain[(lane or 0) % len(self.plain)].objects() for lane in lanes]
        pairs = [
            Correspondence(left, right, lane)
            for lane, left in zip(lanes, lefts, strict=True)
        ]
        agreement = [Correspondence(lefts[0], left) for left in lefts]
        results, error = self.expected(*x)
        result, other = outcome(self.bound, *x)
        if other is not None:
            before.check()
        if error is None and self.statement.lanes == "copies":
            error = disagreement(agreement)
            if self.nested.chooses and isinstance(other, ValueError):
                return False
        self.compare_errors(error, other)
        if self.statement.refusing:
            results = [jnp.float32(0)]
            fresh = Plain(self.program, self.statement, self.statement)
            pairs = [Correspondence(fresh.objects(), right)]
        if error is None and other is None:
            for pair, value in zip(pairs, results, strict=True):
                pair.check(value, result)
        return error is None and other is None

    def expected(self, kind: str, number: int) -> tuple[list[Any], Exception | None]:
        """The plain results, one for each lane, and what they raise."""
        if not self.statement.lanes:
            result, error = outcome(self.plain[0].bound, kind, number)
            return [result], error
        results = []
        for lane, x in enumerate(slices(INPUTS[kind](number))):
            plain = self.plain[lane % len(self.plain)]
            try:
                results.append(plain.bound.call(x))
            except ERRORS as error:
                return [], error
        return results, None

    def compare_errors(self, error: Exception | None, other: Exception | None) -> None:
        """Raises Difference unless both are of one kind."""
        if isinstance(error, Forbidden):
            is_same = isinstance(other, (ValueError, TypeError))
        else:
            is_same = type(error) is type(other)
        if is_same or (other is not None and any(x.is_unsure for x in self.plain)):
            return
        message = f"{error!r} on the left, {other!r} on the right"
        raise Difference(message) from other


def outcome(function: Any, *x: Any) -> tuple[Any, Exception | None]:
    """The result, or the exception."""
    try:
        return function(*x), None
    except ERRORS as error:
        return None, error


def disagreement(agreement: Sequence[Correspondence]) -> ValueError | None:
    """What vmap must raise if the calls leave different values."""
    try:
        for correspondence in agreement:
            correspondence.check(None, None)
    except Difference as difference:
        return ValueError(str(difference))
    return None


most = min(settings().max_examples, 150)
now_and_then = settings(max_examples=50, derandomize=False, database=None)


def without_plain_objects(program: Program) -> Program:
    ways = [(n, "bare" if way == "plain" else way) for n, way in program.ways]
    return replace(program, ways=tuple(ways))


def check_random_programs(name: str, profile: settings, number: int | None) -> None:
    """Runs random programs under the statement of that name; a number is a seed."""
    statement = STATEMENTS[name]
    programs = mostly_steady if statement.plain in REFUSING else freely

    @given(program=programs, nested=st.sampled_from(sorted(NESTED)))
    def run(program: Program, nested: str) -> None:
        if statement.captures:
            program = without_plain_objects(program)
        Run(program, statement, NESTED[nested]).check()

    run = profile(run)
    (run if number is None else seed(number)(run))()


@pytest.mark.parametrize("name", STATEMENTS)
def test_statement(name: str) -> None:
    check_random_programs(name, settings(max_examples=most), None)


_new_field = ("set_field", 0, "model", ("variable", "Param", ("traced", (), 1), ()))
_plain_object = Program(
    objects=(("module", "Node", ()),),
    ways=((0, "plain"),),
    body=(_new_field, ("give_total",)),
)
REGRESSIONS = [
    (name, "jit", _plain_object) for name in ("grad", "vjp", "vmap_constant")
]


@pytest.mark.parametrize(("name", "nested", "program"), REGRESSIONS)
def test_regressions(name: str, nested: str, program: Program) -> None:
    Run(program, STATEMENTS[name], NESTED[nested]).check()


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_for_as_long_as_time_allows(name: str) -> None:
    """NNXLITE_SLOW_SECONDS (default 600) says how long, for all statements."""
    seconds = float(os.environ.get("NNXLITE_SLOW_SECONDS", "600"))
    end = time.monotonic() + seconds / len(STATEMENTS)
    number = time.time_ns() % 2**32
    while time.monotonic() < end:
        check_random_programs(name, now_and_then, number)
        number += 1
