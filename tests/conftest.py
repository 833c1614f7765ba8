"""What tests in several folders share."""

import signal

from fiddler import process

_handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
process.prepare()  # as in the services: otherwise this process's OpenMP threads take the cores from theirs

from tests.support.imitated_cuda.triton_kernels import interpret_triton

interpret_triton()  # before anything imports Triton

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter
from hypothesis import settings

from pair import Pair
from tests.support import leftovers
from tests.support.pairs import start, write_tiny

# A test is not wrong for being slow on a machine that is busy. The examples are the same in each run, so that a change
# is judged by what it changes; `make fuzz` draws others, and those that it finds become an @example of their test.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, print_blob=True)
settings.load_profile("fixed")


def pytest_collection_finish() -> None:
    """Gives pytest its signals back, which services' modules take when they are imported: Ctrl-C shall be reported."""
    for number, handler in _handlers.items():
        signal.signal(number, handler)


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """After `make test` has run by itself what had failed beside other tests: names what passes now."""
    passed = terminalreporter.stats.get("passed", [])
    if config.getoption("lf", False) and passed:
        terminalreporter.section("failed beside other tests, passed alone", red=True, bold=True)
        for report in passed:
            terminalreporter.line(f"UNSTABLE {report.nodeid}")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Services that tests start keep their costs where the tests do, not in the user's cache."""
    with leftovers.undone():
        os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module", autouse=True)
def _leave_nothing_to_other_files(_own_cache: None) -> Iterator[None]:
    with leftovers.undone():
        yield


@pytest.fixture(autouse=True)
def _leave_nothing_to_other_tests(_leave_nothing_to_other_files: None) -> Iterator[None]:
    with leftovers.undone():
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral."""
    return write_tiny(tmp_path_factory.mktemp("mixtral"))


@pytest.fixture(scope="session")
def pair(tiny: Path) -> Iterator[Pair]:
    """A pair that serves the tiny Mixtral in float32 for all tests; a test that breaks something starts its own."""
    with start(tiny) as running:
        yield running
