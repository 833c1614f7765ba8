"""Publishes the numbers that other parts count, read at each request for /metrics. metrics.py says what they mean."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from fiddler.checkpoint import Checkpoint
from fiddler.metrics import CollectedMetric
from gpu_service import metrics
from gpu_service.engine.engine import Engine
from gpu_service.moe.dispatcher import Dispatcher

_MOST_SERIES = 1024  # layers x experts, up to which "auto" publishes each expert
_COPY_REASONS = ("demand", "prefetch", "swap")

ByExpert = Literal["auto", "on", "off"]


class RoutingCollector(Collector):
    """How often experts were chosen, where they were computed, and which are resident on the device."""

    def __init__(self, dispatcher: Dispatcher, checkpoint: Checkpoint, by_expert: ByExpert) -> None:
        """Reads nothing yet.

        Args:
            dispatcher: Counts.
            checkpoint: The layers.
            by_expert: Whether to publish each expert of each layer; auto: if there are at most 1024.
        """
        self._dispatcher = dispatcher
        self._num_experts = [layer.num_experts for layer in checkpoint.layers]
        self._layers = [str(layer.decoder_layer) for layer in checkpoint.layers]
        self._publishes_experts = by_expert == "on" or (by_expert == "auto" and sum(self._num_experts) <= _MOST_SERIES)

    @override
    def collect(self) -> Iterable[Metric]:
        selections, orchestration = self._dispatcher.selections, self._dispatcher.orchestration
        yield _by_two(metrics.EXPERT_SELECTIONS, self._layers, selections.read_routes())
        yield _by_layer(metrics.EXPERT_IMBALANCE, self._layers, selections.read_imbalance())
        resident = []
        for layer, num_experts in enumerate(self._num_experts):
            there = orchestration.resident(layer)
            resident.append({str(expert): int(expert in there) for expert in range(num_experts)})
        yield _by_layer(metrics.RESIDENT_EXPERTS, self._layers, [sum(layer.values()) for layer in resident])
        yield _value(metrics.EXPERT_SLOTS, orchestration.num_slots)
        if self._publishes_experts:
            chosen = [{str(expert): count for expert, count in enumerate(counts)} for counts in selections.read()]
            yield _by_two(metrics.EXPERT_SELECTIONS_BY_EXPERT, self._layers, chosen)
            yield _by_two(metrics.EXPERT_RESIDENT, self._layers, resident)


class CostCollector(Collector):
    """The times of layers, predicted and actual, and the costs that predict them."""

    def __init__(self, dispatcher: Dispatcher, checkpoint: Checkpoint) -> None:
        self._dispatcher = dispatcher
        self._layers = [str(layer.decoder_layer) for layer in checkpoint.layers]

    @override
    def collect(self) -> Iterable[Metric]:
        costs = self._dispatcher.costs
        yield _by_layer(metrics.LAYER_SECONDS, self._layers, costs.seconds)
        yield _by_layer(metrics.LAYER_OVERLAP_SECONDS, self._layers, costs.overlap)
        for family, parts in (
            (metrics.LAYER_PREDICTED_SECONDS, costs.predicted),
            (metrics.LAYER_ACTUAL_SECONDS, costs.actual),
        ):
            by_layer: list[dict[str, float]] = [
                dict(zip(parts, seconds, strict=True)) for seconds in zip(*parts.values(), strict=True)
            ]
            yield _by_two(family, self._layers, by_layer)
        copied = {**dict.fromkeys(_COPY_REASONS, 0), **self._dispatcher.orchestration.copied_bytes}
        yield _by_label(metrics.EXPERT_COPIED_BYTES, copied)
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
        yield _by_label(metrics.COST_SECONDS, {of: value for of, value in seconds.items() if value < math.inf})
        yield _by_label(metrics.COST_CORRECTION, {of: each.factor for of, each in corrections.items()})


class EngineCollector(Collector):
    """The engine's requests and memory, in use and in total."""

    def __init__(self, engine: Engine, max_waiting: int, degraded_seconds: Callable[[], float]) -> None:
        self._engine = engine
        self._max_waiting = max_waiting
        self._degraded_seconds = degraded_seconds

    @override
    def collect(self) -> Iterable[Metric]:
        engine = self._engine
        yield _value(metrics.REQUESTS_RUNNING, engine.num_running)
        yield _value(metrics.REQUESTS_WAITING, engine.num_waiting)
        yield _value(metrics.REQUESTS_WAITING_LIMIT, self._max_waiting)
        yield _value(metrics.KV_USED_SLOTS, engine.used_rows)
        yield _value(metrics.KV_CAPACITY_SLOTS, engine.max_rows)
        yield _value(metrics.KV_USED_BYTES, engine.used_kv_bytes)
        yield _value(metrics.KV_CAPACITY_BYTES, engine.kv_bytes)
        yield _value(metrics.DEGRADED_SECONDS, self._degraded_seconds())


def publish(*collectors: Collector, registry: CollectorRegistry = REGISTRY) -> None:
    """Registers collectors, so that each request for /metrics reads them."""
    for collector in collectors:
        registry.register(collector)


def _value(family: CollectedMetric, value: float) -> Metric:
    metric = family.new()
    metric.add_metric([], value)
    return metric


def _by_label(family: CollectedMetric, values: Mapping[str, float]) -> Metric:
    metric = family.new()
    for label, value in values.items():
        metric.add_metric([label], value)
    return metric


def _by_layer(family: CollectedMetric, layers: Sequence[str], values: Sequence[float]) -> Metric:
    return _by_label(family, dict(zip(layers, values, strict=True)))


def _by_two(family: CollectedMetric, layers: Sequence[str], values: Sequence[Mapping[str, float]]) -> Metric:
    """Values of each layer by a second label."""
    metric = family.new()
    for layer, by_label in zip(layers, values, strict=True):
        for label, value in by_label.items():
            metric.add_metric([layer, label], value)
    return metric
