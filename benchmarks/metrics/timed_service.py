"""`python -m benchmarks.metrics.timed_service SERVICE ...`: a service that says how long it counts, beside its metrics.

benchmark_counting_seconds_total and benchmark_counting_calls_total are added to its /metrics.
"""

import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from fiddler import process

process.prepare()

# what imports grpc is imported after the process is prepared
from prometheus_client import REGISTRY, Counter, Gauge, Histogram  # noqa: E402
from prometheus_client.core import CounterMetricFamily, Metric  # noqa: E402
from prometheus_client.registry import Collector  # noqa: E402

SECONDS, CALLS = "benchmark_counting_seconds", "benchmark_counting_calls"


class _Clock(Collector):
    """What functions took in all: seconds of the CPU, since a thread that is interrupted does not count meanwhile."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._calls = 0

    def watch(self, owner: Any, *names: str) -> None:
        """Puts itself around functions of a class or a module."""
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **keywords)
            finally:
                self._seconds += time.thread_time() - began
                self._calls += 1

        return timed

    def collect(self) -> Iterable[Metric]:
        """Yields both."""
        yield CounterMetricFamily(SECONDS, "Seconds of the CPU in functions that count.", value=self._seconds)
        yield CounterMetricFamily(CALLS, "Calls of functions that count.", value=self._calls)


def main() -> int:
    """Runs the service that the first argument names; returns its exit status."""
    service = sys.argv.pop(1)
    clock = _Clock()
    if service == "gpu_service":
        _watch_gpu_service(clock)
    else:
        from cpu_expert_service.service import ExpertServicer

        clock.watch(ExpertServicer, "_count")
    REGISTRY.register(clock)
    return int(importlib.import_module(f"{service}.__main__").main())


def _watch_gpu_service(clock: _Clock) -> None:
    from fiddler.v1 import experts_pb2
    from gpu_service.layer_costs import LayerCosts
    from gpu_service.selection_counts import SelectionCounts

    clock.watch(Counter, "inc")
    clock.watch(Gauge, "set")
    clock.watch(Histogram, "observe")
    clock.watch(LayerCosts, "add", "add_device")
    clock.watch(SelectionCounts, "add", "add_route")
    # only the counters of bytes ask for it
    for message in (experts_pb2.RunRequest, experts_pb2.RunResponse):
        clock.watch(message, "ByteSize")


if __name__ == "__main__":
    sys.exit(main())
