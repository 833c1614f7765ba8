"""A coded matrix, or a stack of them, as a checkpoint stores it, and views of parts of it. It opens no file."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import torch

from fiddler.checkpoint.errors import MissingTensorError, ShapeError, UnsupportedDtypeError
from fiddler.checkpoint.formats.refusals import check_groups
from fiddler.checkpoint.formats.repacked import RepackedStored
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.checkpoint.views import CodedView, MatrixView, WeightView
from fiddler.coding import Code, Coding, ScaleKind

SCALE_KINDS: Final = {
    "F32": ScaleKind.FLOAT32,
    "BF16": ScaleKind.BFLOAT16,
    "F16": ScaleKind.FLOAT16,
    "F8_E8M0": ScaleKind.E8M0,
    "F8_E4M3": ScaleKind.E4M3,
}


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

    def unpack_zeros(self, packed: torch.Tensor) -> torch.Tensor:
        """[groups of outputs, groups of inputs] uint8, from the bytes of 32-bit words that hold adjacent outputs."""
        bits = self.coding.code.bits
        num_groups = self.coding.num_groups(self.shape[-1])
        fields = packed.view(torch.int32).view(-1, 1, num_groups)
        shifts = torch.arange(0, 32, bits, dtype=torch.int32).view(1, 32 // bits, 1)
        zeros = (fields >> shifts) & ((1 << bits) - 1)
        return zeros.flatten(0, 1)[: -(-self.shape[-2] // self.coding.group_outputs)].to(torch.uint8).contiguous()

    def factor(self, stored: torch.Tensor, matrix: int = 0) -> float:
        """The multiplier of a matrix of the stack, from the bytes of its tensor."""
        values = stored.view(torch.float32)
        value = float(values[matrix if len(values) > 1 else 0])
        if not self.divides:
            return value
        return 1.0 / value if value else math.nan  # refused with the scales

    def view(self, begin: int, shape: tuple[int, int], strides: tuple[int, int]) -> CodedView:
        """A view of rows of it, described as those of a plain tensor are: by elements of the matrix it stands for.

        Args:
            begin: Elements before the view's first.
            shape: Outputs and inputs.
            strides: Elements from one output to the next and from one input to the next.

        Raises:
            UnsupportedDtypeError: The view's inputs are not adjacent, or its rows alternate within a group.
            ShapeError: There are neither one multiplier nor as many as matrices.
        """
        rows, inputs = self.shape[-2:]
        step = strides[0] // inputs
        if strides[1] != 1 or strides[0] % inputs or begin % inputs or shape[1] != inputs:
            raise UnsupportedDtypeError(
                f"{self.file} stores {self.name!r} as {self.dtype} with outputs adjacent, which is not supported: "
                "inputs must be adjacent."
            )
        if step > 1 and self.coding.group_outputs > 1:
            raise UnsupportedDtypeError(
                f"{self.file} stores {self.name!r} as {self.dtype} with gate and up rows alternating, which is "
                "supported only with a scale per row."
            )
        if self.zeros is not None and shape[0] * shape[1] != prod(self.shape):
            raise UnsupportedDtypeError(
                f"{self.file} stores {self.name!r} as {self.dtype} with zero points and several matrices in one "
                "tensor, which is not supported: with zero points each matrix needs a tensor of its own."
            )
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


def scale_kind(scales: StoredTensor) -> ScaleKind:
    """How scales are stored, by their dtype.

    Raises:
        UnsupportedDtypeError: The dtype is not supported.
    """
    kind = SCALE_KINDS.get(scales.dtype)
    if kind is None:
        raise UnsupportedDtypeError(
            f"{scales.file} stores the scales {scales.name!r} as {scales.dtype}; supported are "
            f"{', '.join(SCALE_KINDS)}."
        )
    return kind


def group_scales(
    name: str,
    code: Code,
    shape: tuple[int, ...],
    scales: StoredTensor,
    *,
    block: tuple[int, int] | None = None,
    group: int | None = None,
    kind: ScaleKind | None = None,
    has_zeros: bool = False,
) -> Coding:
    """What a tensor's scales say of its coding: the shape of the scales decides, and what is configured must agree.

    Args:
        name: The tensor's, for messages.
        code: Of its codes.
        shape: [..., outputs, inputs].
        scales: Its scales.
        block: Outputs and inputs of a block, if scales may be of blocks.
        group: Inputs of a group, if scales may be of groups.
        kind: How scales are stored, if their dtype does not say.
        has_zeros: Whether groups have zero points.

    Raises:
        UnsupportedDtypeError: Scales are stored in a dtype that is not supported.
        ShapeError: The shape of the scales fits none of these.
    """
    kind = kind or scale_kind(scales)
    *stack, outputs, inputs = shape
    found = scales.shape
    candidates: dict[tuple[int, ...], Coding] = {}
    if block is not None:
        due = (*stack, -(-outputs // block[0]), -(-inputs // block[1]))
        candidates[due] = Coding(code, kind, min(block[1], inputs), block[0], has_zeros)
    if group is not None and inputs % group == 0:
        candidates[*stack, outputs, inputs // group] = Coding(code, kind, group, 1, has_zeros)
    per_output = Coding(code, kind, inputs, 1, has_zeros)
    candidates[*stack, outputs, 1] = per_output
    candidates[*stack, outputs] = per_output
    per_matrix = Coding(code, kind, inputs, outputs, has_zeros)
    for due in ((*stack,), (*stack, 1), (*stack, 1, 1)):
        candidates.setdefault(due, per_matrix)
    if found not in candidates:
        if group is not None and len(found) == len(shape) and found[-1] > 1:
            check_groups(f"{scales.file}: {name!r}", inputs, group)
        dues = " or ".join(str(list(due)) for due in list(candidates)[:3])
        raise ShapeError(
            f"{scales.file} holds the scales {scales.name!r} of shape {list(found)}; for {name!r} of shape "
            f"{list(shape)} they must be {dues}."
        )
    return candidates[found]


def required(planes: Mapping[str, StoredTensor], role: str, name: str, suffix: str) -> StoredTensor:
    """One of a matrix's tensors.

    Raises:
        MissingTensorError: It is missing.
    """
    if role not in planes:
        other = next(iter(planes.values()))
        raise MissingTensorError(f"{other.file} holds {other.name!r}, but the checkpoint lacks {name + suffix!r}.")
    return planes[role]
