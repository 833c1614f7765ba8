"""What computes experts, and PyTorch's way of it. A kernel sees one layer's weights and rows, no messages or queues."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from fiddler.expert_math import LayerWeights, combination, layer_forward

LayerFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden rows [rows, hidden], expert ids [rows, k] int32, routing weights [rows, k] float32) -> [rows, hidden].

Each row becomes the sum of routing weight x expert(row) over its experts, summed in float32, in the dtype of the hidden
rows. Expert id -1 is left out: it is computed elsewhere.
"""


class Kernel(Protocol):
    """Computes layers. Not safe to be called from two threads at a time, whichever the layers."""

    name: str
    num_threads: int

    def prepare(self, layer: LayerWeights) -> LayerFunction:
        """Whatever can be done once for a layer, before its first message.

        Raises:
            UnknownActivationError: This kernel does not have the layer's activation.
        """
        ...


class PyTorchKernel:
    """PyTorch's matrix products. Runs on every CPU."""

    name = "pytorch"

    def __init__(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.num_threads = num_threads

    def prepare(self, layer: LayerWeights) -> LayerFunction:
        """See Kernel.prepare."""
        return partial(layer_forward, layer, combination(layer.activation, layer.alpha, layer.limit))
