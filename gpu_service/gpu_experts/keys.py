"""How an expert is named wherever it is placed, copied or computed. Imports no torch, so that placement may use it."""

from collections.abc import Sequence
from typing import TypeAlias

ExpertKey: TypeAlias = tuple[int, int]
"""An expert: its layer, counted among the checkpoint's MoE layers, and its number in that layer."""


def all_keys(num_experts: Sequence[int]) -> list[ExpertKey]:
    """Returns every expert, layer by layer.

    Args:
        num_experts: The number of experts of each MoE layer.
    """
    return [(layer, expert) for layer, count in enumerate(num_experts) for expert in range(count)]


def spread_keys(num_experts: Sequence[int], count: int) -> list[ExpertKey]:
    """Returns experts that are spread evenly over the checkpoint.

    Args:
        num_experts: The number of experts of each MoE layer.
        count: How many to return; all of them if there are fewer.
    """
    keys = all_keys(num_experts)
    count = min(count, len(keys))
    return [keys[len(keys) * number // count] for number in range(count)]
