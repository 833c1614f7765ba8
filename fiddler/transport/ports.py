"""TCP ports of this host: one that is free, whether one is, and which process listens on it, from Linux's /proc."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fiddler.errors import UserError

ROOT: Final = Path("/")
_LISTENING: Final = "0A"
_MAX_COMMAND: Final = 60


class PortTakenError(UserError):
    """An address cannot be listened at. The text names the flag, the address and, if it is known, who has it."""


def check_free(flag: str, address: str) -> None:
    """Checks that a server can listen at HOST:PORT, by doing so for a moment. A Unix socket is left to listen.py.

    Args:
        flag: The flag that chose the address, for the error.
        address: HOST:PORT.

    Raises:
        PortTakenError: It cannot. The text says what helps.
    """
    if address.startswith("unix:"):
        return
    host, _, port = address.rpartition(":")
    try:
        family, _, _, _, where = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose connections just ended is free
            probe.bind(where)
            probe.listen()
    except OSError as error:
        raise PortTakenError(f"{flag}: {refusal(address, error.strerror or str(error))}") from None


def reserve() -> socket.socket:
    """Reserves a free port of the loopback interface for a server that is given its number.

    As long as the returned socket is open, the system gives the port to no other socket that asks for any port, neither
    to a server nor to the near end of a connection. A server that names the port can bind it, if it sets SO_REUSEADDR
    as gRPC, uvicorn and http.server do. Until one does, connections to it are refused.
    """
    held = socket.socket()
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))  # and never listens
    except OSError:
        held.close()
        raise
    return held


def refusal(address: str, reason: str) -> str:
    """Why an address cannot be served at, with who has its port, for the end of a sentence that names the flag."""
    port = int(address.rpartition(":")[2])
    owner = owner_of(port)
    if owner is None:
        return f"cannot serve on {address}: {reason}"
    return f"cannot serve on {address}: {reason}, by {owner}; stop it, or choose another port"


def owner_of(port: int, root: Path = ROOT) -> str | None:
    """The process that listens on a port, for people; None if none does, or if the system does not say."""
    inodes = _inodes(port, root)
    if not inodes:
        return None
    for pid in _pids(root):
        if inodes & _sockets(pid, root):
            return f"process {pid} ({_command(pid, root)})"
    return "a process of another user or of a container"


def listens(pid: int, port: int, root: Path = ROOT) -> bool | None:
    """Whether a process listens on a port; None if the system does not say who does."""
    inodes = _inodes(port, root)
    if not inodes:
        return None if not (root / "proc/net/tcp").exists() else False
    return bool(inodes & _sockets(pid, root))


def _inodes(port: int, root: Path) -> set[str]:
    """Of the sockets that listen on a port."""
    found: set[str] = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (root / "proc/net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def _pids(root: Path) -> Iterator[int]:
    for entry in sorted(os.listdir(root / "proc")):
        if entry.isdigit():
            yield int(entry)


def _sockets(pid: int, root: Path) -> set[str]:
    """The inodes of a process's sockets; empty if it may not be looked at, or has ended."""
    found: set[str] = set()
    directory = root / "proc" / str(pid) / "fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(directory / name)
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[len("socket:[") : -1])
    return found


def _command(pid: int, root: Path) -> str:
    try:
        words = (root / "proc" / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "which has ended"
    text = " ".join([Path(words[0]).name, *words[1:]]).strip()
    return text if len(text) <= _MAX_COMMAND else f"{text[:_MAX_COMMAND]}..."
