"""Passes one request's events from the engine's thread to the event loop that serves its call."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from gpu_service.engine.events import Best, Event, Failed, Finished, Progress
from gpu_service.errors import SlowReaderError


class EventQueue:
    """A bounded queue with one writer, in any thread, and one reader, in the event loop that made it."""

    def __init__(self, max_events: int, on_overflow: Callable[[], None]) -> None:
        """An empty queue.

        Args:
            max_events: How many may wait to be read, without those that end a generation.
            on_overflow: Called once, from the writer's thread, when another event comes.
        """
        self._max_events = max_events
        self._on_overflow = on_overflow
        self._events: deque[Event] = deque()
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._overflowed = False

    def put(self, event: Event) -> None:
        """Appends an event without blocking. An event too many ends the queue with a SlowReaderError.

        A Best replaces one that still waits, so that a slow reader of a beam search does not overflow the queue, and so
        does a Progress.
        """
        if self._overflowed:
            return
        with self._lock:
            if isinstance(event, Best | Progress) and self._events and type(self._events[-1]) is type(event):
                self._events.pop()
            if len(self._events) >= self._max_events and not isinstance(event, Finished | Failed):
                self._overflowed = True
                event = Failed(SlowReaderError(f"{self._max_events} messages were not read"))
            self._events.append(event)
        if self._overflowed:
            self._on_overflow()
        self._loop.call_soon_threadsafe(self._ready.set)

    async def get(self) -> list[Event]:
        """Waits for an event, and returns all that wait, in order."""
        while not self._events:
            self._ready.clear()
            if not self._events:  # an event may have come before the clear
                await self._ready.wait()
        with self._lock:
            events = list(self._events)
            self._events.clear()
        return events
