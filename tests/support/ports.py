"""Ports for servers that tests start in other processes, which cannot bind port 0 and say what they got."""

import socket

from fiddler.transport.ports import reserve

_held: list[socket.socket] = []


def free_port() -> int:
    """A port of the loopback interface on which nothing listens.

    It is reserved until this process ends, so that no other test process, and no service that it starts, is given it.
    """
    held = reserve()
    _held.append(held)
    return int(held.getsockname()[1])
