"""Starts services by forking a process that has already imported their modules.

A started service is a child of this process with a pid, signals and files of its own: `WarmProcess` is a Popen. It is
forked by a fork server, one for each service. The server has no threads, which a fork would lose.
"""

import array
import atexit
import ctypes
import functools
import json
import os
import socket
import subprocess
import sys
import threading
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_adopting = threading.Lock()


class WarmProcess(subprocess.Popen[bytes]):
    """`python -m args[0] args[1:]`, started by forking. Its standard files are inherited or given, but not pipes."""

    def _execute_child(self, args: list[str], *rest: Any) -> None:
        # In the order of Popen: ..., env, ..., then the pairs of files for standard input, output and error.
        p2cread, _, _, c2pwrite, _, errwrite = (int(fd) for fd in rest[9:15])
        files = [fd if fd != -1 else default for fd, default in ((p2cread, 0), (c2pwrite, 1), (errwrite, 2))]
        environment = dict(os.environ) if rest[5] is None else dict(rest[5])
        self.pid = _server(args[0]).fork(args, environment, files)
        self._child_created = True
        if (devnull := getattr(self, "_devnull", None)) is not None:
            os.close(devnull)


class _Server:
    """The connection to the fork server of one service."""

    def __init__(self, service: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.support.warm_server", service, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        atexit.register(self.close)

    def fork(self, arguments: list[str], environment: dict[str, str], files: list[int]) -> int:
        """Starts the service with arguments and standard files; returns its pid. It is a child of this process."""
        message = json.dumps([os.getcwd(), environment, arguments]).encode()
        with _adopting:  # only during the fork, so that this process adopts no other orphans
            _set_subreaper(True)
            try:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
                self._socket.sendmsg([message], [rights])
                return int(self._socket.recv(64))
            finally:
                _set_subreaper(False)

    def close(self) -> None:
        """Ends the fork server. Services that it started go on."""
        self._socket.close()
        self._process.wait()


@functools.cache
def _server(service: str) -> _Server:
    return _Server(service)


def _set_subreaper(wanted: bool) -> None:
    """Sets whether this process adopts orphans among its descendants."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)
