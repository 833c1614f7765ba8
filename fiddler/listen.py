"""Binds a server to its address. A Unix socket replaces that of a dead server, never that of a running one."""

import contextlib
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

import grpc

from fiddler import rpc
from fiddler.errors import UserError
from fiddler.transport import directories, ports


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that a server is bound to."""

    address: str
    _socket: Path | None = None
    _identity: tuple[int, int] | None = None

    @property
    def is_in_place(self) -> bool:
        """Whether the socket is still at its path. A port always is."""
        if self._socket is None:
            return True
        try:
            return _identity(self._socket) == self._identity
        except OSError:
            return False

    def remove(self) -> None:
        """Removes the socket's path, unless another server has put its own there."""
        if self._socket is not None:
            with contextlib.suppress(FileNotFoundError):
                if _identity(self._socket) == self._identity:
                    self._socket.unlink()


def bind(
    server: grpc.Server | grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> Listener:
    """Binds a server to an address. If a socket's directory is missing, it is created with mode 0700.

    Args:
        server: The server, not started yet.
        address: HOST:PORT or unix:PATH.
        credentials: The server's side of TLS, for HOST:PORT; None for no TLS.

    Raises:
        UserError: The address is taken, or the socket's directory cannot be made or written, or others could put a
            socket of theirs there.
    """
    if not address.startswith("unix:"):
        _add_port(server, address, address, credentials)
        return Listener(address)
    try:
        return _bind_socket(server, address)
    except OSError as error:
        raise UserError(f"--listen: cannot serve on {address}: {error.strerror}") from error


def _bind_socket(server: grpc.Server | grpc.aio.Server, address: str) -> Listener:
    path = Path(address.removeprefix("unix:"))
    _make_directory(path.parent)
    if problem := directories.problem_of(path):
        raise UserError(f"--listen: {problem}")
    _refuse_if_taken(path)
    # when gRPC stops, it removes the path that it bound, even if another server's socket is there by then; so it binds
    # a path of its own, which then replaces a dead server's in one step
    bound = path.with_name(f"{path.name}.{os.getpid()}")
    _add_port(server, f"unix:{bound}", address)
    bound.rename(path)
    return Listener(address, path, _identity(path))


def _add_port(
    server: grpc.Server | grpc.aio.Server, address: str, name: str, credentials: grpc.ServerCredentials | None = None
) -> None:
    target = rpc.target(address)
    try:
        if credentials is None:
            server.add_insecure_port(target)
        else:
            server.add_secure_port(target, credentials)
    except RuntimeError:
        raise UserError(f"--listen: {ports.refusal(name, 'it is taken, or none of this host')}") from None


def _make_directory(directory: Path) -> None:
    """Makes the directory, and those above it, each with mode 0700, whatever the umask."""
    missing = [parent for parent in (directory, *directory.parents) if not parent.exists()]
    try:
        for parent in reversed(missing):
            parent.mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(exist_ok=True)  # raises if it is a file
    except PermissionError as error:
        raise UserError(f"--listen: user {os.getuid()} cannot make the directory {error.filename}") from None
    if not os.access(directory, os.W_OK | os.X_OK):
        status = directory.stat()
        raise UserError(
            f"--listen: user {os.getuid()} cannot make a socket in {directory}, "
            f"which belongs to user {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}"
        )


def _refuse_if_taken(path: Path) -> None:
    """Raises a UserError if a server listens on the path, or if it is not a socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UserError(f"--listen: {path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
    raise UserError(f"--listen: {path} is served by another process")


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
