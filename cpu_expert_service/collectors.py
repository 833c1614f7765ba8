"""Reads numbers of other parts when /metrics is scraped. metrics.py says what each one means."""

from collections.abc import Iterable

from prometheus_client import REGISTRY
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from cpu_expert_service import metrics
from cpu_expert_service.residency import Residency
from cpu_expert_service.runner import Runner


class RunnerCollector(Collector):
    """Publishes how long the runner was idle, and how much of its weights is in memory."""

    def __init__(self, runner: Runner) -> None:
        """Reads nothing yet; the weights may still be copied elsewhere."""
        self._runner = runner
        self._weights = runner.weights
        self._residency = Residency(self._weights)

    def collect(self) -> Iterable[Metric]:
        """Yields both; the second one only if the operating system reports it."""
        idle = metrics.IDLE_SECONDS.new()
        idle.add_metric([], self._runner.idle_seconds)
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


def publish(runner: Runner) -> None:
    """Adds the runner's numbers to /metrics."""
    REGISTRY.register(RunnerCollector(runner))
