"""The dense part where the host computes it, with `--device cpu`: decision 18."""

from typing import Final

import torch
from torch import nn

FEW_PRODUCTS: Final = 2**20
"""Of one linear layer: to wake another thread for half of them takes longer than to compute them."""


class RowLinear(nn.Linear):
    """A bfloat16 linear layer without a bias that takes one row as a vector.

    PyTorch's product of a matrix and a vector reads the matrix faster than its product of two matrices does, and both
    sum in float32.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Input times the transposed weight, [..., out_features], as nn.Linear does it."""
        if input.numel() != self.in_features:
            return super().forward(input)
        return torch.mv(self.weight, input.reshape(-1)).view(*input.shape[:-1], self.out_features)


def install(module: nn.Module) -> None:
    """Turns the linear layers that may be a RowLinear into one, in place. Their weights stay where they are."""
    for child in module.modules():
        if type(child) is nn.Linear and child.bias is None and child.weight.dtype is torch.bfloat16:
            child.__class__ = RowLinear


def products_per_row(module: nn.Module) -> int:
    """Products of one row with a linear layer, on average over those that the module has; 0 where it has none."""
    sizes = [child.weight.numel() for child in module.modules() if isinstance(child, nn.Linear)]
    return sum(sizes) // len(sizes) if sizes else 0
