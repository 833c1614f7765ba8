"""Llama-4's MoE block, whose router scales what experts take in rather than what they give out.

An expert is not linear, so that the score cannot be a routing weight. Each row is sent scaled, once for each of its
experts, with a routing weight of 1: the published models choose one expert per token, so that it is no row more. (What
transformers computes of the experts that were not chosen is their output for a row of zeros, which is zero.)
"""

from typing import Any

import torch
from torch import nn
from transformers.models.llama4 import modeling_llama4

from gpu_service.blocks.block_experts import BlockExperts


class Llama4Block(nn.Module):
    """In the place of Llama4TextMoe."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.experts = BlockExperts(config)
        self.router = modeling_llama4.Llama4Router(config)
        self.shared_expert = modeling_llama4.Llama4TextMLP(config)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[..., hidden] -> [rows, hidden], and the router's logits [rows, experts]."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores, logits = self.router(rows)
        expert_ids = scores.topk(self.router.top_k, dim=1).indices
        scaled = (rows[:, None] * scores.gather(1, expert_ids)[:, :, None]).flatten(0, 1)
        each = expert_ids.reshape(-1, 1), torch.ones(len(scaled), 1, dtype=scaled.dtype, device=scaled.device)
        work = self.experts.begin(scaled, *each)
        shared: torch.Tensor = self.shared_expert(rows)
        routed = self.experts.finish(work, scaled, *each)
        return shared + routed.view(*expert_ids.shape, -1).sum(1), logits
