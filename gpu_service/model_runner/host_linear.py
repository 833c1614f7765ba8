"""Makes linear layers faster on the host, for --device cpu: decision 18."""

from typing import Final

import torch
from torch import nn

FEW_PRODUCTS: Final = 2**20
"""Products in one linear layer up to which one thread is fastest: waking another takes longer than half of them."""


class RowLinear(nn.Linear):
    """A bfloat16 linear layer without a bias that multiplies a single row as a vector.

    PyTorch's product of a matrix and a vector reads the matrix faster than its product of two matrices does, and both
    sum in float32.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Input times the transposed weight, [..., out_features], as nn.Linear computes it."""
        if input.numel() != self.in_features:
            return super().forward(input)
        return torch.mv(self.weight, input.reshape(-1)).view(*input.shape[:-1], self.out_features)


def install(module: nn.Module) -> None:
    """Turns every linear layer that can be a RowLinear into one, in place. The weights are not moved."""
    for child in module.modules():
        if type(child) is nn.Linear and child.bias is None and child.weight.dtype is torch.bfloat16:
            child.__class__ = RowLinear


def products_per_row(module: nn.Module) -> int:
    """Products of one row with one of the module's linear layers, on average; 0 if the module has none."""
    sizes = [child.weight.numel() for child in module.modules() if isinstance(child, nn.Linear)]
    return sum(sizes) // len(sizes) if sizes else 0
