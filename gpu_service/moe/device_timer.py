"""How long the device takes for what is enqueued on it, without waiting for it."""

import time
from typing import Protocol

import torch


class Span(Protocol):
    """A stretch of the device's work, from `start_span` to `stop`."""

    @property
    def seconds(self) -> float | None:
        """What it took; None while it is not known."""
        ...

    def stop(self) -> None:
        """Says that all of it is enqueued."""
        ...


class HostSpan:
    """On the CPU, where work is done when a call returns."""

    __slots__ = ("_began", "seconds")

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._began = time.perf_counter()

    def stop(self) -> None:
        """See Span."""
        self.seconds = time.perf_counter() - self._began


class CudaSpan:
    """On a GPU: the stream itself takes the time, at two events."""

    __slots__ = ("_end", "_start")

    def __init__(self) -> None:
        self._start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._start.record()

    @property
    def seconds(self) -> float | None:
        """See Span."""
        has_ended = self._end.query()  # type: ignore[no-untyped-call]
        return self._start.elapsed_time(self._end) / 1e3 if has_ended else None

    def stop(self) -> None:
        """See Span."""
        self._end.record()


def start_span(device: torch.device) -> Span:
    """Begins to time what is enqueued on a device from now on."""
    return CudaSpan() if device.type == "cuda" else HostSpan()
