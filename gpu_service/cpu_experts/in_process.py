"""Computes experts in this process, from the checkpoint's memory map: slower than the service, with the same answer."""

import time
from dataclasses import dataclass

import torch
from typing_extensions import override

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import LayerWeights, layer_combination, layer_forward, layer_weights
from gpu_service.cpu_experts.backend import RemoteExperts


@dataclass(frozen=True, slots=True)
class _Computed:
    """A PendingOutput that is computed already."""

    output: torch.Tensor
    compute_seconds: float

    def join(self) -> torch.Tensor:
        return self.output


class InProcessExperts(RemoteExperts):
    """Computes with PyTorch on the CPU. For one thread."""

    available = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Maps the checkpoint's experts; no weight is read before it is used.

        Raises:
            UnknownActivationError: The model's activation function is not known.
        """
        self._checkpoint = checkpoint
        self._combinations = [layer_combination(layer.activation) for layer in checkpoint.layers]
        self._weights: dict[int, LayerWeights] = {}

    @override
    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> _Computed:
        began = time.monotonic()
        weights = self._weights.get(layer)
        if weights is None:
            weights = self._weights[layer] = layer_weights(self._checkpoint, self._checkpoint.layers[layer])
        output = layer_forward(weights, self._combinations[layer], hidden, expert_ids, routing_weights)
        return _Computed(output, time.monotonic() - began)
