"""What is done at the end: what was counted is kept, and the process ends even if its threads do not let it."""

import threading
from pathlib import Path

import structlog

from fiddler import logs, process
from fiddler.checkpoint import Checkpoint
from gpu_service.model_runner.model import Model
from gpu_service.placement.popularity import Popularity

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


def save_popularity(path: Path | None, model: Model, checkpoint: Checkpoint) -> None:
    """Writes how often experts were chosen, if there is a file for that and a token was computed."""
    counted = Popularity.of_counts(model.dispatcher.selections.read(), model.num_experts_per_token)
    if path is None or counted is None:
        return
    try:
        counted.save(path, checkpoint)
    except OSError as error:
        _log.error("popularity file not written", file=str(path), reason=error.strerror)
