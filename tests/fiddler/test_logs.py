"""The log is text on a terminal and JSON lines elsewhere, for our own events and those of libraries."""

import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import logging, sys
import structlog
from fiddler import logs
logs.configure(*sys.argv[1:])
log = structlog.get_logger("fiddler.toys")
log.debug("small talk")
log.info("toy made", colour="red", number=3)
logging.getLogger("grpc").warning("broken by %s", "a library")
try:
    raise ValueError("glue\\nis out")
except ValueError:
    log.exception("toy broke")
with logs.about_requests(["mine", ""]):
    log.info("toy wrapped")
    logging.getLogger("grpc").info("torn")
with logs.about_requests([""]):
    log.info("toy sold")
"""


def run(level: str, log_format: str, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, level, log_format]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True, timeout=60)


def lines(level: str, log_format: str) -> list[dict[str, Any]]:
    result = run(level, log_format)
    assert result.stdout == ""
    return [json.loads(line) for line in result.stderr.splitlines()]


@pytest.fixture(scope="module")
def logged() -> list[dict[str, Any]]:
    return lines("info", "auto")


def test_each_event_is_one_line_of_json_with_its_fields(logged: list[dict[str, Any]]) -> None:
    event = logged[0]
    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "toy made", "colour": "red", "number": 3, "level": "info", "logger": "fiddler.toys"}


def test_libraries_log_the_same_way(logged: list[dict[str, Any]]) -> None:
    assert logged[1].pop("timestamp").endswith("Z")
    assert logged[1] == {"event": "broken by a library", "level": "warning", "logger": "grpc"}


def test_an_exception_stays_on_its_line(logged: list[dict[str, Any]]) -> None:
    assert logged[2]["level"] == "error"
    assert "ValueError: glue\nis out" in logged[2]["exception"]


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["small talk", "toy made", "broken by a library", "toy broke", "toy wrapped", "torn", "toy sold"]),
        ("warning", ["broken by a library", "toy broke"]),
    ],
)
def test_the_level_bounds_what_is_logged(level: str, events: list[str]) -> None:
    assert [line["event"] for line in lines(level, "json")] == events


def test_console_is_for_people_even_in_a_pipe() -> None:
    text = run("info", "console").stderr
    assert "toy made" in text
    assert not text.startswith("{")


def test_a_terminal_gets_words() -> None:
    ours, theirs = pty.openpty()
    try:
        run("info", "auto", stderr=theirs)
        text = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "toy made" in text
    assert not text.startswith("{")


def test_what_is_logged_for_requests_names_them(logged: list[dict[str, Any]]) -> None:
    ids = {line["event"]: line.get("request_ids") for line in logged}
    assert (ids["toy wrapped"], ids["torn"], ids["toy made"], ids["toy sold"]) == (["mine"], ["mine"], None, None)
