"""Who has a port."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fiddler.transport import ports
from fiddler.transport.ports import PortTakenError, check_free, listens, owner_of


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_process_that_has_a_port_is_named(taken: int) -> None:
    assert str(owner_of(taken)).startswith(f"process {os.getpid()} (")
    assert listens(os.getpid(), taken) is True
    assert listens(os.getppid(), taken) is False
    text = (
        rf"^--listen: cannot serve on 127.0.0.1:{taken}: Address already in use, by process {os.getpid()} \(.*\); stop"
    )
    with pytest.raises(PortTakenError, match=text):
        check_free("--listen", f"127.0.0.1:{taken}")


def test_a_free_port_has_no_owner(taken: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    assert owner_of(free) is None
    check_free("--listen", f"127.0.0.1:{free}")
    check_free("--listen", "unix:/tmp/anything.sock")


def test_an_address_of_another_host_is_told() -> None:
    with pytest.raises(PortTakenError, match=r"^--listen: cannot serve on 203.0.113.1:50051: Cannot assign"):
        check_free("--listen", "203.0.113.1:50051")


def test_a_process_that_may_not_be_looked_at_is_told_as_such(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_sockets", lambda pid, root: set())
    assert owner_of(taken) == "a process of another user or of a container"


def test_a_system_without_proc_says_nothing(tmp_path: Path) -> None:
    assert owner_of(80, tmp_path) is None
    assert listens(1, 80, tmp_path) is None
