"""A coded matrix, or a stack of them, as a checkpoint stores it, and views of parts of it. It opens no file."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from fiddler.checkpoint.errors import ShapeError
from fiddler.checkpoint.formats.repacked import RepackedStored, check_step, transposed_error
from fiddler.checkpoint.formats.transposed import factor_of, transposed
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.checkpoint.views import CodedView, MatrixView, RepackedView, WeightView
from fiddler.coding import Coding


@dataclass(frozen=True, slots=True)
class CodedStored:
    """A coded tensor [..., outputs, inputs] under the name that its plain form would have."""

    name: str
    coding: Coding
    shape: tuple[int, ...]
    codes: StoredTensor
    scales: StoredTensor
    zeros: StoredTensor | None = None
    multiplier: StoredTensor | None = None
    divides: bool = False
    columns: Coding | None = None
    """The coding if the last dimension is the outputs, as in stacks that are stored transposed; None if scales do not
    fit that."""
    rows_fit: bool = True
    """Whether scales fit the last dimension being the inputs."""
    unused: tuple[StoredTensor, ...] = ()
    """What belongs to the format and is of no use here, for example scales of activations."""

    @property
    def file(self) -> Path:
        """Where the codes are stored."""
        return self.codes.file

    @property
    def dtype(self) -> str:
        """The coding's name, where a plain tensor has its dtype."""
        return self.coding.name

    @property
    def parts(self) -> Iterator[StoredTensor]:
        """Every stored tensor that belongs to it."""
        yield self.codes
        yield self.scales
        yield from (each for each in (self.zeros, self.multiplier) if each is not None)
        yield from self.unused

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in the files."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def num_matrices(self) -> int:
        """Of the stack; 1 if it is none."""
        return prod(self.shape[:-2])

    def unpack_zeros(self, packed: torch.Tensor, groups: slice | None = None) -> torch.Tensor:
        """Zero points of one matrix: [groups of outputs, groups of inputs] uint8.

        Args:
            packed: The bytes of its 32-bit words, which hold adjacent outputs.
            groups: Which groups of outputs; None for all.
        """
        bits = self.coding.code.bits
        words = packed.view(torch.int32).view(-1, 1, self.coding.num_groups(self.shape[-1]))
        shifts = torch.arange(0, 32, bits, dtype=torch.int32).view(1, 32 // bits, 1)
        zeros = ((words >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(0, 1)
        num_groups = -(-self.shape[-2] // self.coding.group_outputs)
        return zeros[:num_groups][groups or slice(None)].clone()

    def factor(self, stored: torch.Tensor, matrix: int = 0) -> float:
        """The multiplier of a matrix of the stack, from the bytes of its tensor."""
        values = stored.view(torch.float32)
        return factor_of(float(values[matrix if len(values) > 1 else 0]), self.divides)

    def view(self, begin: int, shape: tuple[int, int], strides: tuple[int, int]) -> CodedView | RepackedView:
        """A view of rows of it, described as those of a plain tensor are: by elements of the matrix it stands for.

        If the outputs are adjacent, it is a view of a repacked copy.

        Args:
            begin: Elements before the view's first.
            shape: Outputs and inputs.
            strides: Elements from one output to the next and from one input to the next.

        Raises:
            UnsupportedDtypeError: Outputs are adjacent and scales do not fit that, or rows alternate within a group.
            ShapeError: There are neither one multiplier nor as many as matrices.
        """
        rows, inputs = self.shape[-2:]
        if strides[1] == inputs > 1 and self.columns is not None:
            self._check_multiplier()
            matrix, first = divmod(begin, rows * inputs)
            whole = transposed(self, self.columns)
            return whole.view((matrix * inputs + first) * rows, shape, (strides[0] * rows, 1))
        step = strides[0] // inputs
        if not self.rows_fit or strides[1] != 1 or strides[0] % inputs or begin % inputs or shape[1] != inputs:
            raise transposed_error(self.file, self.name, self.dtype)
        check_step(step, self.coding, self.file, self.name)
        self._check_multiplier()
        matrix, first = divmod(begin // inputs, rows)
        group, first_output = divmod(first, self.coding.group_outputs)
        num_groups = -(-(first_output + shape[0]) // self.coding.group_outputs)
        return CodedView(
            name=self.name,
            coding=self.coding,
            shape=shape,
            codes=self._rows(self.codes, torch.uint8, matrix, first, shape[0], step),
            scales=self._rows(self.scales, self.coding.scale.dtype, matrix, group, num_groups, step),
            stored=self,
            matrix=matrix,
            groups=slice(group, group + (num_groups - 1) * step + 1, step),
            first_output=first_output,
        )

    def _check_multiplier(self) -> None:
        if self.multiplier is None:
            return
        found, stack = self.multiplier.shape, self.shape[:-2]
        if self.multiplier.dtype != "F32" or prod(found) not in (1, prod(stack)):
            raise ShapeError(
                f"{self.multiplier.file} holds the tensor {self.multiplier.name!r}, {self.multiplier.dtype} of shape "
                f"{list(found)}; for {self.name!r} of shape {list(self.shape)} it must be F32 of shape {list(stack)}."
            )

    def _rows(
        self, tensor: StoredTensor, dtype: torch.dtype, matrix: int, first: int, count: int, step: int
    ) -> WeightView:
        """Every step-th of the rows of one matrix's plane, from `first` on."""
        is_codes = tensor is self.codes
        inputs, coding = self.shape[-1], self.coding
        rows = self.shape[-2] if is_codes else -(-self.shape[-2] // coding.group_outputs)
        columns = coding.row_bytes(inputs) if is_codes else coding.num_groups(inputs)
        if prod(tensor.shape) == 1:
            matrix = 0  # all matrices share it
        offset = tensor.begin + (matrix * rows + first) * columns * dtype.itemsize
        shape, strides = (count, columns), (step * columns, 1)
        return WeightView(
            file=tensor.file, name=tensor.name, offset_bytes=offset, shape=shape, strides=strides, dtype=dtype
        )


AnyStored = StoredTensor | CodedStored | RepackedStored


def parts_of(tensor: AnyStored) -> Iterator[StoredTensor]:
    """The tensors of the files that a tensor consists of."""
    if not isinstance(tensor, StoredTensor):
        yield from tensor.parts
    else:
        yield tensor


def view_into(
    tensor: AnyStored, *, begin: int = 0, shape: tuple[int, int], strides: tuple[int, int], dtype: torch.dtype
) -> MatrixView:
    """A view of part of a tensor; see `WeightView.into`. The dtype is that of plain tensors.

    Raises:
        UnsupportedDtypeError: See `CodedStored.view`.
    """
    if not isinstance(tensor, StoredTensor):
        return tensor.view(begin, shape, strides)
    return WeightView.into(tensor, begin=begin, shape=shape, strides=strides, dtype=dtype)
