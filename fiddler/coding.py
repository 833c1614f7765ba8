"""Weights in 8 or 4 bits: what their codes and scales mean, and the matrix that they stand for.

A coded matrix [outputs, inputs] has a code per weight and a scale per group of weights; some have a zero point per
group and one more factor for the whole matrix:

    weight = (code - zero) * scale * multiplier

Codes are stored row by row, so that a row's codes are adjacent bytes; of two 4-bit codes in a byte the low one comes
first. This module computes with PyTorch on any device and is the specification of the CPU kernels. It reads no file and
knows no published format; `fiddler.checkpoint.formats` does.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Final

import torch


class Code(enum.Enum):
    """What one code is. The values are those of `fiddler_code` in fiddler/kernels/csrc/abi.h."""

    E4M3 = 1
    """An 8-bit float with 4 bits of exponent and 3 of mantissa, without infinities (OCP FP8, arXiv 2209.05433)."""
    INT8 = 2
    """A signed byte; it has no zero point."""
    UINT8 = 3
    """A byte; the zero point is 128 unless the group has its own."""
    UINT4 = 4
    """Half a byte; the zero point is 8 unless the group has its own."""
    E2M1 = 5
    """A 4-bit float: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives (OCP Microscaling Formats 1.0, section 5.3.3)."""

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 4 if self in (Code.UINT4, Code.E2M1) else 8

    @property
    def usual_zero(self) -> int:
        """The code of the weight 0 in a group without a zero point of its own."""
        return {Code.UINT8: 128, Code.UINT4: 8}.get(self, 0)


class ScaleKind(enum.Enum):
    """How scales are stored. The values are those of `fiddler_scale` in fiddler/kernels/csrc/abi.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2
    E8M0 = 3
    """A byte e that stands for 2^(e - 127); 255 is not a number (OCP Microscaling Formats 1.0, section 5.4.1)."""
    E4M3 = 4

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of a tensor of such scales; bytes for the 8-bit kinds."""
        return _SCALE_DTYPES[self]


_SCALE_DTYPES: Final = {
    ScaleKind.FLOAT32: torch.float32,
    ScaleKind.BFLOAT16: torch.bfloat16,
    ScaleKind.FLOAT16: torch.float16,
    ScaleKind.E8M0: torch.uint8,
    ScaleKind.E4M3: torch.uint8,
}
_KINDS: Final = {
    Code.E4M3: "fp8",
    Code.INT8: "int8",
    Code.UINT8: "int8",
    Code.UINT4: "int4",
    Code.E2M1: "fp4",
}
_E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_WEIGHTS_AT_A_TIME: Final = 2**22
"""Decoded at a time: few enough to be small next to a matrix, enough for a device's launches to cost little."""
_SCRATCH_BYTES_PER_WEIGHT: Final = 16
"""Of those, at most: float32 weights, the codes as indices, scales and zero points as float32."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a matrix is coded. Matrices of one coding and shape are computed by the same code."""

    code: Code
    scale: ScaleKind
    group_inputs: int
    """Adjacent inputs of an output that share a scale; the matrix's number of inputs if all do."""
    group_outputs: int = 1
    """Adjacent outputs that share a scale."""
    has_zeros: bool = False
    """Whether each group has a zero point of its own."""

    def row_bytes(self, num_inputs: int) -> int:
        """Bytes of the codes of one output."""
        return num_inputs * self.code.bits // 8

    def num_groups(self, num_inputs: int) -> int:
        """Groups of one output's inputs; the last may be shorter."""
        return -(-num_inputs // self.group_inputs)

    @property
    def kind(self) -> str:
        """What a weight is stored as: "fp8", "int8", "int4" or "fp4"."""
        return _KINDS[self.code]

    @property
    def name(self) -> str:
        """As logs and metrics show it: "int4 group 32", "fp8 128x128"."""
        if self.group_outputs > 1:
            return f"{self.kind} {self.group_outputs}x{self.group_inputs}"
        return f"{self.kind} group {self.group_inputs}"


@dataclass(frozen=True, slots=True, eq=False)
class CodedTensor:
    """A coded matrix in memory, on any device. It stands where an expert's plain matrix would."""

    coding: Coding
    shape: tuple[int, int]
    """Outputs and inputs of the matrix that it stands for."""
    codes: torch.Tensor
    """[outputs, bytes of a row] uint8; rows may be apart, a row's bytes are adjacent."""
    scales: torch.Tensor
    """[groups of outputs, groups of inputs], of `coding.scale.dtype`."""
    zeros: torch.Tensor | None = None
    """[groups of outputs, groups of inputs] uint8; None unless the coding has them."""
    multiplier: float = 1.0
    first_output: int = 0
    """How many outputs of the first group come before this matrix, of which it is then a later part."""

    @property
    def device(self) -> torch.device:
        """Where it is stored."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(plane.nbytes for plane in self.planes().values())

    def planes(self) -> dict[str, torch.Tensor]:
        """Its tensors by name."""
        planes = {"codes": self.codes, "scales": self.scales}
        return planes if self.zeros is None else {**planes, "zeros": self.zeros}

    def with_planes(self, planes: Mapping[str, torch.Tensor]) -> "CodedTensor":
        """The same matrix with its tensors elsewhere, for example copied to a device."""
        return replace(self, codes=planes["codes"], scales=planes["scales"], zeros=planes.get("zeros"))

    def outputs(self, indices: torch.Tensor) -> "CodedTensor":
        """Some of its outputs, in any order, in memory of their own.

        Args:
            indices: [number] int64, where the matrix is.
        """
        groups = (indices + self.first_output) // self.coding.group_outputs
        return CodedTensor(
            coding=replace(self.coding, group_outputs=1),
            shape=(len(indices), self.shape[1]),
            codes=self.codes[indices],
            scales=self.scales[groups],
            zeros=None if self.zeros is None else self.zeros[groups],
            multiplier=self.multiplier,
        )


def dequantize(
    coded: CodedTensor, dtype: torch.dtype = torch.float32, begin: int = 0, end: int | None = None
) -> torch.Tensor:
    """The matrix [outputs, inputs] that a coded one stands for: computed in float32, rounded once to `dtype`.

    It is decoded some rows at a time; see `dequantize_bytes` for the memory that this takes.

    Args:
        coded: The matrix.
        dtype: Of the result.
        begin: The first output that is wanted.
        end: The output after the last that is wanted; None for all that follow.
    """
    outputs, inputs = coded.shape
    last = outputs if end is None else end
    step = max(1, _WEIGHTS_AT_A_TIME // inputs)
    if last - begin <= step:
        return _dequantize_rows(coded, begin, last).to(dtype)
    weights = torch.empty(last - begin, inputs, dtype=dtype, device=coded.device)
    for first in range(begin, last, step):
        after = min(first + step, last)
        weights[first - begin : after - begin] = _dequantize_rows(coded, first, after)
    return weights


def dequantize_bytes(shape: tuple[int, int], dtype: torch.dtype) -> int:
    """The most bytes that `dequantize` takes for a matrix of this shape while it runs, the result included."""
    num_weights = prod(shape)
    at_a_time = min(num_weights, max(_WEIGHTS_AT_A_TIME, shape[1]))
    return num_weights * dtype.itemsize + at_a_time * _SCRATCH_BYTES_PER_WEIGHT


def _dequantize_rows(coded: CodedTensor, begin: int, end: int) -> torch.Tensor:
    """Some rows: [end - begin, inputs] float32."""
    inputs, coding = coded.shape[1], coded.coding
    weights = _decode(coded.codes[begin:end], coding.code)
    groups = (torch.arange(begin, end, device=coded.device) + coded.first_output) // coding.group_outputs
    scales = decode_scales(coded.coding.scale, coded.scales[groups], coded.multiplier)
    if inputs % coding.group_inputs == 0:
        grouped = weights.view(end - begin, -1, coding.group_inputs)
        scales = scales[..., None]
        zeros = None if coded.zeros is None else coded.zeros[groups][..., None]
    else:
        grouped = weights
        scales = _spread(scales, coding.group_inputs, inputs)
        zeros = None if coded.zeros is None else _spread(coded.zeros[groups], coding.group_inputs, inputs)
    if zeros is not None:
        grouped -= zeros
    elif coding.code.usual_zero:
        grouped -= coding.code.usual_zero
    grouped *= scales
    return weights


def decode_scales(kind: ScaleKind, scales: torch.Tensor, multiplier: float = 1.0) -> torch.Tensor:
    """Scales as stored -> float32 of the same shape, times the matrix's multiplier."""
    if kind is ScaleKind.E8M0:
        # bits rather than arithmetic: 2^-127, which e = 0 stands for, is a subnormal number
        exponents = scales.to(torch.int32)
        values = torch.where(exponents == 0, 1 << 22, exponents << 23).view(torch.float32)
        values = torch.where(exponents == 255, torch.nan, values)
    elif kind is ScaleKind.E4M3:
        values = scales.view(torch.float8_e4m3fn).to(torch.float32)
    else:
        values = scales.to(torch.float32)
    return values if multiplier == 1.0 else values * multiplier


def _decode(codes: torch.Tensor, code: Code) -> torch.Tensor:
    """[rows, bytes] uint8 -> [rows, inputs] float32, zero points not yet subtracted."""
    if code is Code.E4M3:
        return codes.view(torch.float8_e4m3fn).to(torch.float32)
    if code is Code.INT8:
        return codes.view(torch.int8).to(torch.float32)
    if code is Code.UINT8:
        return codes.to(torch.float32)
    return _pairs(code, codes.device)[codes.to(torch.int32)].view(torch.float32)


@lru_cache
def _pairs(code: Code, device: torch.device) -> torch.Tensor:
    """[256] int64, each two float32: what the two 4-bit codes of a byte stand for.

    Kept, since each copy to a device would stop its stream; in one number, since that is looked up faster than two.
    """
    values = torch.tensor(range(16) if code is Code.UINT4 else [*_E2M1, *(-value for value in _E2M1)])
    numbers = torch.arange(256)
    pairs = torch.stack((values[numbers & 15], values[numbers >> 4]), dim=-1).to(torch.float32)
    return pairs.view(torch.int64).squeeze(-1).to(device)


def _spread(groups: torch.Tensor, group_inputs: int, inputs: int) -> torch.Tensor:
    """[rows, groups of inputs] -> [rows, inputs], where the last group is shorter."""
    return groups.repeat_interleave(group_inputs, dim=1)[:, :inputs]
