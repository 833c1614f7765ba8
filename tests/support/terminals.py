"""Pseudo-terminals for command lines that behave differently at a terminal."""

import contextlib
import os
import pty
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CTRL_C, CTRL_D = "\x03", "\x04"
_TIMEOUT_SECONDS = 60.0
_END_MARK = "\x00end"


class Terminal:
    """A terminal, which a program uses through `device`.

    Attributes:
        device: The file descriptor for the program.
        shown: All that the program has written and the test has read, with the terminal's control sequences.
    """

    def __init__(self) -> None:
        self._controller, self.device = pty.openpty()
        self.shown = ""
        self._num_seen = 0

    def type(self, text: str) -> None:
        """Types a text. CTRL_C and CTRL_D are keys."""
        os.write(self._controller, text.encode())

    def wait_for(self, text: str) -> None:
        """Waits until a text is shown, after the text of the previous wait."""
        self.wait_until(lambda shown: text in shown[self._num_seen :])
        self._num_seen = self.shown.index(text, self._num_seen) + len(text)

    def wait_until(self, condition: Callable[[str], bool]) -> None:
        """Waits until a condition holds for everything shown so far."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not condition(self.shown):
            assert time.monotonic() < deadline, f"not shown in time: {self.shown!r}"
            self._read()

    def wait_for_exit(self, process: subprocess.Popen[bytes]) -> int:
        """Reads on until a process ends, since it may wait for room to write; returns its exit status."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while process.poll() is None:
            assert time.monotonic() < deadline, f"still running: {self.shown!r}"
            with contextlib.suppress(OSError):  # the process has hung up
                self._read()
        return process.returncode

    def read_rest(self) -> str:
        """Reads what a program that has ended wrote, and returns all that was shown."""
        os.write(self.device, _END_MARK.encode())  # so that the reads below end
        while not self.shown.endswith(_END_MARK):
            self._read()
        self.shown = self.shown.removesuffix(_END_MARK)
        return self.shown

    def close(self) -> None:
        """Hangs up."""
        os.close(self._controller)
        os.close(self.device)

    def _read(self) -> None:
        if select.select([self._controller], [], [], 0.05)[0]:
            self.shown += os.read(self._controller, 65536).decode(errors="replace")


@contextmanager
def terminal() -> Iterator[Terminal]:
    """A terminal that is closed at the end."""
    opened = Terminal()
    try:
        yield opened
    finally:
        opened.close()
