"""The words for what a kernel computes: one expert's matrices, and one layer's experts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One expert's matrices, views of the checkpoint's memory map, and its biases where it has any."""

    gate: torch.Tensor | None
    """[intermediate, hidden]; None where the expert is not gated."""
    up: torch.Tensor
    """[intermediate, hidden]"""
    down: torch.Tensor
    """[hidden, intermediate]"""
    gate_bias: torch.Tensor | None = None
    """[intermediate]"""
    up_bias: torch.Tensor | None = None
    """[intermediate]"""
    down_bias: torch.Tensor | None = None
    """[hidden]"""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The experts of one layer, by id. All are of one shape, dtype and layout."""

    experts: tuple[ExpertWeights, ...]
    activation: str
    """What transformers calls the function between an expert's projections."""
    alpha: float = 1.702
    """Of the activation clamped_swiglu, as `limit` is."""
    limit: float = 7.0


LayerFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden rows [rows, hidden], expert ids [rows, k] int32, routing weights [rows, k] float32) -> [rows, hidden].

Each row becomes the sum of routing weight x expert(row) over its experts, summed in float32, in the dtype of the hidden
rows. Expert id -1 is left out: it is computed elsewhere.
"""
