"""Bounds health watches, which any caller may open and keep open: grpc.health.v1 needs no token."""

import threading
from collections.abc import Collection

from grpc_health.v1 import health_pb2

from fiddler import rpc

MOST_WATCHES = 64
_RETRY_SECONDS = 1.0
_UNKNOWN = "unknown"


class Watches:
    """Counts the watches that are open. For any thread."""

    def __init__(self, names: Collection[str], most: int = MOST_WATCHES) -> None:
        """None is open yet.

        Args:
            names: The services whose health is known. The servicer keeps something for each name that is watched, so
                all others share one.
            most: The most watches open at one time.
        """
        self._names = frozenset(names)
        self._most = most
        self._open = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Counts a watch that begins.

        Raises:
            StatusError: As many are open as may be.
        """
        with self._lock:
            if self._open >= self._most:
                raise rpc.busy(f"{self._most} health watches are open already", _RETRY_SECONDS)
            self._open += 1

    def leave(self) -> None:
        """Counts a watch that has ended."""
        with self._lock:
            self._open -= 1

    def known(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckRequest:
        """The request, or one for a service that is not known in place of one for any other that is not known."""
        return request if request.service in self._names else health_pb2.HealthCheckRequest(service=_UNKNOWN)
