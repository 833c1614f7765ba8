"""How large the dense part of a model will be, before any of it is read."""

from dataclasses import dataclass
from math import prod
from typing import Self

import torch
from torch import nn

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.formats import AnyStored
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.convert.quantize import coded_bytes
from gpu_service.model_runner.dense.formats import DensePlan
from gpu_service.model_runner.dense.layers import codable_weights


@dataclass(frozen=True, slots=True)
class _StoredCodes:
    """A tensor that the checkpoint has in codes."""

    bits: int
    inputs: int
    num_weights: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class DenseSizes:
    """Weights and bytes of a dense part."""

    num_weights: int
    """In all."""
    linear_shapes: tuple[tuple[int, int], ...]
    """Outputs and inputs of the linear layers that may be kept in codes."""
    stored_codes: tuple[_StoredCodes, ...]
    """What the checkpoint has in codes."""

    @classmethod
    def of(cls, module: nn.Module, checkpoint: Checkpoint) -> Self:
        """Adds up a model, which may be without values, and its checkpoint."""
        num_experts = {layer.num_experts for layer in checkpoint.layers}
        linears = [entry.linears[0][2] for entry in codable_weights(module, num_experts)]
        return cls(
            num_weights=checkpoint.num_dense_weights,
            linear_shapes=tuple((linear.out_features, linear.in_features) for linear in linears),
            stored_codes=tuple(
                _StoredCodes(each.coding.code.bits, each.shape[-1], prod(each.shape), each.num_bytes)
                for each in checkpoint.dense_tensors
                if not isinstance(each, StoredTensor)
            ),
        )

    def kept_bytes(self, plan: DensePlan, dtype: torch.dtype) -> int:
        """The bytes in memory by a plan. Weights in the checkpoint's codes are taken to be of linear layers, all."""
        stay = [each for each in self.stored_codes if plan.keeps and plan.coded_in(each.inputs, each.bits) is None]
        num_stored = sum(each.num_weights for each in stay)
        plain, kept = self.num_weights - num_stored, sum(each.num_bytes for each in stay)
        coded = [(shape, kind) for shape in self.linear_shapes if (kind := plan.coded_in(shape[1]))]
        num_linear = sum(prod(shape) for shape, _ in coded)
        if num_linear > num_stored:
            coded_here = num_linear - num_stored
            plain -= coded_here
            kept += sum(coded_bytes(kind, shape) for shape, kind in coded) * coded_here // num_linear
        return plain * dtype.itemsize + kept


def kept_bytes(tensor: AnyStored, dtype: torch.dtype, plan: DensePlan) -> int:
    """The bytes in memory of one tensor by a plan, if it is a weight of a linear layer."""
    bits = None if isinstance(tensor, StoredTensor) else tensor.coding.code.bits
    if bits and plan.keeps and plan.coded_in(tensor.shape[-1], bits) is None:
        return tensor.num_bytes
    kind = plan.coded_in(tensor.shape[-1]) if len(tensor.shape) == 2 else None
    return coded_bytes(kind, (tensor.shape[0], tensor.shape[1])) if kind else prod(tensor.shape) * dtype.itemsize
