"""Coded matrices whose codes are not adjacent as the kernels read them: they are repacked when they are read.

GPTQ and AWQ pack along the outputs; stacks of some families are stored transposed. Nothing is lost by repacking, but
the matrices take memory of their own, in addition to the page cache.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch

from fiddler.checkpoint.errors import ShapeError, UnsupportedDtypeError
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.checkpoint.views import RepackedView, WeightView
from fiddler.coding import CodedTensor, Coding

Planes = dict[str, torch.Tensor]
"""The planes of one matrix as they are stored, by role."""


@dataclass(frozen=True, slots=True)
class RepackedStored:
    """A coded tensor under the name that its plain form would have: a matrix [outputs, inputs], or a stack of them."""

    name: str
    coding: Coding
    shape: tuple[int, ...]
    """[outputs, inputs] or [matrices, outputs, inputs]."""
    sources: Mapping[str, StoredTensor]
    """Its planes by role. Those of a stack have a leading dimension for matrices, unless all matrices share one."""
    repack: Callable[[Planes], CodedTensor]
    """Makes a matrix from its planes. Raises CheckpointErrors for contents that are not supported."""

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

    @property
    def num_matrices(self) -> int:
        """Of the stack; 1 if it is none."""
        return prod(self.shape[:-2])

    def view(self, begin: int, shape: tuple[int, int], strides: tuple[int, int]) -> RepackedView:
        """A view of rows of one matrix, described as those of a plain tensor are; see `CodedStored.view`.

        Raises:
            UnsupportedDtypeError: The view's inputs are not adjacent, or its rows alternate within a group.
        """
        rows, inputs = self.shape[-2:]
        step = strides[0] // inputs
        if strides[1] != 1 or strides[0] % inputs or begin % inputs or shape[1] != inputs:
            raise transposed_error(self.file, self.name, self.dtype)
        check_step(step, self.coding, self.file, self.name)
        matrix, first = divmod(begin // inputs, rows)
        return RepackedView(
            name=self.name, coding=self.coding, shape=shape, stored=self, matrix=matrix, first=first, step=step
        )

    def read(self, view: RepackedView, plane: Callable[[StoredTensor], torch.Tensor]) -> CodedTensor:
        """The matrix that a view of this tensor shows, in memory of its own.

        Args:
            view: The view.
            plane: Gives a tensor as it is stored.

        Raises:
            CheckpointError: See `repack`.
        """
        planes = {}
        for role, part in self.sources.items():
            tensor = plane(part)
            planes[role] = tensor[view.matrix] if self._is_stacked(part) else tensor
        return _rows(self.repack(planes), view)

    def source_views(self, matrix: int = 0) -> tuple[WeightView, ...]:
        """What is read of the files for one matrix, as rows of bytes."""
        return tuple(self._bytes_of(part, matrix) for part in self.parts)

    def _bytes_of(self, part: StoredTensor, matrix: int) -> WeightView:
        length = part.num_bytes // (self.num_matrices if self._is_stacked(part) else 1)
        begin = length * matrix if self._is_stacked(part) else 0
        return WeightView.into(part, begin=begin, shape=(1, length), strides=(length, 1), dtype=torch.uint8)

    def _is_stacked(self, part: StoredTensor) -> bool:
        return len(self.shape) > 2 and part.shape[:1] == self.shape[:1]


def _rows(matrix: CodedTensor, view: RepackedView) -> CodedTensor:
    """The outputs of a matrix that a view shows; copied if they are not all, so that the others are freed."""
    if view.shape == matrix.shape:
        return matrix
    group = matrix.coding.group_outputs
    end = view.first + view.shape[0] * view.step
    rows = slice(view.first, end, view.step)
    groups = rows if group == 1 else slice(view.first // group, -(-end // group))
    return replace(
        matrix,
        shape=view.shape,
        codes=matrix.codes[rows].clone(),
        scales=row_by_row(matrix.scales[groups]),
        zeros=None if matrix.zeros is None else row_by_row(matrix.zeros[groups]),
        first_output=view.first % group,
    )


def transposed_error(file: Path, name: str, dtype: str) -> UnsupportedDtypeError:
    """The error for a tensor that is stored with outputs adjacent and cannot be repacked."""
    return UnsupportedDtypeError(
        f"{file} stores {name!r} as {dtype} with outputs adjacent, which is supported only in stacks [experts, inputs, "
        "outputs] of 8-bit codes and NVFP4: use a checkpoint with a tensor for each expert."
    )


def check_step(step: int, coding: Coding, file: Path, name: str) -> None:
    """Refuses rows of gate and up that alternate within groups of outputs.

    Raises:
        UnsupportedDtypeError: They do.
    """
    if step > 1 and coding.group_outputs > 1:
        raise UnsupportedDtypeError(
            f"{file} stores {name!r} as {coding.name} with gate and up rows alternating, which is supported only with "
            "a scale per row: use a checkpoint with a tensor for each expert."
        )


def check_shapes(planes: Mapping[str, StoredTensor], due: Mapping[str, tuple[int, ...]], size: str) -> None:
    """Refuses planes that do not have the shapes which the others and the settings give them.

    Args:
        planes: By role.
        due: The shapes by role.
        size: Of the matrix, for the message.

    Raises:
        ShapeError: A plane has another.
    """
    for role, shape in due.items():
        if planes[role].shape != shape:
            raise ShapeError(
                f"{planes[role].file} holds the tensor {planes[role].name!r} of shape {list(planes[role].shape)}; for "
                f"{size} it must be {list(shape)}."
            )


def sizes_of(words: StoredTensor) -> tuple[tuple[int, ...], int, int]:
    """The leading dimension of a stack of packed matrices, none for a single one; rows and columns of each.

    Raises:
        ShapeError: It is neither.
    """
    if len(words.shape) not in (2, 3):
        raise ShapeError(
            f"{words.file} holds the tensor {words.name!r} of shape {list(words.shape)}; a packed matrix has 2 "
            "dimensions, a stack of them 3."
        )
    return words.shape[:-2], words.shape[-2], words.shape[-1]


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
