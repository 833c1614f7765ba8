"""`python -m benchmarks.metrics.switched_service SERVICE ...`: a service that stops and resumes counting on SIGUSR1.

While it is stopped, the counting functions are replaced by one that returns at once: /metrics stands still, and nothing
else differs.
"""

import importlib
import signal
import sys
from types import FrameType
from typing import Any

from fiddler import process

process.prepare()

# modules that import grpc are imported after the process is prepared
from prometheus_client import Counter, Gauge, Histogram  # noqa: E402


class _Switch:
    """Switches counting functions on and off."""

    def __init__(self) -> None:
        self._functions: list[tuple[Any, str, Any]] = []
        self._is_on = True

    def add(self, owner: Any, *names: str) -> None:
        """Adds methods of a class."""
        self._functions += [(owner, name, getattr(owner, name)) for name in names]

    def flip(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal: switches all functions over."""
        self._is_on = not self._is_on
        for owner, name, function in self._functions:
            setattr(owner, name, function if self._is_on else _nothing)


def _nothing(*arguments: object, **named: object) -> int:
    return 0


def main() -> int:
    """Runs the service that the first argument names, and returns its exit status."""
    service = sys.argv.pop(1)
    switch = _Switch()
    if service == "gpu_service":
        _add_gpu_service(switch)
    else:
        from cpu_expert_service.service import ExpertServicer

        switch.add(ExpertServicer, "_count")
    signal.signal(signal.SIGUSR1, switch.flip)
    return int(importlib.import_module(f"{service}.__main__").main())


def _add_gpu_service(switch: _Switch) -> None:
    from fiddler.v1 import experts_pb2
    from gpu_service.moe.counters import LayerCosts, SelectionCounts

    switch.add(Counter, "inc")
    switch.add(Gauge, "set")
    switch.add(Histogram, "observe")
    switch.add(LayerCosts, "add", "add_device", "add_layer")
    switch.add(SelectionCounts, "add", "add_route")
    # only the byte counters call it
    for message in (experts_pb2.RunRequest, experts_pb2.RunResponse):
        switch.add(message, "ByteSize")


if __name__ == "__main__":
    sys.exit(main())
