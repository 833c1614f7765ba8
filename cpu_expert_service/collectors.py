"""Reads numbers of other parts when /metrics is scraped. metrics.py says what each one means."""

from collections.abc import Callable, Iterable

from prometheus_client import REGISTRY
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from cpu_expert_service import metrics
from cpu_expert_service.residency import Residency
from cpu_expert_service.runner import Runner
from cpu_expert_service.segments import Segments


class RunnerCollector(Collector):
    """Publishes how long the runner was idle, and how much of its weights is in memory."""

    def __init__(self, runner: Runner, segments: Callable[[], Segments | None]) -> None:
        """Reads nothing yet; the weights may still be copied elsewhere."""
        self._runner = runner
        self._segments = segments
        self._weights = runner.weights
        self._residency = Residency(self._weights)

    def collect(self) -> Iterable[Metric]:
        """Yields both; the second one only if the operating system reports it."""
        idle = metrics.IDLE_SECONDS.new()
        idle.add_metric([], self._idle_seconds())
        yield idle
        if self._weights is not self._runner.weights:
            self._weights = self._runner.weights
            self._residency = Residency(self._weights)
        try:
            resident_bytes = self._residency.resident_bytes()
        except OSError:
            return
        resident = metrics.RESIDENT_BYTES.new()
        resident.add_metric([], resident_bytes)
        yield resident

    def _idle_seconds(self) -> float:
        """Seconds in which neither the runner nor a segment computed."""
        segments = self._segments()
        if segments is None:
            return self._runner.idle_seconds
        return max(0.0, self._runner.idle_seconds - segments.busy_seconds)


def publish(runner: Runner, segments: Callable[[], Segments | None] = lambda: None) -> None:
    """Adds the runner's and the segments' numbers to /metrics."""
    REGISTRY.register(RunnerCollector(runner, segments))
