"""The experts of Switch Transformers, which are told by a mask which rows they get: none beyond their capacity.

The router, transformers' own, counts the capacity for each sequence, over the tokens of one forward. What it drops goes
to no expert, and its output is zero, so that the residual alone goes on.
"""

from types import SimpleNamespace

import torch

from gpu_service.moe.layer import MoeLayer


class SwitchExperts(MoeLayer):
    """In the place of SwitchTransformersExperts."""

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
        chosen, expert_ids = selected_experts.max(-1)
        return super().forward(hidden, expert_ids.masked_fill(chosen == 0, -1), routing_weights)
