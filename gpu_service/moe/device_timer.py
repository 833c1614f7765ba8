"""Times what is enqueued on a device, without waiting for it."""

import time
from typing import Protocol

import torch
from typing_extensions import override


class Span(Protocol):
    """A stretch of the device's work, from `start_span` to `stop`."""

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

    __slots__ = ("_end", "_start")

    def __init__(self) -> None:
        self._start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._start.record()

    @property
    @override
    def seconds(self) -> float | None:
        has_ended = self._end.query()  # type: ignore[no-untyped-call]
        return self._start.elapsed_time(self._end) / 1e3 if has_ended else None

    @override
    def stop(self) -> None:
        self._end.record()


def start_span(device: torch.device) -> Span:
    """Starts to time what is enqueued on a device from now on."""
    return CudaSpan() if device.type == "cuda" else HostSpan()
