"""What --dense-format asks for, and what becomes of it on this device."""

from dataclasses import dataclass
from typing import Final

import torch

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.formats import AnyStored
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.convert.dense import is_linear
from fiddler.convert.recipe import BITS, CodedFormat, DenseFormat, linear_format
from fiddler.kernels.linear import shared_kernel


@dataclass(frozen=True, slots=True)
class DensePlan:
    """Which linear layers of the dense part are kept in codes."""

    keeps: bool
    """Those that the checkpoint has in codes stay so, unless `codes_in` has fewer bits; otherwise they are decoded when
    they are loaded."""
    codes_in: CodedFormat | None
    """What those are coded in when they are loaded that the checkpoint has as plain numbers, or in more bits; None if
    none are."""

    @property
    def is_plain(self) -> bool:
        """Whether every layer is of plain numbers."""
        return not self.keeps and self.codes_in is None

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
            return cls(keeps=is_fast, codes_in=None)
        if asked == "bfloat16":
            return cls(keeps=False, codes_in=None)
        return cls(keeps=True, codes_in=asked)

    def coded_in(self, inputs: int, stored_bits: int | None = None) -> CodedFormat | None:
        """What a linear layer is coded in when it is loaded; None if it is not.

        Args:
            inputs: Of the layer.
            stored_bits: Of the codes that the checkpoint has it in; None if it is of plain numbers there.
        """
        if self.codes_in is None:
            return None
        kind = linear_format(self.codes_in, inputs)
        return None if stored_bits is not None and stored_bits <= BITS[kind] else kind

    def format_of(self, checkpoint: Checkpoint, dtype: torch.dtype) -> str:
        """What linear layers are kept in, by the headers of the checkpoint alone, e.g. "bfloat16" or "fp8, int8"."""
        kinds: dict[str, None] = {} if self.codes_in is None else {self.codes_in: None}
        for tensor in checkpoint.dense_tensors:
            if kind := self._kind_of(tensor, checkpoint):
                kinds[kind] = None
        return ", ".join(kinds) or str(dtype).removeprefix("torch.")

    def _kind_of(self, tensor: AnyStored, checkpoint: Checkpoint) -> str | None:
        """What a tensor is kept in if it is coded; of plain ones, names say which are of linear layers."""
        if not isinstance(tensor, StoredTensor):
            if not self.keeps:
                return None
            return self.coded_in(tensor.shape[-1], tensor.coding.code.bits) or tensor.coding.kind
        return self.coded_in(tensor.shape[-1]) if is_linear(tensor, checkpoint.config) else None


PLAIN: Final = DensePlan(keeps=False, codes_in=None)
