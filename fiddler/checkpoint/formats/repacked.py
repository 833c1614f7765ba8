"""Coded matrices that are packed along their outputs, as GPTQ's and AWQ's are: they are repacked when they are read.

Nothing is lost by that, but the matrices take memory of their own, in addition to the page cache.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fiddler.checkpoint.errors import UnsupportedDtypeError
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.checkpoint.views import RepackedView, WeightView
from fiddler.coding import CodedTensor, Coding

Planes = dict[str, torch.Tensor]
"""The planes of one matrix as they are stored, by role."""


@dataclass(frozen=True, slots=True)
class RepackedStored:
    """A coded matrix [outputs, inputs] under the name that its plain form would have."""

    name: str
    coding: Coding
    shape: tuple[int, ...]
    sources: Mapping[str, StoredTensor]
    """Its planes by role."""
    repack: Callable[[Planes], CodedTensor]
    """Makes the matrix from its planes. Raises CheckpointErrors for contents that are not supported."""

    @property
    def file(self) -> Path:
        """The file of its first plane."""
        return next(iter(self.sources.values())).file

    @property
    def dtype(self) -> str:
        """The coding's name, where a plain tensor has its dtype."""
        return self.coding.name

    @property
    def parts(self) -> Iterator[StoredTensor]:
        """Every stored tensor that belongs to it."""
        yield from self.sources.values()

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in the files."""
        return sum(part.num_bytes for part in self.parts)

    def view(self, begin: int, shape: tuple[int, int], strides: tuple[int, int]) -> RepackedView:
        """The whole matrix.

        Raises:
            UnsupportedDtypeError: A part of it is asked for, since several experts share the tensor.
        """
        if begin or shape != self.shape or strides != (shape[1], 1):
            raise UnsupportedDtypeError(
                f"{self.file} stores {self.name!r} as {self.dtype} with several matrices in one tensor, which is not "
                "supported: in this format each matrix needs a tensor of its own."
            )
        return RepackedView(name=self.name, coding=self.coding, shape=shape, stored=self)

    def source_views(self) -> tuple[WeightView, ...]:
        """What is read of the files, as rows of bytes."""
        return tuple(
            WeightView.into(part, shape=(1, part.num_bytes), strides=(part.num_bytes, 1), dtype=torch.uint8)
            for part in self.parts
        )


def check_one_matrix(words: StoredTensor) -> None:
    """Refuses a tensor that holds several matrices.

    Raises:
        UnsupportedDtypeError: It does.
    """
    if len(words.shape) != 2:
        raise UnsupportedDtypeError(
            f"{words.file} holds the tensor {words.name!r} of shape {list(words.shape)}: several matrices in one "
            "tensor are not served in this format; use a checkpoint with a tensor for each expert."
        )


def check_words(planes: Mapping[str, StoredTensor], *roles: str) -> None:
    """Refuses planes that are not 32-bit words.

    Raises:
        UnsupportedDtypeError: One is not.
    """
    for plane in (planes[role] for role in roles if role in planes):
        if plane.dtype != "I32":
            raise UnsupportedDtypeError(f"{plane.file} stores the tensor {plane.name!r} as {plane.dtype}; I32 is due.")


def fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Packed unsigned integers [rows, words] int32, low bits first -> [rows, words, fields of a word] uint8."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).to(torch.uint8)


def pack_row_by_row(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """[outputs, inputs] uint8, a code each -> [outputs, bytes of a row] uint8."""
    codes = codes.contiguous()
    return codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4


def row_by_row(plane: torch.Tensor) -> torch.Tensor:
    """A copy whose last stride is 1 even with a single column, which `contiguous` would leave as it is."""
    return plane.clone(memory_format=torch.contiguous_format)
