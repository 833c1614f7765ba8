"""How large the dense part of a model will be, before any of it is read."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.safetensors_index import StoredTensor
from gpu_service.model_runner.dense.formats import DensePlan
from gpu_service.model_runner.dense.layers import codable_weights

_SCALE_BYTES = 2


@dataclass(frozen=True, slots=True)
class DenseSizes:
    """Weights and bytes of a dense part."""

    num_weights: int
    """In all."""
    num_linear: int
    """Those of them that are of linear layers which may be kept in codes."""
    num_outputs: int
    """Of these layers."""
    num_stored_codes: int
    """The weights that the checkpoint has in codes."""
    stored_bytes: int
    """The bytes of these."""

    @classmethod
    def of(cls, module: nn.Module, checkpoint: Checkpoint) -> Self:
        """Adds up a model, which may be without values, and its checkpoint."""
        weights = [
            entry.linears[0][2] for entry in codable_weights(module, {layer.num_experts for layer in checkpoint.layers})
        ]
        coded = [each for each in checkpoint.dense_tensors if not isinstance(each, StoredTensor)]
        return cls(
            num_weights=checkpoint.num_dense_weights,
            num_linear=sum(linear.weight.numel() for linear in weights),
            num_outputs=sum(linear.out_features for linear in weights),
            num_stored_codes=sum(torch.Size(each.shape).numel() for each in coded),
            stored_bytes=sum(each.num_bytes for each in coded),
        )

    def kept_bytes(self, plan: DensePlan, dtype: torch.dtype) -> int:
        """The bytes in memory by a plan. Weights in the checkpoint's codes are taken to be of linear layers, all."""
        plain, kept = self.num_weights, 0
        if plan.keeps:
            plain -= self.num_stored_codes
            kept += self.stored_bytes
        if plan.quantizes:
            coded_here = max(0, self.num_linear - self.num_stored_codes)
            plain -= coded_here
            kept += coded_here + self.num_outputs * _SCALE_BYTES * coded_here // max(1, self.num_linear)
        return plain * dtype.itemsize + kept
