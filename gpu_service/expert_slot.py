"""One slot: memory on the device for one expert, and how an expert's matrices lie in it.

It copies nothing and knows no other slot.
"""

from collections.abc import Iterator
from dataclasses import fields, replace

import torch

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import ExpertWeights
from gpu_service.copy_lanes import Mark

_ALIGNMENT_BYTES = 256  # what CUDA's own allocations have, and more than any kernel of a matrix product asks for


def parts(expert: ExpertWeights) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that an expert has, by their names in ExpertWeights."""
    for field in fields(expert):
        tensor = getattr(expert, field.name)
        if tensor is not None:
            yield field.name, tensor


def slot_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of a slot that holds any of the checkpoint's experts, in the dtype they are stored in."""
    return max(
        sum(_padded(view.num_bytes) for view in expert.views.values())
        for layer in checkpoint.layers
        for expert in layer.experts
    )


class Slot:
    """Memory for one expert. It may be written again and again."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self.num_bytes = num_bytes
        self.fence: Mark = None
        """The point until which what it held before is still read."""
        self._memory = torch.empty(num_bytes, dtype=torch.uint8, device=device)

    def place(self, expert: ExpertWeights) -> ExpertWeights:
        """Where the expert's tensors lie once copied here: contiguous views of their shapes and dtypes."""
        offset = 0
        views: dict[str, torch.Tensor] = {}
        for name, tensor in parts(expert):
            views[name] = self._memory[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            offset += _padded(tensor.nbytes)
        return replace(expert, **views)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
