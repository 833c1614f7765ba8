"""What each layer took and what the costs had said, summed up. Read by collectors.py at scrape time."""

import math
from collections import deque
from typing import Final, Literal

from gpu_service.device_timer import Span

Part = Literal["cpu", "hop", "gpu", "transfer"]
PARTS: Final[tuple[Part, ...]] = ("cpu", "hop", "gpu", "transfer")
"""cpu: experts in the CPU expert service, as that says. hop: the way there and back, of messages that were waited for.
gpu: resident and streamed experts on the device, waiting for copies included. transfer: the copies of streamed ones."""


class LayerCosts:
    """Seconds by layer. One writer."""

    def __init__(self, num_layers: int) -> None:
        self.seconds = [0.0] * num_layers
        """Wall seconds of the engine's thread."""
        self.overlap = [0.0] * num_layers
        self.predicted: dict[Part, list[float]] = {part: [0.0] * num_layers for part in PARTS}
        self.actual: dict[Part, list[float]] = {part: [0.0] * num_layers for part in PARTS}
        self._open = deque[tuple[int, Span, float, float]]()

    def add(self, part: Part, layer: int, predicted_seconds: float, actual_seconds: float) -> None:
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
