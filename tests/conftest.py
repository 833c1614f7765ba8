"""What tests in several folders share."""

import signal

from fiddler import process

_handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
process.prepare()  # as in the services: otherwise this process's OpenMP threads take the cores from theirs

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pair import Pair
from tests.support import leftovers
from tests.support.pairs import start, write_tiny

settings.register_profile("untimed", deadline=None)  # a test is not wrong for being slow on a machine that is busy
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Gives pytest its signals back, which services' modules take when they are imported: Ctrl-C shall be reported."""
    for number, handler in _handlers.items():
        signal.signal(number, handler)


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
