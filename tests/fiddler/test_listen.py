"""Binds real servers in this process to addresses."""

import os
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from fiddler import listen, rpc
from fiddler.errors import UserError
from fiddler.transport import directories


def _server() -> grpc.Server:
    return grpc.server(ThreadPoolExecutor(2), options=rpc.server_options(2**20))


@contextmanager
def serving(server: grpc.Server, address: str) -> Iterator[None]:
    listener = listen.bind(server, address)
    server.start()
    try:
        yield
    finally:
        listener.remove()
        server.stop(None).wait()


def _stale_socket(path: Path) -> None:
    """Leaves what a server that was killed leaves."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


def _reaches(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_a_missing_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "experts.sock"
    umask = os.umask(0)
    try:
        with serving(_server(), f"unix:{path}"):
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert _reaches(path)
    finally:
        os.umask(umask)


def test_a_directory_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with serving(_server(), f"unix:{tmp_path}/experts.sock"):
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_all_directories_that_are_made_are_the_owners_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with serving(_server(), f"unix:{tmp_path}/a/b/c/experts.sock"):
            made = [tmp_path / name for name in ("a", "a/b", "a/b/c")]
            assert {stat.S_IMODE(directory.stat().st_mode) for directory in made} == {0o700}
    finally:
        os.umask(umask)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(UserError, match=f"--listen: .* {tmp_path} has mode {mode:04o}.*`chmod go-w {tmp_path}`"):
        listen.bind(_server(), f"unix:{tmp_path}/experts.sock")
    assert not any(tmp_path.iterdir())


def test_a_link_to_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(UserError, match=f"--listen: the socket's directory {tmp_path}/link is a symbolic link"):
        listen.bind(_server(), f"unix:{tmp_path}/link/experts.sock")


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    (tmp_path / "theirs").mkdir(mode=0o700)
    real = Path.lstat

    def owned(path: Path) -> os.stat_result:
        status = real(path)
        return os.stat_result([*status[:4], 10099, *status[5:]]) if path.name == "theirs" else status

    monkeypatch.setattr(Path, "lstat", owned)
    problem = f"{tmp_path}/theirs belongs to user 10099, .* choose one that belongs to user 4242, with mode 0700"
    with pytest.raises(UserError, match=problem):
        listen.bind(_server(), f"unix:{tmp_path}/theirs/experts.sock")


def test_a_directory_such_as_tmp_is_served_in(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    path = tmp_path / "experts.sock"
    with serving(_server(), f"unix:{path}"):
        assert _reaches(path)


def test_a_socket_of_another_user_in_tmp_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o1777)
    path = tmp_path / "experts.sock"
    _stale_socket(path)
    assert directories.problem_of(path) == ""
    real = Path.lstat

    def owned(path: Path) -> os.stat_result:
        status = real(path)
        return os.stat_result([*status[:4], 10099, *status[5:]]) if path.name == "experts.sock" else status

    monkeypatch.setattr(Path, "lstat", owned)
    assert f"the socket {path} belongs to user 10099" in directories.problem_of(path)


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "experts.sock"
    _stale_socket(path)
    assert not _reaches(path)
    with serving(_server(), f"unix:{path}"):
        assert _reaches(path)


def test_the_socket_of_a_living_server_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "experts.sock"
    with serving(_server(), f"unix:{path}"):
        with pytest.raises(UserError, match=f"{path} is served by another process"):
            listen.bind(_server(), f"unix:{path}")
        assert _reaches(path)


def test_a_file_in_the_way_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary")
    with pytest.raises(UserError, match=f"{path} exists and is not a socket"):
        listen.bind(_server(), f"unix:{path}")
    assert path.read_text() == "dear diary"


def test_a_directory_that_may_not_be_written_is_told_with_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the test may run as root, who may write anywhere
    owner = f"which belongs to user {tmp_path.stat().st_uid} with mode 0755"
    with pytest.raises(UserError, match=f"--listen: user {os.getuid()} cannot make a socket in {tmp_path}, {owner}"):
        listen.bind(_server(), f"unix:{tmp_path}/experts.sock")
    assert not any(tmp_path.iterdir())


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=f"--listen: user {os.getuid()} cannot make the directory {tmp_path}/run$"):
        listen.bind(_server(), f"unix:{tmp_path}/run/experts.sock")


def test_a_file_where_the_directory_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/run"):
        listen.bind(_server(), f"unix:{tmp_path}/run/experts.sock")


def test_a_socket_that_may_not_be_asked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stale_socket(tmp_path / "experts.sock")

    class Refusing(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(UserError, match=f"--listen: cannot serve on unix:{tmp_path}/experts.sock: Permission denied"):
        listen.bind(_server(), f"unix:{tmp_path}/experts.sock")


def test_a_port_is_served_by_one_server_only() -> None:
    first = _server()
    port = first.add_insecure_port("127.0.0.1:0")
    first.start()
    try:
        with pytest.raises(
            UserError,
            match=f"--listen: cannot serve on 127.0.0.1:{port}: it is taken, or none of this host, by process",
        ):
            listen.bind(_server(), f"127.0.0.1:{port}")
    finally:
        first.stop(None).wait()


def test_a_server_that_stops_removes_its_own_socket_and_not_its_successors(tmp_path: Path) -> None:
    path = tmp_path / "experts.sock"
    first, second = _server(), _server()
    old = listen.bind(first, f"unix:{path}")
    first.start()
    old.remove()
    assert not path.exists()
    listen.bind(second, f"unix:{path}")
    second.start()
    try:
        old.remove()
        first.stop(None).wait()
        del first
        assert _reaches(path)
    finally:
        second.stop(None).wait()


def test_a_port_has_nothing_to_remove() -> None:
    listen.Listener("127.0.0.1:80").remove()
