"""What a service sets up for its process is undone after a test that runs it in the tests' process."""

import logging
import os
import signal
import sys

import pytest
import structlog
import torch
from prometheus_client import REGISTRY

from fiddler import logs, metrics, process
from tests.support import leftovers


def _run_a_service() -> None:
    """Leaves what a service leaves behind."""
    process.prepare()
    signal.signal(signal.SIGTERM, lambda *_: None)
    logs.configure("error", "json")
    logs._log.error("used, so that it keeps its configuration")
    metrics.set_build_info("toy_service", colour="red")
    os.environ["FIDDLER_TOY"] = "1"
    del os.environ["XDG_CACHE_HOME"]
    torch.set_num_threads(torch.get_num_threads() + 1)


def test_a_service_leaves_nothing_to_the_next_test() -> None:
    root = logging.getLogger()

    def state() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        collectors = set(REGISTRY._collector_to_names)
        logging_ = (root.level, list(root.handlers), list(logs._writers), structlog.is_configured())
        return (*handlers, environment, collectors, *logging_, sys.excepthook, torch.get_num_threads())

    before = state()
    for _ in range(2):  # build information can be published only once
        with leftovers.undone():
            _run_a_service()
            changed = state()
        assert state() == before
        assert all(now != then for now, then in zip(changed, before, strict=True))


def test_a_logger_that_was_used_by_a_service_is_captured_again() -> None:
    with leftovers.undone():
        _run_a_service()
    with structlog.testing.capture_logs() as captured:
        logs._log.warning("seen")
    assert [log["event"] for log in captured] == ["seen"]


@pytest.mark.parametrize("number", [1, 2])
def test_every_test_is_followed_by_that(number: int) -> None:
    assert "FIDDLER_TOY" not in os.environ
    os.environ["FIDDLER_TOY"] = str(number)
