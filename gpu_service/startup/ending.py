"""Ends the process if its threads do not let it end."""

import threading

import structlog

from fiddler import logs, process

_log = structlog.get_logger("gpu_service")


def exit_after(seconds: float, status: int) -> threading.Timer:
    """Ends the process after a time, unless it has ended by itself or the timer is cancelled.

    A thread that works on a long text cannot be stopped, and Python waits for it before it ends.

    Args:
        seconds: The time.
        status: What the process then exits with.
    """

    def log() -> None:
        _log.warning("process ended", reason="threads are still busy")
        logs.flush()

    return process.exit_after(seconds, status, log)
