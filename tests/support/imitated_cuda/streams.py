"""Queues of work, and the points in them that something can wait for: what torch.cuda.Stream and Event are."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from tests.support.imitated_cuda.machine import Machine

Work = Callable[[], Any]


class Point:
    """A place in a stream's queue."""

    def __init__(self, stream: "Stream", index: int) -> None:
        self.stream = stream
        self.index = index

    @property
    def is_reached(self) -> bool:
        """Whether all that was enqueued before it is done."""
        return self.stream.num_done >= self.index


class Stream:
    """Stands for torch.cuda.Stream. What is in its queue is done in order, and not before what it waits for."""

    machine: ClassVar["Machine"]

    def __init__(self, device: Any = None, priority: int = 0, *, is_default: bool = False, **_: Any) -> None:
        self.is_default = is_default
        self.num_done = 0
        self._queue: deque[Work | Point] = deque()
        self._num_enqueued = 0
        self._is_advancing = False
        self.machine.add_stream(self)

    def enqueue(self, work: Work | Point, *, goes_on: bool = True) -> None:
        """Puts work, or a wait for another stream's point, at the end of the queue; then the device may go on."""
        with self.machine.lock:
            if self.machine.captures(work):
                return
            self._queue.append(work)
            self._num_enqueued += 1
            if goes_on:
                self.machine.go_on()

    def advance(self, *, is_forced: bool = False) -> bool:
        """Does what is next in the queue. Returns whether it could; if forced, another stream advances to the point."""
        if not self._queue or self._is_advancing:
            return False
        work = self._queue[0]
        if isinstance(work, Point):
            if not work.is_reached:
                if not is_forced:
                    return False
                work.stream.advance_to(work.index)
        else:
            self._is_advancing = True
            try:
                with _disable_current_modes(), torch.inference_mode():
                    work()
            finally:
                self._is_advancing = False
        self._queue.popleft()
        self.num_done += 1
        return True

    def advance_to(self, index: int) -> None:
        """Does everything up to a place in the queue."""
        with self.machine.lock:
            while self.num_done < index:
                assert self.advance(is_forced=True), "a wait for a point that was never enqueued"

    def advance_to_end(self) -> None:
        """Does everything that is enqueued."""
        self.advance_to(self._num_enqueued)

    def point(self) -> Point:
        """The end of the queue as it is now."""
        return Point(self, self._num_enqueued)

    # what torch.cuda.Stream has

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        event.wait(self)

    def wait_stream(self, other: "Stream") -> None:
        self.enqueue(other.point())

    def synchronize(self) -> None:
        self.machine.wait("a stream is synchronized")
        self.advance_to_end()

    def query(self) -> bool:
        return not self._queue


class Event:
    """Stands for torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, **_: Any) -> None:
        Stream.machine.num_events_made += 1
        self._is_timed = enable_timing
        self._point: Point | None = None

    def record(self, stream: Stream | None = None) -> None:
        machine = Stream.machine
        assert not machine.is_capturing, "an event is recorded while a graph is captured"
        self._point = (stream or machine.current_stream()).point()

    def wait(self, stream: Stream | None = None) -> None:
        if self._point is not None:
            (stream or Stream.machine.current_stream()).enqueue(self._point)

    def query(self) -> bool:
        with Stream.machine.lock:
            return self._point is None or self._point.is_reached

    def synchronize(self) -> None:
        if self._point is not None and not self.query():
            Stream.machine.wait("an event is synchronized")
            self._point.stream.advance_to(self._point.index)

    def elapsed_time(self, end: "Event") -> float:
        for event in (self, end):
            assert event._is_timed, "an event without enable_timing is asked for a time"
            assert event._point is not None, "an event that was not recorded is asked for a time"
            assert event.query(), "an event that is not reached is asked for a time"
        return 0.01
