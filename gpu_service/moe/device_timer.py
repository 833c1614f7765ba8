"""Times what is enqueued on a device, without waiting for it."""

import time
from collections import deque
from typing import Protocol

import torch
from typing_extensions import override


class Span(Protocol):
    """A stretch of the device's work, from `DeviceTimer.start` to `stop`."""

    @property
    def seconds(self) -> float | None:
        """How long the work took; None until that is known."""
        ...

    def stop(self) -> None:
        """Ends the span: all of its work is enqueued."""
        ...


class HostSpan(Span):
    """On the CPU, where work is done when a call returns."""

    __slots__ = ("_began", "seconds")

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._began = time.perf_counter()

    @override
    def stop(self) -> None:
        self.seconds = time.perf_counter() - self._began


class CudaSpan(Span):
    """On a GPU: the stream itself takes the time, at two events."""

    __slots__ = ("_end", "_free", "_seconds", "_start")

    def __init__(self, free: deque["_Events"]) -> None:
        """Starts the span.

        Args:
            free: Events that no span needs any more: two are taken from here, and given back once they are read.
        """
        self._free = free
        self._seconds: float | None = None
        self._start, self._end = free.popleft() if free else _new_events()
        self._start.record()

    @property
    @override
    def seconds(self) -> float | None:
        if self._seconds is None and self._end.query():  # type: ignore[no-untyped-call]
            self._seconds = self._start.elapsed_time(self._end) / 1e3
            self._free.append((self._start, self._end))
        return self._seconds

    @override
    def stop(self) -> None:
        self._end.record()


_Events = tuple[torch.cuda.Event, torch.cuda.Event]


def _new_events() -> _Events:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    return start, end


class DeviceTimer:
    """Times what one thread enqueues on a device. Makes as many events as there are spans that were not read yet."""

    def __init__(self, device: torch.device) -> None:
        """Times nothing yet."""
        self._is_cuda = device.type == "cuda"
        self._free: deque[_Events] = deque()

    def start(self) -> Span:
        """Starts to time what is enqueued from now on."""
        return CudaSpan(self._free) if self._is_cuda else HostSpan()
