"""The dense part of a checkpoint, as transformers' loading takes it: tensor by tensor, decoded if it is coded.

transformers asks each value for its shape and its dtype, and reads it once by indexing. So no more than one decoded
tensor is held at a time besides the model, and a plain one stays in the file's own pages. Tensors come from here, and
not from files that transformers opens itself, because the checkpoint knows which file each of them is read from.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from safetensors import safe_open

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.formats import AnyStored
from fiddler.checkpoint.reading import read_coded
from fiddler.checkpoint.safetensors_index import TORCH_DTYPES, StoredTensor
from fiddler.coding import CodedTensor, dequantize


class LazyTensor:
    """A tensor of the checkpoint that is read, and decoded if it is coded, when it is indexed."""

    def __init__(self, stored: AnyStored, dtype: torch.dtype, open_file: Any) -> None:
        """Reads nothing yet.

        Args:
            stored: The tensor.
            dtype: Of the model; coded tensors are rounded to it once.
            open_file: Opens a file for the safetensors library.
        """
        self._stored = stored
        self._open_file = open_file
        self.name = stored.name
        self.file = stored.file
        self.shape = torch.Size(stored.shape)
        self.dtype = TORCH_DTYPES.get(stored.dtype, torch.uint8) if isinstance(stored, StoredTensor) else dtype

    @property
    def ndim(self) -> int:
        """Dimensions of the tensor."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        if isinstance(self._stored, StoredTensor):
            mapped: torch.Tensor = self._open_file(self._stored.file).get_slice(self._stored.name)[index]
            return mapped
        return dequantize(read_coded(self._stored), self.dtype)[index]

    @property
    def is_coded(self) -> bool:
        """Whether the checkpoint has it in 8 or 4 bits."""
        return not isinstance(self._stored, StoredTensor)

    @property
    def code_bits(self) -> int | None:
        """Bits of a code; None if the checkpoint has it as plain numbers."""
        return None if isinstance(self._stored, StoredTensor) else self._stored.coding.code.bits

    def coded(self) -> CodedTensor:
        """The matrix in the codes that the checkpoint has it in, in memory of its own."""
        assert not isinstance(self._stored, StoredTensor)
        return read_coded(self._stored)


class LazyState(Mapping[str, LazyTensor]):
    """The tensors of a checkpoint that belong to no expert, by name, decoded on access."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        """Reads nothing yet.

        Args:
            checkpoint: The checkpoint.
            dtype: Of the model.
        """
        open_file = cache(lambda path: safe_open(path, framework="pt"))
        # unused ones, too: if a model has a place for one after all, it is loaded
        tensors = (*checkpoint.dense_tensors, *checkpoint.unused_tensors)
        self._tensors = {stored.name: LazyTensor(stored, dtype, open_file) for stored in tensors}

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
