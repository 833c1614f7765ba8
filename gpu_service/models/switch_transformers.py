"""The experts of Switch Transformers, which get their rows as a mask: none beyond an expert's capacity.

The router, transformers' own, applies the capacity to each sequence, over the tokens of one forward. A row that it
drops goes to no expert and has an output of zero, so that only the residual is passed on.
"""

from types import SimpleNamespace

import torch

from gpu_service.moe.layer import MoeLayer


class SwitchExperts(MoeLayer):
    """Replaces SwitchTransformersExperts."""

    def __getitem__(self, name: str) -> SimpleNamespace:
        """Empty weights for transformers' initialisation, which fills those of each expert by its name."""
        return SimpleNamespace(wi=SimpleNamespace(weight=torch.empty(0)), wo=SimpleNamespace(weight=torch.empty(0)))

    def forward(
        self, hidden: torch.Tensor, selected_experts: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        """[rows, hidden] -> [rows, hidden].

        Args:
            hidden: [rows, hidden].
            selected_experts: [rows, 1, experts], 1 at the expert that a row goes to; all zeros for a row that is
                dropped.
            routing_weights: [rows, 1].
        """
        chosen, expert_ids = selected_experts.max(-1)
        return super().forward(hidden, expert_ids.masked_fill(chosen == 0, -1), routing_weights)
