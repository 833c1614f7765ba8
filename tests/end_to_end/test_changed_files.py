"""Weights that change on the disk end serving, in both services, with a line that names the file."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from client import Client, Event, UnavailableError
from pair import Pair
from tests.support.losses import tokens_of
from tests.support.pairs import start
from tests.support.tampering import SINGLE_FILE

_WAIT_SECONDS = 60
SERVICES = ("gpu_service", "cpu_expert_service")


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "model")


def _statuses(pair: Pair) -> list[int]:
    return [pair.processes[service].wait(_WAIT_SECONDS) for service in SERVICES]


def _text(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode()


def test_weights_that_are_overwritten_in_place_end_both_services(model: Path) -> None:
    file = model / SINGLE_FILE
    with tempfile.TemporaryFile() as log, start(model, log=log) as pair, Client(pair.target) as client:
        events = _endless(client)
        next(events)
        _shift(file)
        with pytest.raises(UnavailableError, match="the checkpoint was changed while it was served"):
            list(events)
        assert _statuses(pair) == [1, 1]
        lines = [line for line in _text(log).splitlines() if str(file) in line and "was changed" in line]
        assert [line.split(":")[0] for line in sorted(lines)] == sorted(SERVICES)
        assert "Traceback" not in _text(log)


def _endless(client: Client) -> Iterator[Event]:
    """The events of one generation after the other: the look comes at most two seconds after the change."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        yield from client.generate([3, 4, 5], max_tokens=450, temperature=0)


def _shift(file: Path) -> None:
    """Writes other weights over the file, without making a new one."""
    content = file.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    middle = begin + (len(content) - begin) // 8 * 4
    with file.open("r+b") as handle:
        handle.write(content[:begin] + content[middle:] + content[begin:middle])


def test_a_file_that_is_cut_off_does_not_end_a_service_without_a_word(model: Path) -> None:
    with tempfile.TemporaryFile() as log, start(model, log=log) as pair:
        os.truncate(model / SINGLE_FILE, 4096)
        with Client(pair.target) as client, pytest.raises(UnavailableError):
            list(_endless(client))
        gpu_status, cpu_status = _statuses(pair)
        assert gpu_status in (1, -signal.SIGBUS)
        assert cpu_status in (1, -signal.SIGBUS)
        text = _text(log)
        words = {1: f"{SINGLE_FILE} was changed", -signal.SIGBUS: "Fatal Python error: Bus error"}
        assert words[gpu_status] in text
        assert words[cpu_status] in text


def test_a_checkpoint_that_is_replaced_by_renaming_is_served_on(model: Path) -> None:
    with tempfile.TemporaryFile() as log, start(model, log=log) as pair, Client(pair.target) as client:
        expected = tokens_of(client, [3, 4, 5], 20)
        new = model / "new"
        shutil.copy(model / SINGLE_FILE, new)
        _shift(new)
        new.rename(model / SINGLE_FILE)
        deadline = time.monotonic() + _WAIT_SECONDS
        while _text(log).count("file replaced or removed") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert tokens_of(client, [3, 4, 5], 20) == expected
