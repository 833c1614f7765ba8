"""Writes the log's lines from a thread of its own, so that nothing else waits for who reads them."""

import contextlib
import os
import queue
import select
import threading
from collections.abc import Callable

MAX_LINES = 4096
"""How many lines wait at most; they are dropped from then on."""


class LogWriter:
    """Writes lines to a file descriptor, in order. For any thread."""

    def __init__(self, file: int, on_dropped: Callable[[int], None], max_lines: int = MAX_LINES) -> None:
        """Starts the thread.

        Args:
            file: The descriptor, which is not closed.
            on_dropped: Called from the thread with the number of lines that were dropped, once lines are read again.
            max_lines: How many may wait.
        """
        self.num_dropped = 0
        """Lines that were dropped so far."""
        self._file = file
        self._on_dropped = on_dropped
        self._num_reported = 0
        self._lock = threading.Lock()
        self._lines: queue.Queue[str] = queue.Queue(max_lines)
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, line: str, wait_seconds: float = 0.0) -> bool:
        """Queues a line; drops it if there is no room within a time. Returns whether there was."""
        try:
            self._lines.put(line, block=wait_seconds > 0, timeout=wait_seconds or None)
        except queue.Full:
            with self._lock:
                self.num_dropped += 1
            return False
        return True

    def flush(self, seconds: float) -> bool:
        """Waits until all lines are written, but no longer than a time. Returns whether they are."""
        lines = self._lines
        with lines.all_tasks_done:
            return lines.all_tasks_done.wait_for(lambda: not lines.unfinished_tasks, seconds)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            self._write(f"{line}\n".encode(errors="backslashreplace"))
            if missing := self.num_dropped - self._num_reported:
                self._num_reported += missing
                self._on_dropped(missing)
            self._lines.task_done()

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # whoever read it is gone
            while data:
                try:
                    data = data[os.write(self._file, data) :]
                except BlockingIOError:  # another program has made the terminal or pipe that both write to non-blocking
                    select.select([], [self._file], [])
