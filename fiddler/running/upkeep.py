"""What a service does every few seconds, in a thread of its own, so that nothing that hangs elsewhere stops it."""

import threading
from collections.abc import Callable, Sequence

import structlog

from fiddler.errors import UserError

SECONDS = 2.0
_log = structlog.get_logger(__name__)


class Upkeep:
    """Calls functions again and again."""

    def __init__(
        self, acts: Sequence[Callable[[], None]], on_failure: Callable[[UserError], None], seconds: float = SECONDS
    ) -> None:
        """Begins `seconds` from now.

        Args:
            acts: What is called. One that raises a UserError ends the service; any other error is logged.
            on_failure: Called from the thread with that UserError, once; nothing more is called then.
            seconds: From the end of one round to the beginning of the next.
        """
        self._acts = acts
        self._on_failure = on_failure
        self._seconds = seconds
        self._stopping = threading.Event()
        threading.Thread(target=self._run, name="upkeep", daemon=True).start()

    def stop(self) -> None:
        """Ends it, without waiting for a call under way."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            for act in self._acts:
                try:
                    act()
                except UserError as error:
                    self._on_failure(error)
                    return
                except Exception as error:
                    _log.error("upkeep failed", error=str(error), exc_info=error)
