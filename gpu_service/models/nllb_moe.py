"""The experts of NLLB-MoE (NLLB Team, arXiv 2207.04672, section 6.2); each row uses the two likeliest.

transformers 5 passes a mask of the first choices to experts that expect ids, so that all rows go to experts 0 and 1.
Here they go to the experts that the router chose, as in fairseq, which trained the model, and in transformers 4.
"""

from typing import Any

import torch

from gpu_service.models.config_fields import Settings, require_one_of
from gpu_service.moe.layer import MoeLayer

_EXPERTS_PER_TOKEN = 2


class NllbExperts(MoeLayer):
    """Replaces NllbMoeExperts."""

    def __init__(self, config: Any, ffn_dim: int) -> None:
        super().__init__(config)
        self._kept = 1 - config.moe_token_dropout  # the share of outputs that training does not drop

    def forward(self, hidden: torch.Tensor, first_choices: torch.Tensor, routing_weights: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] -> [rows, hidden].

        Args:
            hidden: [rows, hidden].
            first_choices: [rows, experts]; not used.
            routing_weights: [rows, experts]: 0 for experts that were not chosen or have no room.
        """
        weights, expert_ids = routing_weights.topk(_EXPERTS_PER_TOKEN, dim=-1)
        return super().forward(hidden, expert_ids.masked_fill(weights == 0, -1), weights * self._kept)


def check_config(config: Any, settings: Settings) -> None:
    """Checks that the router chooses experts without drawing random numbers.

    Raises:
        FieldError: It draws some.
    """
    require_one_of(settings, "second_expert_policy", ("all",), default="all")


def num_experts_per_token(config: Any) -> int:
    """How many experts each token uses in a MoE layer."""
    return _EXPERTS_PER_TOKEN
