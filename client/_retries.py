"""When a call is retried: only before any of its answer has arrived, and within its timeout.

gRPC's service config could do part of this, but it does not retry a call that the server has accepted, nor wait as long
as a busy server asks for. A stream that gRPC retries while its server goes away may never end.
"""

import random
import time

from client._errors import BusyError, ClientError, UnavailableError
from client._unreachable import Peer

_MAX_UNAVAILABLE_RETRIES = 3
_FIRST_BACKOFF_SECONDS = 0.1
_MIN_TIMEOUT_SECONDS = 0.001


class Retries:
    """The retries of one call, all within its one timeout."""

    def __init__(
        self, timeout_seconds: float | None, *, retry_unavailable: bool, retry_busy: bool, peer: Peer | None = None
    ) -> None:
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._retry_unavailable = retry_unavailable
        self._retry_busy = retry_busy
        self._num_unavailable = 0
        self._peer = peer

    def remaining_seconds(self) -> float | None:
        """What is left of the timeout, if there is one. Never below a millisecond, so that gRPC sees it pass."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), _MIN_TIMEOUT_SECONDS)

    def delay_seconds(self, error: ClientError) -> float | None:
        """How long to wait before the call is retried; None if it is not.

        Args:
            error: How the call failed, before any message arrived.
        """
        delay = None
        if isinstance(error, BusyError) and self._retry_busy and error.retry_after_seconds is not None:
            # Never early, and spread over time, since other clients were given the same delay.
            delay = error.retry_after_seconds * random.uniform(1.0, 1.5)
        elif (
            isinstance(error, UnavailableError)
            and self._retry_unavailable
            and self._num_unavailable < _MAX_UNAVAILABLE_RETRIES
        ):
            delay = _FIRST_BACKOFF_SECONDS * 2**self._num_unavailable * random.uniform(0.8, 1.2)
            self._num_unavailable += 1
        remaining = self.remaining_seconds()
        return None if delay is None or (remaining is not None and delay >= remaining) else delay

    def delay_or_raise(self, error: ClientError, cause: Exception) -> float:
        """As delay_seconds.

        Raises:
            ClientError: The call is not retried; this is its error.
        """
        delay_seconds = self.delay_seconds(error)
        if delay_seconds is None:
            raise self.explained(error) from cause
        return delay_seconds

    def explained(self, error: ClientError) -> ClientError:
        """The error with a text for people, if gRPC's own is about the connection."""
        if self._peer is None or not isinstance(error, UnavailableError):
            return error
        return self._peer.explained(error)
