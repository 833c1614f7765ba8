"""Services started as forks of a process that has imported all they import; otherwise as any other process.

A service is a child of this process all the same, with a pid, signals and files of its own: `WarmProcess` is a Popen.
Its parent is a fork server, one for each service, which runs nothing itself and so has no threads to lose.
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
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


class WarmProcess(subprocess.Popen[bytes]):
    """`python -m args[0] args[1:]`, started by forking. Its files are given or inherited, and no pipes."""

    def _execute_child(self, args: list[str], *rest: Any) -> None:
        # the order of these is Popen's own: ..., env, ..., then the pairs of files for standard input, output and error
        p2cread, _, _, c2pwrite, _, errwrite = (int(fd) for fd in rest[9:15])
        files = [fd if fd != -1 else default for fd, default in ((p2cread, 0), (c2pwrite, 1), (errwrite, 2))]
        environment = dict(os.environ) if rest[5] is None else dict(rest[5])
        self.pid = _server(args[0]).fork(args, environment, files)
        self._child_created = True
        if (devnull := getattr(self, "_devnull", None)) is not None:
            os.close(devnull)


class _Server:
    """A fork server for one service."""

    def __init__(self, service: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.support.warm_server", service, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        atexit.register(self.close)

    def fork(self, arguments: list[str], environment: dict[str, str], files: list[int]) -> int:
        """Starts the service with those arguments and standard files; returns its pid, that of a child of ours."""
        message = json.dumps([os.getcwd(), environment, arguments]).encode()
        # for as long as it takes: what others leave behind is not ours to wait for
        _set_subreaper(True)
        try:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
            self._socket.sendmsg([message], [rights])
            return int(self._socket.recv(64))
        finally:
            _set_subreaper(False)

    def close(self) -> None:
        """Ends the server; what it has started goes on."""
        self._socket.close()
        self._process.wait()


@functools.cache
def _server(service: str) -> _Server:
    return _Server(service)


def _set_subreaper(wanted: bool) -> None:
    """Whether processes whose parent has ended become ours."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)
