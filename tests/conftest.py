"""What every test shares: settings of JAX and hypothesis, options, oracles.

An *oracle* is another framework whose result a test compares with. A test asks for it
by name and is skipped, with the reason, where it is not installed:

    def test_same_parameters(oracle):
        flax_nnx = oracle("flax.nnx")

With NNXLITE_REQUIRE_ORACLES=1 a missing oracle is a failure, so that a check that was
meant to run cannot vanish quietly. Every test that uses `oracle` carries the mark
`parity`.

Hypothesis has three profiles. A property test that sets no `max_examples` of its own
gets the profile's: `dev` 100 (the default), `ci` 500 (HYPOTHESIS_PROFILE=ci), `slow`
20,000 fresh random examples (--slow; NNXLITE_EXAMPLES sets another number). The first
two are derandomized: a run that passed passes again.

The settings of JAX are environment variables, set before JAX is imported, so that
processes started by a test have them too. Each gives way to what the caller set.
"""

import gc
import importlib
import os
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Compiling is most of a test's time. The two test processes, and the next run, read
# what was compiled before: 9 s against 2 s for some 100 small programs. LLVM's work is
# not split among threads, as both cores have a process: a fifth less of it.
_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_parallel_codegen_split_count=1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# The first example of a test compiles, so times say nothing about the test.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=100, derandomize=True, **_COMMON)
settings.register_profile("ci", max_examples=500, derandomize=True, **_COMMON)
settings.register_profile(
    "slow",
    max_examples=int(os.environ.get("NNXLITE_EXAMPLES", "20_000")),
    print_blob=True,
    **_COMMON,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow",
        action="store_true",
        help="run the tests marked slow, and property tests with 20,000 examples",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--slow"):
        settings.load_profile("slow")


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    skip_slow = pytest.mark.skip(reason="takes minutes: run with --slow")
    for item in items:
        if "oracle" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.parity)
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(skip_slow)
    # What takes long for its number of tests comes first, so that no process waits.
    items.sort(
        key=lambda item: item.path.parent.name not in ("notebooks", "properties")
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files stay together, but each notebook is by itself."""
    if config.getvalue("dist") != "loadfile":
        return None
    scheduler = importlib.import_module("xdist.scheduler")

    class Scheduling(scheduler.LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return nodeid if "notebooks" in file else file

    return Scheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> Iterator[None]:
    """Forgets what a file's tests compiled; the collector looks at the rest no more.

    Without, a test process grows to 5 GB, and the last tests run at a third of the
    speed of the first.
    """
    yield
    importlib.import_module("jax").clear_caches()
    gc.collect()
    gc.freeze()


def _import_oracle(name: str) -> types.ModuleType:
    """Imports a module of another framework, or skips or fails the test."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = f"the oracle {name!r} cannot be imported: {error}"
    if os.environ.get("NNXLITE_REQUIRE_ORACLES") == "1":
        pytest.fail(f"{reason}. Install it: pip install -e '.[oracles]'")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], types.ModuleType]:
    """The function that gives a test the framework that it compares with."""
    return _import_oracle
