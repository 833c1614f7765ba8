"""Shows how far long work is: a bar on a terminal, else a line of the log every few seconds."""

import sys
import threading
import time
from types import TracebackType
from typing import Any, Final, Self

import structlog
from tqdm import tqdm

from fiddler.sizes import format_bytes

SECONDS: Final = 5.0
"""Between two lines of the log."""
_log = structlog.get_logger("fiddler")


class Progress:
    """The progress of one piece of work, as a context manager that is called with (done, total) bytes.

    Short work logs nothing: the first line comes after SECONDS.
    """

    def __init__(self, work: str, total_bytes: int = 0) -> None:
        """Shows nothing yet.

        Args:
            work: What is done, as the log's event, e.g. "reading experts".
            total_bytes: What there is to do; a call may correct it.
        """
        self._work = work
        self._bar: Any = tqdm(
            total=total_bytes, desc=work, unit="B", unit_scale=True, disable=not sys.stderr.isatty(), leave=False
        )
        self._began = self._told = time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Work has come so far."""
        if not self._bar.disable:
            self._bar.total = total_bytes
            self._bar.update(done_bytes - self._bar.n)
            return
        now = time.monotonic()
        if now - self._told < SECONDS or done_bytes >= total_bytes:
            return
        self._told = now
        rate = done_bytes / (now - self._began)
        _log.info(
            self._work,
            done=format_bytes(done_bytes),
            of=format_bytes(total_bytes),
            percent=round(100 * done_bytes / total_bytes),
            per_second=format_bytes(int(rate)),
            seconds_left=round((total_bytes - done_bytes) / rate) if rate else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


class Stage:
    """Work whose end cannot be foreseen, as a context manager: the log says every few seconds that it goes on."""

    def __init__(self, work: str) -> None:
        """Logs nothing yet.

        Args:
            work: What is done, e.g. "loading dense weights".
        """
        self._work = work
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="stage", daemon=True)

    def _tell(self) -> None:
        began = time.monotonic()
        while not self._done.wait(SECONDS):
            _log.info(f"still {self._work}", seconds=round(time.monotonic() - began))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
