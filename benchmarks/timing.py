"""Interleaved timing: several contenders, one run, ratios to a baseline.

A *contender* is a callable without arguments that does the work once and returns the
arrays to wait for. In every *round* each contender gives one *sample*: the mean time of
as many calls as fill `SAMPLE_SECONDS`, the wait for the last result included. Rounds go
on through all contenders before the next begins, and start at another one each time, so
that a busy machine slows all of them alike. The figure reported is the lower quartile
of the samples. The smallest sample would be a matter of luck: on a shared machine, six
copies of one contender differed by up to 26% in their minima of 60 rounds, but by 1% to
10% in their lower quartiles. Ratios are of figures from one run; compare no others.
"""

import argparse
import functools
import gc
import importlib
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax

SAMPLE_SECONDS = 0.01
MAX_CALLS = 1000


@dataclass(frozen=True)
class Contender:
    """One thing to time.

    Attributes:
        call: does the work once, returns the arrays to wait for.
        before: runs before every call, outside the time taken.
    """

    call: Callable[[], object]
    before: Callable[[], object] | None = None

    def sample(self, calls: int) -> float:
        """The mean seconds of `calls` calls, the wait for the last result included.

        A call outside the time taken goes first: other contenders ran since this one's
        last sample and emptied the processor's caches.
        """
        call, before, clock = self.call, self.before, time.perf_counter
        result = call() if calls > 1 else None
        jax.block_until_ready(result)
        if before is None:
            start = clock()
            for _ in range(calls):
                result = call()
            jax.block_until_ready(result)
            return (clock() - start) / calls
        seconds = 0.0
        for _ in range(calls):
            before()
            start = clock()
            result = call()
            seconds += clock() - start
        start = clock()
        jax.block_until_ready(result)
        return (seconds + clock() - start) / calls


@dataclass(frozen=True)
class Timing:
    """The samples of one contender, in seconds a call."""

    samples: tuple[float, ...]

    @property
    def typical(self) -> float:
        """The lower quartile."""
        return sorted(self.samples)[len(self.samples) // 4]


def measure(
    contenders: Mapping[str, Callable[[], object] | Contender],
    *,
    rounds: int = 60,
    sample_seconds: float = SAMPLE_SECONDS,
) -> dict[str, Timing]:
    """Times the contenders side by side.

    Args:
        contenders: by name; a plain callable is a `Contender` with nothing before it.
        rounds: samples of each contender.
        sample_seconds: how long one sample should last. A call that takes longer is
            a sample by itself.

    Returns:
        The timing of each contender, in the order given.
    """
    entrants = {
        name: entry if isinstance(entry, Contender) else Contender(entry)
        for name, entry in contenders.items()
    }
    calls = {}
    for name, entrant in entrants.items():
        entrant.sample(1)  # compiles, fills caches
        calls[name] = _calls_for(entrant.sample(2), sample_seconds)
    names = list(entrants)
    samples: dict[str, list[float]] = {name: [] for name in names}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()  # else each collection below would walk all that JAX has compiled
    gc.disable()
    try:
        for round_ in range(rounds):
            gc.collect()
            first = round_ % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(entrants[name].sample(calls[name]))
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def _calls_for(seconds: float, sample_seconds: float) -> int:
    return max(1, min(MAX_CALLS, round(sample_seconds / max(seconds, 1e-9))))


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}" if seconds < 1e-4 else f"{seconds * 1e6:,.0f}"


@dataclass(frozen=True)
class Column:
    """The timings of one set of contenders, which become two columns of a table.

    Attributes:
        title: heads the column of microseconds.
        timings: what `measure` returned.
        baseline: the contender that the ratios refer to.
        limits: contender to the largest ratio that is good enough.
        controls: contender to a baseline of its own, which ran after the same `before`.
    """

    title: str
    timings: Mapping[str, Timing]
    baseline: str
    limits: Mapping[str, float]
    controls: Mapping[str, str] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        baseline = self.controls.get(name, self.baseline)
        return self.timings[name].typical / self.timings[baseline].typical

    def cells(self, name: str) -> tuple[str, str]:
        if name not in self.timings:
            return "-", "-"
        ratio, limit = self.ratio(name), self.limits.get(name)
        verdict = "" if limit is None else f" (<= {limit:g}{self.failure(name)})"
        return microseconds(self.timings[name].typical), f"{ratio:.2f}{verdict}"

    def failure(self, name: str) -> str:
        """' MISSED' if the contender is above its limit, else nothing."""
        limit = self.limits.get(name)
        is_missed = limit is not None and self.ratio(name) > limit
        return " MISSED" if is_missed else ""


class Report:
    """Prints tables as they come, and appends them to a file when asked.

    Attributes:
        missed: what was above its limit so far, one line each.
    """

    def __init__(self, title: str, out: Path | None = None):
        self.missed: list[str] = []
        self._out = out
        machine = f"{jax.default_backend()}, jax {jax.__version__}"
        self.write(f"# {title}\n\n{machine}; lower quartile of interleaved rounds\n")

    def write(self, text: str) -> None:
        print(text, flush=True)
        if self._out is not None:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            with self._out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def table(self, title: str, columns: Sequence[Column]) -> None:
        """One row for each contender, two cells for each column: time and ratio."""
        heads = [title]
        for column in columns:
            heads += [f"{column.title}, us", "ratio"]
        names = dict.fromkeys(name for column in columns for name in column.timings)
        rows = [
            [name, *(cell for column in columns for cell in column.cells(name))]
            for name in names
        ]
        self.write(markdown(heads, rows) + "\n")
        self.missed += [
            f"{title} / {name} / {column.title}: {column.ratio(name):.2f},"
            f" limit {column.limits[name]:g}"
            for column in columns
            for name in column.timings
            if column.failure(name)
        ]

    def close(self) -> int:
        """Prints what was missed; returns the exit status, 1 if anything was."""
        for line in self.missed:
            self.write(f"MISSED {line}")
        self.write("" if self.missed else "All limits kept.\n")
        return 1 if self.missed else 0


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned markdown table; every column but the first is right-aligned."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if position == 0 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    first, *rest = widths
    rule = [f"|{'-' * (first + 2)}", *(f"{'-' * (width + 1)}:" for width in rest)]
    return "\n".join([line(heads), "|".join(rule) + "|", *map(line, rows)])


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share: `--rounds`, `--out`, `--check`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=60, help="samples of each entry")
    parser.add_argument("--out", type=Path, help="append the tables to this file")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 if a limit is missed"
    )
    return parser


@functools.cache
def optional(name: str) -> types.ModuleType | None:
    """The module, or None (and a note) where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"({name} is not installed: its rows are left out)")
        return None
