"""Llama-4's MoE block, whose router scales the inputs of experts rather than their outputs.

An expert is not linear, so the score cannot be a routing weight: each row is sent scaled, with a routing weight of 1,
once for each of its experts. The published models choose one expert per token, so no rows are added. (transformers also
computes the experts that were not chosen, for a row of zeros, which gives zero.)
"""

from typing import Any

import torch
from torch import nn
from transformers.models.llama4 import modeling_llama4

from gpu_service.moe.layer import BlockExperts


class Llama4Block(nn.Module):
    """Replaces Llama4TextMoe."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.experts = BlockExperts(config)
        self.router = modeling_llama4.Llama4Router(config)  # type: ignore[no-untyped-call]
        self.shared_expert = modeling_llama4.Llama4TextMLP(config)  # type: ignore[no-untyped-call]

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[..., hidden] -> outputs [rows, hidden] and the router's logits [rows, experts]."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        all_scores, logits = self.router(rows)
        scores, expert_ids = all_scores.topk(self.router.top_k, dim=1)
        ones = torch.ones_like(scores[:, :1])
        # slices: an index made of a Python list is copied to the device, which the host waits for
        choices = [slice(choice, choice + 1) for choice in range(self.router.top_k)]
        sent = [(rows * scores[:, choice], expert_ids[:, choice], ones) for choice in choices]
        wait = self.experts.begin(*sent[0])
        output: torch.Tensor = self.shared_expert(rows)
        output = output + wait()
        for each in sent[1:]:
            output = output + self.experts(*each)
        return output, logits
