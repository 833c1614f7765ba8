"""The streams of layers that are open: how many there may be, which are idle, and which give way to another."""

import threading
import time
from collections.abc import Iterator

import grpc

from fiddler import rpc
from fiddler.v1 import experts_pb2

SILENT_SECONDS = 10.0
"""How long a stream without a message keeps its place when another wants it. A GPU service that lost it reconnects."""


class Streams:
    """Counts the streams that are open. For any thread."""

    def __init__(self, most: int) -> None:
        """None is open yet.

        Args:
            most: The most streams open at one time.
        """
        self._most = most
        self._lock = threading.Lock()
        self._open: set[grpc.ServicerContext] = set()
        self._silent: dict[grpc.ServicerContext, float] = {}  # since when, in the order in which they were opened
        self._idle: set[grpc.ServicerContext] = set()
        self._stopping = False

    def enter(self, context: grpc.ServicerContext) -> None:
        """Counts a stream that begins. If all places are taken, ends one that has been silent since it was opened.

        Raises:
            StatusError: All places are taken by streams that are in use.
        """
        now = time.monotonic()
        with self._lock:
            if len(self._open) >= self._most:
                self._end_silent_stream(now)
            self._open.add(context)
            self._silent[context] = now

    def leave(self, context: grpc.ServicerContext) -> None:
        """Counts a stream that has ended; without effect if another has its place."""
        with self._lock:
            self._open.discard(context)
            self._silent.pop(context, None)

    def next(
        self, requests: Iterator[experts_pb2.RunRequest], context: grpc.ServicerContext
    ) -> experts_pb2.RunRequest | None:
        """A stream's next message; None at the stream's end."""
        with self._lock:
            if self._stopping:
                return None
            self._idle.add(context)
        try:
            request = next(requests, None)
        finally:
            with self._lock:
                self._idle.discard(context)
                self._silent.pop(context, None)
        return request

    def heard(self, context: grpc.ServicerContext) -> None:
        """Notes that a stream's caller sent a message by another way, which keeps its place."""
        with self._lock:
            self._silent.pop(context, None)

    def end_idle(self) -> None:
        """Ends the streams that wait for a message at once, and every other one after its answer."""
        with self._lock:
            self._stopping = True
            for context in self._idle:
                context.cancel()

    def _end_silent_stream(self, now: float) -> None:
        longest = next(iter(self._silent), None)
        if longest is None or now - self._silent[longest] < SILENT_SECONDS:
            raise rpc.StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._most} streams are open already")
        del self._silent[longest]
        self._open.discard(longest)
        longest.cancel()
