"""Publishes which experts are chosen and resident, however many there are.

Each expert of each layer has series of its own up to 20,000 pairs of layer and expert. Beyond that, the hottest experts
of each layer are named, and the others are seen in their bands: neighbouring experts, whose selections are added up. A
band counts all of its experts, the hottest included: a count of the others only would fall when an expert becomes hot.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from fiddler.checkpoint import Checkpoint
from fiddler.exposition import DenseMetric, SeriesNames
from fiddler.metrics import CollectedMetric, by_label, by_two_labels, single
from gpu_service import metrics
from gpu_service.moe.dispatcher import Dispatcher

MOST_PAIRS = 20_000
"""Layers x experts, up to which "auto" publishes each expert."""
_MOST_BANDS = 32  # of a layer: what fits side by side on a dashboard
_NUM_HOTTEST = 8  # of each layer

ByExpert = Literal["auto", "on", "off"]


class RoutingCollector(Collector):
    """How often experts were chosen, where they were computed, and which are resident on the device."""

    def __init__(self, dispatcher: Dispatcher, checkpoint: Checkpoint, by_expert: ByExpert) -> None:
        """Reads nothing yet.

        Args:
            dispatcher: Counts.
            checkpoint: The layers.
            by_expert: Whether to publish experts and their bands; auto: bands, and each expert of each layer if there
                are at most MOST_PAIRS, else the hottest ones.
        """
        self._dispatcher = dispatcher
        self._num_experts = [layer.num_experts for layer in checkpoint.layers]
        self._layers = [str(layer.decoder_layer) for layer in checkpoint.layers]
        self._is_off = by_expert == "off"
        names_each = by_expert == "on" or (by_expert == "auto" and sum(self._num_experts) <= MOST_PAIRS)
        self._experts = _Experts.of(self._layers, self._num_experts) if names_each else None
        self._bands = [bands(count) for count in self._num_experts]
        pairs = [(layer, name) for layer, own in zip(self._layers, self._bands, strict=True) for name, _ in own]
        self._selections_by_band, self._resident_by_band = (
            SeriesNames(metric.name, metric.labels, pairs)
            for metric in (metrics.EXPERT_SELECTIONS_BY_BAND, metrics.BAND_RESIDENT)
        )

    @override
    def collect(self) -> Iterable[Metric]:
        selections, orchestration = self._dispatcher.selections, self._dispatcher.orchestration
        layers = self._layers
        yield by_two_labels(metrics.EXPERT_SELECTIONS, layers, selections.read_routes())
        yield by_label(metrics.EXPERT_IMBALANCE, dict(zip(layers, selections.read_imbalance(), strict=True)))
        resident = [set(orchestration.resident(layer)) for layer in range(len(layers))]
        num_resident = [len(experts) for experts in resident]
        yield by_label(metrics.RESIDENT_EXPERTS, dict(zip(layers, num_resident, strict=True)))
        yield single(metrics.EXPERT_SLOTS, orchestration.num_slots)
        if not self._is_off:
            yield from self._by_expert(selections.read(), resident)

    def _by_expert(self, counts: Sequence[Sequence[int]], resident: Sequence[set[int]]) -> Iterator[Metric]:
        chosen: list[float] = []
        there: list[float] = []
        for layer, layer_bands in enumerate(self._bands):
            chosen += [sum(counts[layer][experts.start : experts.stop]) for _, experts in layer_bands]
            there += [_share(experts, resident[layer]) for _, experts in layer_bands]
        yield _dense(metrics.EXPERT_SELECTIONS_BY_BAND, self._selections_by_band, chosen)
        yield _dense(metrics.BAND_RESIDENT, self._resident_by_band, there)
        if self._experts is not None:
            yield from self._experts.metrics(counts, resident)
            return
        hottest = self._dispatcher.selections.read_hottest(_NUM_HOTTEST)
        shares = [{str(expert): share for expert, share in layer.items()} for layer in hottest]
        yield by_two_labels(metrics.HOT_EXPERT_SHARE, self._layers, shares)


def bands(num_experts: int) -> list[tuple[str, range]]:
    """A layer's bands: the names, which sort as the numbers do, and the experts of each."""
    size = math.ceil(num_experts / _MOST_BANDS)
    digits = len(str(num_experts - 1))
    found = []
    for first in range(0, num_experts, size):
        experts = range(first, min(first + size, num_experts))
        last = f"-{experts[-1]:0{digits}}" if len(experts) > 1 else ""
        found.append((f"{first:0{digits}}{last}", experts))
    return found


def _share(experts: range, resident: set[int]) -> float:
    return sum(expert in resident for expert in experts) / len(experts) if resident else 0.0


@dataclass(frozen=True, slots=True)
class _Experts:
    """The series of each expert."""

    selections: SeriesNames
    resident: SeriesNames
    num_experts: Sequence[int]

    @classmethod
    def of(cls, layers: Sequence[str], num_experts: Sequence[int]) -> "_Experts":
        """The series of all experts of all layers."""
        pairs = [
            (layer, str(expert)) for layer, count in zip(layers, num_experts, strict=True) for expert in range(count)
        ]
        selections, resident = (
            SeriesNames(metric.name, metric.labels, pairs)
            for metric in (metrics.EXPERT_SELECTIONS_BY_EXPERT, metrics.EXPERT_RESIDENT)
        )
        return cls(selections, resident, num_experts)

    def metrics(self, counts: Sequence[Sequence[int]], resident: Sequence[set[int]]) -> Iterator[Metric]:
        """One scrape's."""
        flags: list[int] = []
        for count, there in zip(self.num_experts, resident, strict=True):
            layer = [0] * count
            for expert in there:
                layer[expert] = 1
            flags += layer
        yield _dense(metrics.EXPERT_SELECTIONS_BY_EXPERT, self.selections, [each for layer in counts for each in layer])
        yield _dense(metrics.EXPERT_RESIDENT, self.resident, flags)


def _dense(metric: CollectedMetric, series: SeriesNames, values: Sequence[float]) -> Metric:
    return DenseMetric(metric.name, metric.kind, metric.description, series, values)
