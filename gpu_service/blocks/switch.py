"""The experts of Switch Transformers, which are told by a mask which rows they get: none beyond their capacity.

The router, transformers' own, counts the capacity for each sequence. What it drops goes to no expert, and its output is
zero, so that the residual alone goes on.
"""

from types import SimpleNamespace
from typing import Any

import torch

from gpu_service.moe_layer import MoeLayer


class SwitchExperts(MoeLayer):
    """In the place of SwitchTransformersExperts."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._capacity = config.expert_capacity

    def __getitem__(self, name: str) -> SimpleNamespace:
        """Empty weights for transformers' initialisation, which draws each expert's by its name."""
        return SimpleNamespace(wi=SimpleNamespace(weight=torch.empty(0)), wo=SimpleNamespace(weight=torch.empty(0)))

    def forward(
        self, hidden: torch.Tensor, selected_experts: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        """[rows, hidden] -> [rows, hidden].

        Args:
            hidden: [rows, hidden].
            selected_experts: [rows, 1, experts], 1 where a row goes to an expert; of a row that is dropped, zeros.
            routing_weights: [rows, 1].
        """
        expert_ids = selected_experts.argmax(-1)
        if len(hidden) <= self._capacity:
            return super().forward(
                hidden, expert_ids, routing_weights
            )  # no sequence has more rows than an expert takes
        kept = selected_experts.flatten(1).any(-1).nonzero()[:, 0]
        if len(kept) == len(hidden):
            return super().forward(hidden, expert_ids, routing_weights)
        output = torch.zeros_like(hidden)
        if len(kept):
            output[kept] = super().forward(hidden[kept], expert_ids[kept], routing_weights[kept])
        return output
