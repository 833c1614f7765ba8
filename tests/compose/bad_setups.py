"""Mistakes of users: each gives one clear line, and no traceback."""

import re
import socket
import tempfile
from pathlib import Path

from tests.compose.stack import ComposeError, Stack, wait
from tests.support.ports import free_port

PROJECT = "fiddler-compose-test-bad"
_OVERRIDES = Path(__file__).parent / "overrides"


def check_all() -> str:
    """Tries each mistake. Containers are not restarted, so that their lines can be counted.

    Returns:
        The lines.
    """
    with tempfile.TemporaryDirectory() as empty:
        Path(empty).chmod(0o755)
        lines = [
            missing_directory(),
            one_line("cpu-expert-service", r"/model is empty: download", MODEL_DIR=empty),
            one_line(
                "cpu-expert-service",
                r"--listen: user 10001 cannot make a socket in /run/fiddler, which belongs to user 4242 with mode 0700",
                _OVERRIDES / "foreign_sockets.yaml",
            ),
            one_line(
                "gpu-service",
                r"--listen: cannot serve on 0\.0\.0\.0:50051: it is taken",
                _OVERRIDES / "port_taken.yaml",
            ),
            waiting_without_permission(),
            port_taken_on_the_host(),
        ]
    return "one line each:\n  " + "\n  ".join(lines) + "\n"


def one_line(service: str, pattern: str, *overrides: Path, **settings: str) -> str:
    """Starts a service alone, waits for its end, and checks its exit status and that it prints one line.

    Returns:
        The line.

    Raises:
        ComposeError: It does not end with status 1, or prints another line or more lines.
    """
    stack = Stack(PROJECT, *overrides, RESTART_POLICY="no", **settings)
    try:
        stack.up("--no-deps", service)
        wait(f"{service} ends", lambda: not stack.inspect(service)["State"]["Running"])
        status = stack.inspect(service)["State"]["ExitCode"]
        if status != 1:
            raise ComposeError(f"{service} ended with status {status}:\n{stack.logs(service)}")
        # earlier warnings are lines of JSON
        lines = [line for line in stack.logs(service).splitlines() if line and not line.startswith("{")]
        if len(lines) != 1 or not re.search(pattern, lines[0]):
            raise ComposeError(f"{service}: expected one line that matches {pattern}, got:\n" + "\n".join(lines))
        return lines[0]
    finally:
        stack.down("--volumes")


def missing_directory() -> str:
    """Compose itself reports a MODEL_DIR that does not exist, and does not create it. Returns the line.

    Raises:
        ComposeError: It does not report it, or creates it.
    """
    missing = f"/tmp/fiddler-no-such-model-{free_port()}"
    stack = Stack(PROJECT, MODEL_DIR=missing)
    try:
        done = stack.attempt("up", "--detach", "--no-build", "cpu-expert-service")
        if Path(missing).exists():
            raise ComposeError(f"{missing} was created")
        return _check_reported(done.returncode, done.stderr, missing)
    finally:
        stack.down("--volumes")


def port_taken_on_the_host() -> str:
    """Compose itself reports a port of the host that is in use. Returns the line.

    Raises:
        ComposeError: It does not report it.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        stack = Stack(PROJECT, CPU_METRICS_PORT=port)
        try:
            done = stack.attempt("up", "--detach", "--no-build", "cpu-expert-service")
            return _check_reported(done.returncode, done.stderr, port)
        finally:
            stack.down("--volumes")


def waiting_without_permission() -> str:
    """A GPU service that has no permission to connect to the socket reports that while it waits. Returns the line.

    Raises:
        ComposeError: It does not report it.
    """
    stack = Stack(PROJECT, _OVERRIDES / "foreign_user.yaml")
    try:
        stack.up("gpu-service")
        text = "user 4242 has no permission to look into /run/fiddler"
        wait("the GPU service reports that it may not connect", lambda: text in stack.logs("gpu-service"))
        return next(line for line in stack.logs("gpu-service").splitlines() if text in line)
    finally:
        stack.down("--volumes")


def _check_reported(status: int, printed: str, name: str) -> str:
    lines = [line for line in printed.splitlines() if name in line]
    if status == 0 or len(lines) != 1:
        raise ComposeError(f"expected one line that names {name}, got:\n{printed}")
    return lines[0]
