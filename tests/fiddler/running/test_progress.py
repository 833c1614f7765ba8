"""Progress without a terminal is lines of the log; short work logs none."""

import time

import pytest
from structlog.testing import capture_logs

from fiddler.running import progress
from fiddler.running.progress import Progress, Stage

GIB = 2**30


def test_long_work_logs_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with capture_logs() as lines, Progress("reading experts", 8 * GIB) as shown:
        for seconds in (1, 6, 8, 16):
            now[0] = 100.0 + seconds
            shown(seconds * GIB // 2, 8 * GIB)
    assert [(line["event"], line["done"], line["percent"]) for line in lines] == [("reading experts", "3 GiB", 38)]
    assert lines[0]["of"] == "8 GiB"
    assert lines[0]["per_second"] == "512 MiB"
    assert lines[0]["seconds_left"] == 10


def test_work_of_unknown_length_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.02)
    with capture_logs() as lines, Stage("loading dense weights"):
        deadline = time.monotonic() + 5
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lines[0]["event"] == "still loading dense weights"


def test_short_work_logs_nothing() -> None:
    with capture_logs() as lines, Stage("a"), Progress("b", 10) as shown:
        shown(5, 10)
        shown(10, 10)
    assert lines == []
