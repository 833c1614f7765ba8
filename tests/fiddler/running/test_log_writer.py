"""Lines are written in order by another thread; if nobody reads them, those too many are dropped and counted."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from fiddler.running.log_writer import LogWriter

PIPE_BYTES = 4096
_F_SETPIPE_SZ = 1031  # <fcntl.h>


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    import fcntl

    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, _F_SETPIPE_SZ, PIPE_BYTES)
    yield ours, theirs
    os.close(ours)


def _read(file: int, until: Callable[[str], bool]) -> str:
    text = ""
    while not until(text):
        text += os.read(file, 65536).decode()
    return text


def test_lines_come_in_order_and_flush_waits_for_them(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1], lambda count: None)
    assert all(writer.write(f"line {number}") for number in range(100))
    assert writer.flush(20)
    assert os.read(pipe[0], 65536).decode().splitlines() == [f"line {number}" for number in range(100)]


def test_a_reader_that_stalls_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    reported: list[int] = []
    writer = LogWriter(pipe[1], reported.append, max_lines=10)
    line = "x" * (PIPE_BYTES // 2)
    began = time.monotonic()
    taken = [writer.write(line) for _ in range(1000)]
    assert time.monotonic() - began < 20, "a write that waits, waits for ever"
    assert 10 <= sum(taken) <= 20
    assert writer.num_dropped == taken.count(False)
    assert not writer.flush(0.05)
    _read(pipe[0], lambda text: text.count("\n") == sum(taken))
    assert writer.flush(20)
    assert sum(reported) == writer.num_dropped


def test_a_reader_that_is_gone_is_no_error(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1], lambda count: None)
    ours, theirs = os.pipe()
    os.close(ours)
    gone = LogWriter(theirs, lambda count: None)
    assert gone.write("line")
    assert gone.flush(20)
    assert writer.flush(20)


PROGRAM = """
import os, sys
import structlog
from fiddler import logs
logs.configure("info", "json")
for number in range(100):
    structlog.get_logger("toys").info("toy made", number=number)
match sys.argv[1]:
    case "return":
        pass
    case "raise":
        raise RuntimeError("glue is out")
    case "say":
        logs.say("toys: no glue")
    case "leave":
        logs.flush()
        os._exit(0)
"""


@pytest.mark.parametrize(
    ("how", "last"),
    [("return", '"number": 99'), ("raise", "glue is out"), ("say", "toys: no glue"), ("leave", '"number": 99')],
)
def test_everything_is_written_before_the_process_ends(how: str, last: str) -> None:
    command = [sys.executable, "-c", PROGRAM, how]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60)
    lines = result.stderr.splitlines()
    assert [f'"number": {number},' in line for number, line in enumerate(lines[:100])] == [True] * 100
    assert last in lines[-1]


def test_a_process_ends_though_nobody_reads_its_log(pipe: tuple[int, int]) -> None:
    command = [sys.executable, "-c", PROGRAM, "say"]
    process = subprocess.Popen(command, stderr=pipe[1])
    assert process.wait(60) == 0
