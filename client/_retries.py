"""When a generation is asked for again.

gRPC itself retries while the server has not answered at all, by the service config in _connection.py. This is about
what it cannot know: a server that had taken the request and then found itself unavailable, and one that says when it
will have room.
"""

import random
import time

from client._connection import FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, MAX_RETRIES
from client._errors import BusyError, ClientError, UnavailableError


class Retries:
    """One generation's retries, all within its one timeout."""

    def __init__(self, timeout_seconds: float | None, retry_unavailable: bool, retry_busy: bool) -> None:
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._retry_unavailable = retry_unavailable
        self._retry_busy = retry_busy
        self._num_unavailable = 0

    def remaining_seconds(self) -> float | None:
        """What is left of the timeout, if there is one; never less than a moment, which gRPC then sees pass."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.001)

    def delay_seconds(self, error: ClientError, accepted: bool) -> float | None:
        """How long to wait before the generation is asked for again; None: it is not to be.

        Args:
            error: How the call ended, before any message had come.
            accepted: Whether the server had sent its metadata. If not, gRPC has retried all that is to be retried.
        """
        delay = None
        if isinstance(error, BusyError) and self._retry_busy and error.retry_after_seconds is not None:
            # late rather than early, and not with all others that were told the same
            delay = error.retry_after_seconds * random.uniform(1.0, 1.5)
        elif isinstance(error, UnavailableError) and self._retry_unavailable and accepted:
            if self._num_unavailable < MAX_RETRIES:
                backoff = FIRST_BACKOFF_SECONDS * 2**self._num_unavailable
                delay = min(backoff, MAX_BACKOFF_SECONDS) * random.uniform(0.8, 1.2)
            self._num_unavailable += 1
        remaining = self.remaining_seconds()
        return None if delay is None or (remaining is not None and delay >= remaining) else delay
