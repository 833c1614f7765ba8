"""The interface of an expert kernel, and PyTorch's implementation. A kernel knows layers and rows, not messages."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from typing_extensions import override

from fiddler.expert_math import LayerWeights, combination, layer_forward

LayerFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden rows [rows, hidden], expert ids [rows, k] int32, routing weights [rows, k] float32) -> [rows, hidden].

A row of the result is the sum of routing weight x expert(row) over the row's experts: summed in float32, returned in
the dtype of the hidden rows. Expert id -1 is left out, because that expert is computed elsewhere.
"""


class Kernel(Protocol):
    """Computes layers. Only one thread at a time may use a kernel, even for different layers."""

    name: str
    num_threads: int

    def prepare(self, layer: LayerWeights) -> LayerFunction:
        """Does what is needed once for a layer, and returns the function that computes its messages.

        Raises:
            UnknownActivationError: This kernel does not have the layer's activation.
        """
        ...


class PyTorchKernel(Kernel):
    """PyTorch's matrix products. Runs on every CPU."""

    name = "pytorch"

    def __init__(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.num_threads = num_threads

    @override
    def prepare(self, layer: LayerWeights) -> LayerFunction:
        return partial(layer_forward, layer, combination(layer.activation, layer.alpha, layer.limit))
