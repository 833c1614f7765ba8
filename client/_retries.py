"""When a call is made again: while nothing of its answer has come, and within its timeout.

gRPC could do a part of that by a service config, but not for a server that has said that it took the request, nor for
one that says when it will have room; and a stream that it retries while its server goes away may never end.
"""

import random
import time

from client._errors import BusyError, ClientError, UnavailableError

_MAX_RETRIES = 3
_FIRST_BACKOFF_SECONDS = 0.1


class Retries:
    """One call's retries, all within its one timeout."""

    def __init__(self, timeout_seconds: float | None, retry_unavailable: bool, retry_busy: bool) -> None:
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._retry_unavailable = retry_unavailable
        self._retry_busy = retry_busy
        self._num_unavailable = 0

    def remaining_seconds(self) -> float | None:
        """What is left of the timeout, if there is one; never less than a moment, which gRPC then sees pass."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.001)

    def delay_seconds(self, error: ClientError) -> float | None:
        """How long to wait before the call is made again; None: it is not to be.

        Args:
            error: How it ended, before any message had come.
        """
        delay = None
        if isinstance(error, BusyError) and self._retry_busy and error.retry_after_seconds is not None:
            # late rather than early, and not with all others that were told the same
            delay = error.retry_after_seconds * random.uniform(1.0, 1.5)
        elif isinstance(error, UnavailableError) and self._retry_unavailable and self._num_unavailable < _MAX_RETRIES:
            delay = _FIRST_BACKOFF_SECONDS * 2**self._num_unavailable * random.uniform(0.8, 1.2)
            self._num_unavailable += 1
        remaining = self.remaining_seconds()
        return None if delay is None or (remaining is not None and delay >= remaining) else delay
