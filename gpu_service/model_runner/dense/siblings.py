"""Linear layers of the same input, multiplied in one call: threads go from one to the next without sleeping."""

from collections.abc import Sequence
from typing import Any, Final, Protocol

import torch
from torch import nn

from fiddler.coding import CodedTensor
from fiddler.kernels.linear import LinearFunctions, LinearKernel

NAMES: Final = (
    ("q_proj", "k_proj", "v_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("gate_proj", "up_proj"),
)
"""What transformers' models call the layers of one module that they give the same tensor, in the order of the calls."""
FEW_ROWS: Final = 8
"""Of more rows, each product takes so long that waking threads for it does not show."""


class Sibling(Protocol):
    """A linear layer that may be multiplied together with others."""

    in_features: int
    siblings: "Siblings | None"

    @property
    def bias(self) -> torch.Tensor | None:
        """[outputs]."""
        ...

    @property
    def is_native(self) -> bool:
        """Whether the native kernels multiply with it."""
        ...

    @property
    def matrix(self) -> torch.Tensor | CodedTensor:
        """[outputs, inputs], as the kernels take it."""
        ...


class Siblings:
    """Layers of one module. The first that is called computes all; the others find what is theirs."""

    def __init__(self, kernel: LinearKernel, layers: Sequence[Sibling]) -> None:
        """Describes the layers to the library.

        Args:
            kernel: Multiplies.
            layers: Of the same inputs.
        """
        self._numbers = {id(layer): number for number, layer in enumerate(layers)}
        self._multiply: LinearFunctions = kernel.prepare_together([(layer.matrix, layer.bias) for layer in layers])
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def output(self, layer: Sibling, input: torch.Tensor) -> torch.Tensor:
        """[rows, outputs] of one layer.

        Args:
            layer: One of them.
            input: [..., inputs]; the same tensor for all of them.
        """
        number = self._numbers[id(layer)]
        if input is not self._input or number not in self._outputs:
            self._input = input
            self._outputs = dict(enumerate(self._multiply(input.reshape(-1, layer.in_features))))
        output = self._outputs.pop(number)
        if not self._outputs:
            self._input = None
        return output


def join(module: nn.Module, kernel: LinearKernel) -> None:
    """Joins the layers of a model that are multiplied natively and get the same input.

    Args:
        module: The model; its layers are where they stay.
        kernel: Multiplies.
    """
    for parent in module.modules():
        for names in NAMES:
            named: list[Any] = [getattr(parent, name, None) for name in names]
            layers = [layer for layer in named if getattr(layer, "is_native", False)]
            if len(layers) > 1 and len({layer.in_features for layer in layers}) == 1:
                siblings = Siblings(kernel, layers)
                for layer in layers:
                    layer.siblings = siblings
