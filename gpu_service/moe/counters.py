"""Counts how often experts are chosen, where they are computed, and what layers cost. Read by collectors.py."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from gpu_service.moe.device_timer import Span

ROUTES: Final = ("resident", "streamed", "remote")
"""How a selected expert is computed: on the device from resident weights, on the device from weights that are copied
for the batch, or by the CPU expert service."""

CostPart = Literal["cpu", "hop", "gpu", "transfer"]

COST_PARTS: Final[tuple[CostPart, ...]] = ("cpu", "hop", "gpu", "transfer")
"""What a layer's time is made of.

cpu: computing in the CPU expert service, as that service reports it.
hop: the way there and back, of messages whose answer had to be waited for.
gpu: resident and streamed experts on the device, including the wait for copies.
transfer: the copies of streamed experts.
"""

_HALF_LIFE_PER_EXPERT = 64
"""Selections per expert after which older ones count half. With so many, chance moves the largest share of eight
experts by a few per cent only."""


class SelectionCounts:
    """How often each expert of each layer was chosen, and by which route it was computed. One thread writes."""

    def __init__(self, num_experts: Sequence[int]) -> None:
        self._by_expert = [np.zeros(count, dtype=np.int64) for count in num_experts]
        self._by_route = [dict.fromkeys(ROUTES, 0) for _ in num_experts]
        self._recent = [np.zeros(count) for count in num_experts]

    def add(self, layer: int, counts: npt.NDArray[np.int64], total: int) -> None:
        """Adds one batch's [experts] counts, whose sum is `total`."""
        self._by_expert[layer] += counts
        recent = self._recent[layer]
        recent *= 0.5 ** (total / (_HALF_LIFE_PER_EXPERT * len(recent)))
        recent += counts

    def add_route(self, layer: int, route: str, selections: int) -> None:
        """Adds selections that were computed by a route."""
        self._by_route[layer][route] += selections

    def clear(self) -> None:
        """Sets all counts to zero."""
        for counts, routes, recent in zip(self._by_expert, self._by_route, self._recent, strict=True):
            counts.fill(0)
            routes.update(dict.fromkeys(ROUTES, 0))
            recent.fill(0)

    def read(self) -> list[list[int]]:
        """Returns totals by layer and expert."""
        return [counts.tolist() for counts in self._by_expert]

    def read_routes(self) -> list[dict[str, int]]:
        """Returns totals by layer and route."""
        return [dict(routes) for routes in self._by_route]

    def read_hottest(self, most: int) -> list[dict[int, float]]:
        """Returns, by layer, the recent shares of the experts that were chosen most often lately, at most so many."""
        found = []
        for recent in self._recent:
            total = float(recent.sum())
            hottest = np.argsort(-recent, kind="stable")[:most].tolist() if total else []
            found.append({expert: float(recent[expert]) / total for expert in hottest if recent[expert]})
        return found

    def read_imbalance(self) -> list[float]:
        """Returns, by layer, the recent count of the most chosen expert over the mean; 1 if none was chosen."""
        means = [float(recent.mean()) for recent in self._recent]
        return [float(recent.max()) / mean if mean else 1.0 for recent, mean in zip(self._recent, means, strict=True)]


class LayerCosts:
    """Seconds by layer: measured, and as they were predicted. One thread writes."""

    def __init__(self, num_layers: int) -> None:
        self.seconds = [0.0] * num_layers
        """Wall seconds of the engine's thread."""
        self.overlap = [0.0] * num_layers
        """Seconds in which the device and the CPU expert service computed at the same time."""
        self.predicted: dict[CostPart, list[float]] = {part: [0.0] * num_layers for part in COST_PARTS}
        self.actual: dict[CostPart, list[float]] = {part: [0.0] * num_layers for part in COST_PARTS}
        self._open = deque[tuple[int, Span, float, float]]()
        self._step: dict[str, float] = dict.fromkeys(("layers", *COST_PARTS), 0.0)

    def add_layer(self, layer: int, seconds: float) -> None:
        """Adds the wall seconds of one layer."""
        self.seconds[layer] += seconds
        self._step["layers"] += seconds

    def take_step(self) -> dict[str, float]:
        """Returns the seconds since the last call, of all layers together: as a whole ("layers") and by part.

        What a device computed is known late, and may count for the next step.
        """
        step = dict(self._step)
        self._step = dict.fromkeys(step, 0.0)
        return step

    def add(self, part: CostPart, layer: int, *, predicted_seconds: float, actual_seconds: float) -> None:
        """Adds one timing and its prediction. Ignores a timing without a prediction, which is infinite."""
        self._step[part] += actual_seconds
        if predicted_seconds < math.inf:
            self.predicted[part][layer] += predicted_seconds
            self.actual[part][layer] += actual_seconds

    def add_device(self, layer: int, span: Span, *, predicted_seconds: float, cpu_seconds: float) -> None:
        """Adds what the device computed for a layer as soon as its duration is known: now or in a later call.

        Args:
            layer: Index into the checkpoint's MoE layers.
            span: The device's work.
            predicted_seconds: The prediction for it.
            cpu_seconds: What the CPU expert service computed for the layer, starting at the same time.
        """
        self._open.append((layer, span, predicted_seconds, cpu_seconds))
        while self._open and (seconds := self._open[0][1].seconds) is not None:
            layer, _, predicted_seconds, cpu_seconds = self._open.popleft()
            self.add("gpu", layer, predicted_seconds=predicted_seconds, actual_seconds=seconds)
            self.overlap[layer] += min(seconds, cpu_seconds)

    def clear(self) -> None:
        """Sets all sums to zero."""
        self._open.clear()
        for seconds in (self.seconds, self.overlap, *self.predicted.values(), *self.actual.values()):
            seconds[:] = [0.0] * len(seconds)
