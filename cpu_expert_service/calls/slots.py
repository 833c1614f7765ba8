"""How many calls of a kind may hold a thread. A call that sends nothing gives way to the next one."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from fiddler import rpc

_RETRY_SECONDS = 1.0
_SILENT_SECONDS = 0.25
"""How long a call may wait for a message before another call may take its slot. A caller sends it at once."""


class Slots:
    """A number of slots for calls. For any thread."""

    def __init__(self, what: str, count: int) -> None:
        """All are free.

        Args:
            what: The calls, for the error's message, e.g. "health checks".
            count: How many there are.
        """
        self._what = what
        self._count = count
        self._lock = threading.Lock()
        self._taken: dict[Slot, None] = {}  # in the order in which they were taken

    def take(self, context: grpc.ServicerContext) -> "Slot":
        """Takes a slot for a call; ends the call that has been silent longest if all are taken.

        Raises:
            StatusError: All are taken by calls that are not silent.
        """
        slot = Slot(self, context)
        with self._lock:
            if len(self._taken) >= self._count:
                self._end_silent_call()
            self._taken[slot] = None
        return slot

    def give_back(self, slot: "Slot") -> None:
        """Frees a slot; without effect if another call has taken it."""
        with self._lock:
            self._taken.pop(slot, None)

    def _end_silent_call(self) -> None:
        silent = [slot for slot in self._taken if slot.silent_seconds >= _SILENT_SECONDS]
        if not silent:
            raise rpc.busy(f"{self._count} {self._what} are under way already", _RETRY_SECONDS)
        longest = max(silent, key=lambda slot: slot.silent_seconds)
        del self._taken[longest]
        longest.end()


class Slot:
    """One call's slot, given back at the end of `with`."""

    def __init__(self, slots: Slots, context: grpc.ServicerContext) -> None:
        self._slots = slots
        self._context = context
        self._waits_since: float | None = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """How long the call has been waiting for a message."""
        since = self._waits_since
        return 0.0 if since is None else time.monotonic() - since

    def messages(self, requests: Iterator[Any]) -> Iterator[Any]:
        """The call's messages; while one is waited for, the call is silent.

        Raises:
            StatusError: A message could not be parsed.
        """
        while True:
            self._waits_since = time.monotonic()
            try:
                request = next(requests)
            except StopIteration:
                return
            finally:
                self._waits_since = None
            if isinstance(request, rpc.StatusError):
                raise request
            yield request

    def end(self) -> None:
        """Ends the call, whose thread is then free."""
        self._context.cancel()

    def __enter__(self) -> "Slot":
        return self

    def __exit__(self, *_: object) -> None:
        self._slots.give_back(self)
