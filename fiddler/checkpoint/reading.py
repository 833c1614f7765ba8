"""Reads tensors of a checkpoint into memory of their own, coded ones with all of their planes."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from fiddler.checkpoint.errors import UnsupportedDtypeError
from fiddler.checkpoint.formats import AnyStored, CodedStored, RepackedStored, check_scales
from fiddler.checkpoint.safetensors_index import TORCH_DTYPES, StoredTensor
from fiddler.coding import CodedTensor

_MOST_AT_ONCE = 1 << 30


def read_coded(stored: CodedStored | RepackedStored) -> CodedTensor:
    """A coded matrix, its scales checked.

    Raises:
        UnsupportedDtypeError: It is no matrix, or a scale is infinite or not a number.
    """
    if len(stored.shape) != 2:
        raise UnsupportedDtypeError(
            f"{stored.file} stores {stored.name!r} as {stored.dtype} of shape {list(stored.shape)}; outside the "
            "experts only matrices are supported in 8 or 4 bits."
        )
    if isinstance(stored, RepackedStored):  # which checks when it repacks
        return stored.repack({role: read_tensor(part) for role, part in stored.sources.items()})
    outputs, inputs = stored.shape[-2:]
    coding = stored.coding
    codes = read_bytes(stored.codes).view(outputs, coding.row_bytes(inputs))
    scales = read_bytes(stored.scales).view(coding.scale.dtype).view(-1, coding.num_groups(inputs))
    zeros = None if stored.zeros is None else stored.unpack_zeros(read_bytes(stored.zeros))
    multiplier = 1.0 if stored.multiplier is None else stored.factor(read_bytes(stored.multiplier))
    matrix = CodedTensor(coding, (outputs, inputs), codes, scales, zeros, multiplier)
    check_scales(matrix, f"{stored.scales.file}: {stored.scales.name!r}")
    return matrix


def zero_biases(tensors: Iterable[AnyStored]) -> Mapping[str, StoredTensor]:
    """The biases of coded matrices that are all zero, by name; it reads them, which are few bytes for each matrix.

    AutoGPTQ adds a bias to every layer that it codes, also where the model has none: TheBloke's Mixtral has them.

    Args:
        tensors: Of a checkpoint, coded ones put together.
    """
    tensors = list(tensors)
    coded = {each.name.removesuffix(".weight") + ".bias" for each in tensors if not isinstance(each, StoredTensor)}
    biases = [each for each in tensors if isinstance(each, StoredTensor) and each.name in coded]
    return {each.name: each for each in biases if each.dtype in TORCH_DTYPES and not torch.any(read_tensor(each))}


def read_tensor(stored: StoredTensor) -> torch.Tensor:
    """A tensor as it is stored."""
    return read_bytes(stored).view(TORCH_DTYPES[stored.dtype]).view(stored.shape)


def read_bytes(stored: StoredTensor) -> torch.Tensor:
    """Its bytes, [bytes] uint8."""
    return torch.frombuffer(bytearray(_bytes_of(stored.file, stored.begin, stored.num_bytes)), dtype=torch.uint8)


def _bytes_of(file: Path, begin: int, num_bytes: int) -> bytes:
    handle = os.open(file, os.O_RDONLY)
    try:
        pieces = []
        while num_bytes > 0 and (piece := os.pread(handle, min(num_bytes, _MOST_AT_ONCE), begin)):
            pieces.append(piece)
            begin, num_bytes = begin + len(piece), num_bytes - len(piece)
        return b"".join(pieces)
    finally:
        os.close(handle)
