"""The dense part of a checkpoint, as transformers' loading takes it: tensor by tensor, decoded if it is coded.

transformers asks each value for its shape and its dtype, and reads it once by indexing. So no more than one decoded
tensor is held at a time besides the model, and a plain one stays in the file's own pages. Tensors come from here, and
not from files that transformers opens itself, because the checkpoint knows which file each of them is read from.
"""

import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.formats import AnyStored, CodedStored, RepackedStored, check_scales
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
        matrix = _read_coded(self._stored)
        if isinstance(self._stored, CodedStored):  # repacked ones were checked when they were repacked
            check_scales(matrix, f"{self._stored.scales.file}: {self._stored.scales.name!r}")
        return dequantize(matrix, self.dtype)[index]


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


def _read_coded(stored: CodedStored | RepackedStored) -> CodedTensor:
    if isinstance(stored, RepackedStored):
        return stored.repack({role: _read(part) for role, part in stored.sources.items()})
    outputs, inputs = stored.shape
    coding = stored.coding
    codes = _read_bytes(stored.codes).view(outputs, coding.row_bytes(inputs))
    scales = _read_bytes(stored.scales).view(coding.scale.dtype).view(-1, coding.num_groups(inputs))
    zeros = None if stored.zeros is None else stored.unpack_zeros(_read_bytes(stored.zeros))
    multiplier = 1.0 if stored.multiplier is None else stored.factor(_read_bytes(stored.multiplier))
    return CodedTensor(coding, (outputs, inputs), codes, scales, zeros, multiplier)


def _read(stored: StoredTensor) -> torch.Tensor:
    """A tensor in memory of its own."""
    return _read_bytes(stored).view(TORCH_DTYPES[stored.dtype]).view(stored.shape)


def _read_bytes(stored: StoredTensor) -> torch.Tensor:
    return torch.frombuffer(bytearray(_bytes_of(stored.file, stored.begin, stored.num_bytes)), dtype=torch.uint8)


def _bytes_of(file: Path, begin: int, num_bytes: int) -> bytes:
    handle = os.open(file, os.O_RDONLY)
    try:
        pieces = []
        while num_bytes > 0 and (piece := os.pread(handle, min(num_bytes, 1 << 30), begin)):
            pieces.append(piece)
            begin, num_bytes = begin + len(piece), num_bytes - len(piece)
        return b"".join(pieces)
    finally:
        os.close(handle)
