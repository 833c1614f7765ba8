"""JetMoE's MLP block, whose router returns rows sorted by expert, and which adds a bias to the sum of the experts.

JetMoE's attention has experts, too: a quarter of all expert weights, for the query before the attention and the output
after it. They stay with the attention, in the dense part (decision 13).
"""

from typing import Any

import torch
from torch import nn
from transformers.models.jetmoe import modeling_jetmoe

from gpu_service.moe.layer import MoeLayer


class JetMoeBlock(nn.Module):
    """Replaces JetMoeMoE."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.hidden_size))
        self.router = modeling_jetmoe.JetMoeTopKGating(
            config.hidden_size, config.num_local_experts, config.num_experts_per_tok
        )
        self.experts = MoeLayer(config)

    def forward(self, layer_input: torch.Tensor) -> torch.Tensor:
        """[sequences, tokens, hidden] -> the same."""
        rows = layer_input.reshape(-1, layer_input.shape[-1])
        # what JetMoeTopKGating computes before it sorts
        top_logits, expert_ids = self.router.layer(rows).float().topk(self.router.top_k, dim=1)
        routing_weights = torch.softmax(top_logits, dim=1).type_as(rows)
        output: torch.Tensor = self.experts(rows, expert_ids, routing_weights) + self.bias
        return output.view(layer_input.shape)
