"""What --dense-format asks for, and what becomes of it on this device."""

from dataclasses import dataclass
from typing import Final, Literal

import torch

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.kernels.linear import shared_kernel

DenseFormat = Literal["auto", "bfloat16", "int8"]


@dataclass(frozen=True, slots=True)
class DensePlan:
    """Which linear layers of the dense part are kept in codes."""

    keeps: bool
    """Those that the checkpoint has in codes stay so; otherwise they are decoded when they are loaded."""
    quantizes: bool
    """Those that the checkpoint has as plain numbers are coded in 8 bits when they are loaded."""

    @property
    def is_plain(self) -> bool:
        """Whether every layer is of plain numbers."""
        return not (self.keeps or self.quantizes)

    @classmethod
    def resolve(cls, asked: DenseFormat, device: torch.device) -> "DensePlan":
        """The plan for a device.

        Args:
            asked: What --dense-format asks for. auto keeps published codes where multiplying from them is faster than
                multiplying decoded weights: on the CPU, if the native kernels have code for its vectors.
            device: What the dense part is computed on.
        """
        if asked == "auto":
            is_fast = device.type == "cpu" and shared_kernel(torch.get_num_threads()) is not None
            return cls(keeps=is_fast, quantizes=False)
        return cls(keeps=asked == "int8", quantizes=asked == "int8")

    def format_of(self, checkpoint: Checkpoint, dtype: torch.dtype) -> str:
        """What linear layers are kept in, by the headers of the checkpoint alone, e.g. "bfloat16" or "fp8, int8"."""
        kinds: dict[str, None] = {}
        if self.keeps:
            for tensor in checkpoint.dense_tensors:
                if not isinstance(tensor, StoredTensor):
                    kinds[tensor.coding.kind] = None
        if self.quantizes:
            kinds["int8"] = None
        return ", ".join(kinds) or str(dtype).removeprefix("torch.")


PLAIN: Final = DensePlan(keeps=False, quantizes=False)
