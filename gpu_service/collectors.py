"""Publishes the numbers that other parts count, read at each request for /metrics. metrics.py says what they mean.

expert_collector.py has those of single experts.
"""

import math
from collections.abc import Callable, Iterable

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from fiddler.checkpoint import Checkpoint
from fiddler.metrics import by_label, by_two_labels, single
from gpu_service import metrics
from gpu_service.engine.engine import Engine
from gpu_service.moe.dispatcher import Dispatcher

_COPY_REASONS = ("demand", "prefetch", "swap")


class CostCollector(Collector):
    """The times of layers, predicted and actual, and the costs that predict them."""

    def __init__(self, dispatcher: Dispatcher, checkpoint: Checkpoint) -> None:
        self._dispatcher = dispatcher
        self._layers = [str(layer.decoder_layer) for layer in checkpoint.layers]

    @override
    def collect(self) -> Iterable[Metric]:
        costs = self._dispatcher.costs
        yield by_label(metrics.LAYER_SECONDS, dict(zip(self._layers, costs.seconds, strict=True)))
        yield by_label(metrics.LAYER_OVERLAP_SECONDS, dict(zip(self._layers, costs.overlap, strict=True)))
        for family, parts in (
            (metrics.LAYER_PREDICTED_SECONDS, costs.predicted),
            (metrics.LAYER_ACTUAL_SECONDS, costs.actual),
        ):
            by_layer: list[dict[str, float]] = [
                dict(zip(parts, seconds, strict=True)) for seconds in zip(*parts.values(), strict=True)
            ]
            yield by_two_labels(family, self._layers, by_layer)
        copied = {**dict.fromkeys(_COPY_REASONS, 0), **self._dispatcher.orchestration.copied_bytes}
        yield by_label(metrics.EXPERT_COPIED_BYTES, copied)
        yield from self._expected()

    def _expected(self) -> Iterable[Metric]:
        """The costs of the first MoE layer; those of others are proportional to their experts' bytes."""
        latency = self._dispatcher.orchestration.latency
        if latency is None:
            return
        now = latency.costs(0)
        seconds = {"cpu": now.cpu[1], "gpu": now.gpu[1], "transfer": now.transfer, "round_trip": now.round_trip}
        if latency.gpu is None:
            del seconds["gpu"], seconds["transfer"]
        corrections = {"cpu": latency.cpu_correction, "transfer": latency.transfer_correction}
        yield by_label(metrics.COST_SECONDS, {of: value for of, value in seconds.items() if value < math.inf})
        yield by_label(metrics.COST_CORRECTION, {of: each.factor for of, each in corrections.items()})


class EngineCollector(Collector):
    """The engine's requests and memory, in use and in total."""

    def __init__(self, engine: Engine, max_waiting: int, degraded_seconds: Callable[[], float]) -> None:
        self._engine = engine
        self._max_waiting = max_waiting
        self._degraded_seconds = degraded_seconds

    @override
    def collect(self) -> Iterable[Metric]:
        engine = self._engine
        yield single(metrics.REQUESTS_RUNNING, engine.num_running)
        yield single(metrics.REQUESTS_WAITING, engine.num_waiting)
        yield single(metrics.REQUESTS_WAITING_LIMIT, self._max_waiting)
        yield single(metrics.KV_USED_SLOTS, engine.used_rows)
        yield single(metrics.KV_CAPACITY_SLOTS, engine.max_rows)
        yield single(metrics.KV_USED_BYTES, engine.used_kv_bytes)
        yield single(metrics.KV_CAPACITY_BYTES, engine.kv_bytes)
        yield single(metrics.DEGRADED_SECONDS, self._degraded_seconds())


def publish(*collectors: Collector, registry: CollectorRegistry = REGISTRY) -> None:
    """Registers collectors, so that each request for /metrics reads them."""
    for collector in collectors:
        registry.register(collector)
