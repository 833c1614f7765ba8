"""Counts which experts were chosen and where they were computed. Read by collectors.py at scrape time."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from gpu_service.moe.device_timer import Span

ROUTES = ("resident", "streamed", "remote")
"""Where an expert is computed: here from weights that lie on the device, here from weights that are brought there for
the batch, by the CPU expert service."""
_HALF_LIFE_PER_EXPERT = 64  # selections: enough for chance to move the largest of eight by a few per cent only


class SelectionCounts:
    """How often each expert of each layer was chosen, and by which route it was computed. One writer."""

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
        """Forgets everything."""
        for counts, routes, recent in zip(self._by_expert, self._by_route, self._recent, strict=True):
            counts.fill(0)
            routes.update(dict.fromkeys(ROUTES, 0))
            recent.fill(0)

    def read(self) -> list[list[int]]:
        """Totals by layer and expert."""
        return [counts.tolist() for counts in self._by_expert]

    def read_routes(self) -> list[dict[str, int]]:
        """Totals by layer and route."""
        return [dict(routes) for routes in self._by_route]

    def read_imbalance(self) -> list[float]:
        """By layer, how often its most chosen expert was chosen lately over the mean of all; 1 where none was."""
        means = [float(recent.mean()) for recent in self._recent]
        return [float(recent.max()) / mean if mean else 1.0 for recent, mean in zip(self._recent, means, strict=True)]


CostPart = Literal["cpu", "hop", "gpu", "transfer"]

COST_PARTS: Final[tuple[CostPart, ...]] = ("cpu", "hop", "gpu", "transfer")
"""cpu: experts in the CPU expert service, as that says. hop: the way there and back, of messages that were waited for.
gpu: resident and streamed experts on the device, waiting for copies included. transfer: the copies of streamed ones."""


class LayerCosts:
    """Seconds by layer. One writer."""

    def __init__(self, num_layers: int) -> None:
        self.seconds = [0.0] * num_layers
        """Wall seconds of the engine's thread."""
        self.overlap = [0.0] * num_layers
        self.predicted: dict[CostPart, list[float]] = {part: [0.0] * num_layers for part in COST_PARTS}
        self.actual: dict[CostPart, list[float]] = {part: [0.0] * num_layers for part in COST_PARTS}
        self._open = deque[tuple[int, Span, float, float]]()

    def add(self, part: CostPart, layer: int, predicted_seconds: float, actual_seconds: float) -> None:
        """Adds one timing beside what was expected of it; none where nothing was."""
        if predicted_seconds < math.inf:
            self.predicted[part][layer] += predicted_seconds
            self.actual[part][layer] += actual_seconds

    def add_device(self, layer: int, span: Span, predicted_seconds: float, cpu_seconds: float) -> None:
        """Adds what the device computed for a layer, once it is known how long that took: now or at a later call.

        Args:
            layer: Which.
            span: The device's work.
            predicted_seconds: What was expected of it.
            cpu_seconds: What the other side computed for the layer, beginning at the same time.
        """
        self._open.append((layer, span, predicted_seconds, cpu_seconds))
        while self._open and (seconds := self._open[0][1].seconds) is not None:
            layer, _, predicted_seconds, cpu_seconds = self._open.popleft()
            self.add("gpu", layer, predicted_seconds, seconds)
            self.overlap[layer] += min(seconds, cpu_seconds)

    def clear(self) -> None:
        """Forgets everything."""
        self._open.clear()
        for seconds in (self.seconds, self.overlap, *self.predicted.values(), *self.actual.values()):
            seconds[:] = [0.0] * len(seconds)
