"""Runs `python -m MODULE` as a user does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.terminals import Terminal

TIMEOUT_SECONDS = 20.0
"""How long a command may take on a busy machine."""


def command(module: str, *arguments: str) -> list[str]:
    """The command, for subprocess."""
    return [sys.executable, "-m", module, *arguments]


def run(module: str, *arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a command to its end and captures its output."""
    return subprocess.run(
        command(module, *arguments),
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        env={**os.environ, **environment},
    )


@contextmanager
def started(module: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a command with its outputs in pipes; kills it at the end if it is still running.

    Args:
        module: The module.
        arguments: Its arguments.
        options: Further arguments of subprocess.Popen.
    """
    files: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process: subprocess.Popen[bytes] = subprocess.Popen(command(module, *arguments), **(files | options))
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def started_at(
    terminal: Terminal, module: str, *arguments: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a command at a terminal, which is its controlling terminal, so that Ctrl-C is a signal."""
    # The first terminal that a new session opens becomes its controlling terminal.
    opener = ["sh", "-c", 'exec "$@" < "$0" > "$0" 2>&1', os.ttyname(terminal.device)]
    variables = {**os.environ, "TERM": "xterm-256color", **environment}
    with subprocess.Popen([*opener, *command(module, *arguments)], start_new_session=True, env=variables) as process:
        try:
            yield process
        finally:
            process.kill()


def assert_one_line(text: str | bytes, module: str, *words: str) -> None:
    """Asserts that a text is one line, an error of that module, which contains the words."""
    line = text.decode() if isinstance(text, bytes) else text
    assert line.startswith(f"{module}: ")
    assert line.count("\n") == 1
    for word in words:
        assert word in line
