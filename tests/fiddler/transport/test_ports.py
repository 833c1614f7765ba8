"""Who has a port."""

import errno
import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fiddler.transport import ports
from fiddler.transport.ports import PortTakenError, check_free, listens, owner_of, reserve
from tests.support.ports import free_port


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
    free = free_port()
    assert owner_of(free) is None
    check_free("--listen", f"127.0.0.1:{free}")
    check_free("--listen", "unix:/tmp/anything.sock")


def test_a_reserved_port_is_for_the_server_that_is_given_its_number() -> None:
    with reserve() as held, socket.socket() as other, socket.socket() as server:
        address = held.getsockname()
        with pytest.raises(OSError, match="Address already in use"):
            other.bind(address)
        assert other.connect_ex(address) == errno.ECONNREFUSED
        check_free("--listen", "127.0.0.1:{1}".format(*address))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen()
        assert owner_of(address[1]) is not None


def test_a_port_that_a_test_was_given_is_given_to_no_other() -> None:
    port = free_port()
    gc.collect()
    with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
        other.bind(("127.0.0.1", port))


def test_an_address_of_another_host_is_told() -> None:
    with pytest.raises(PortTakenError, match=r"^--listen: cannot serve on 203.0.113.1:50051: Cannot assign"):
        check_free("--listen", "203.0.113.1:50051")


def test_a_process_that_may_not_be_looked_at_is_told_as_such(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_sockets", lambda pid, root: set())
    assert owner_of(taken) == "a process of another user or of a container"


def test_a_system_without_proc_says_nothing(tmp_path: Path) -> None:
    assert owner_of(80, tmp_path) is None
    assert listens(1, 80, tmp_path) is None
