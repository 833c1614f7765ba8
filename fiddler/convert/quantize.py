"""Quantises a matrix to 8 or 4 bits, symmetric: codes and scales for `fiddler.coding`.

int8 has a scale for each output: the largest magnitude becomes 127. int4 has a scale for each group of 32 inputs, which
is searched. Every candidate maps the group's largest weight near -8 or near 7; given the codes q of the weights x that
a candidate leads to, the best scale is sum(v x q) / sum(v q q), and what it leaves of the error is least where
sum(v x q)^2 / sum(v q q) is largest. The errors of weights count by v = x^2 + mean(x^2): those of large weights, which
carry most of an output, up to some times those of small ones. Scales are rounded to bfloat16 before the codes are
final. They may be negative, so that the larger half of the codes, down to -8, serves weights of either sign.

This module is the specification of fiddler/kernels/csrc/conversion/quantize.cpp, which gives the same codes and
scales, faster.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch

from fiddler.coding import Code, CodedTensor, Coding, ScaleKind
from fiddler.convert import native_quantize
from fiddler.convert.recipe import GROUP_INPUTS, CodedFormat

CANDIDATES: Final = tuple(near + 0.25 * step for near in (-8, 7) for step in range(-3, 4))
"""What codes the largest weight of a group is mapped to, before rounding."""

_TINY: Final = 2.0**-100
"""Groups whose largest magnitude is below are all zeros: their reciprocals would be infinite."""
_WEIGHTS_AT_A_TIME: Final = 2**18
_ROWS_OF_A_THREAD: Final = 64
"""At least: starting a thread takes about as long as coding so many rows."""


def coding_of(kind: CodedFormat, inputs: int) -> Coding:
    """How a matrix with so many inputs is coded."""
    if kind == "int8":
        return Coding(Code.INT8, ScaleKind.BFLOAT16, inputs)
    return Coding(Code.UINT4, ScaleKind.BFLOAT16, GROUP_INPUTS)


def coded_bytes(kind: CodedFormat, shape: tuple[int, int]) -> int:
    """Bytes of codes and scales of a matrix [outputs, inputs]."""
    outputs, inputs = shape
    coding = coding_of(kind, inputs)
    return outputs * (coding.row_bytes(inputs) + coding.num_groups(inputs) * coding.scale.dtype.itemsize)


def empty(kind: CodedFormat, shape: tuple[int, int]) -> CodedTensor:
    """A coded matrix [outputs, inputs] whose codes and scales are yet to be written."""
    outputs, inputs = shape
    coding = coding_of(kind, inputs)
    return CodedTensor(
        coding,
        shape,
        codes=torch.empty(outputs, coding.row_bytes(inputs), dtype=torch.uint8),
        scales=torch.empty(outputs, coding.num_groups(inputs), dtype=torch.bfloat16),
    )


def quantize(weights: torch.Tensor, kind: CodedFormat, num_threads: int = 1) -> CodedTensor:
    """The coded form of a matrix.

    Args:
        weights: [outputs, inputs], of float32, bfloat16 or float16; strides may be any.
        kind: int8, or int4, for which inputs must be a multiple of 32.
        num_threads: That compute; the library of the kernels takes one for a call.

    Raises:
        ValueError: A weight is infinite or not a number.
    """
    coded = empty(kind, (weights.shape[0], weights.shape[1]))
    rows = max(_ROWS_OF_A_THREAD, -(-len(weights) // num_threads))
    parts = [slice(begin, begin + rows) for begin in range(0, len(weights), rows)]

    def quantize_part(part: slice) -> None:
        quantize_rows(weights[part], kind, coded.codes[part], coded.scales[part])

    if len(parts) == 1:
        quantize_part(parts[0])
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(quantize_part, parts))
    return coded


def quantize_rows(weights: torch.Tensor, kind: CodedFormat, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """The same into memory that is there; rows of a matrix may be given one part after another.

    Args:
        weights: [rows, inputs].
        kind: As above.
        codes: [rows, bytes of a row] uint8, contiguous.
        scales: [rows, groups] bfloat16, contiguous.

    Raises:
        ValueError: As above.
    """
    if native_quantize.is_built():
        native_quantize.quantize_rows(weights, 4 if kind == "int4" else 8, codes, scales)
    else:
        quantize_rows_by_pytorch(weights, kind, codes, scales)


def quantize_rows_by_pytorch(
    weights: torch.Tensor, kind: CodedFormat, codes: torch.Tensor, scales: torch.Tensor
) -> None:
    """The same where there is no native library; slower."""
    quantize_part = _int8 if kind == "int8" else _int4
    rows = max(1, _WEIGHTS_AT_A_TIME // weights.shape[1])
    for begin in range(0, len(weights), rows):
        part = slice(begin, begin + rows)
        values = weights[part].to(torch.float32)
        if not torch.isfinite(values).all():
            raise ValueError("a weight is infinite or not a number")
        codes[part], scales[part] = quantize_part(values.contiguous())


def _int8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    largest = values.abs().amax(dim=1, keepdim=True)
    scales = torch.where(largest < _TINY, 1.0, largest / 127).to(torch.bfloat16)
    codes = (values / scales.to(torch.float32)).round().clamp(-127, 127)
    return codes.to(torch.int8).view(torch.uint8), scales


def _int4(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = len(values)
    # a row for each place in a group, so that sums over groups are sums of rows, in the order of the inputs
    places = values.view(-1, GROUP_INPUTS).t().contiguous()
    scales = _searched_scales(places)
    codes = (places / scales.to(torch.float32)).round_().clamp_(-8, 7).add_(8).to(torch.uint8).t().reshape(rows, -1)
    return codes[:, ::2] | codes[:, 1::2] << 4, scales.view(rows, -1)


def _searched_scales(places: torch.Tensor) -> torch.Tensor:
    """[32, groups] float32 -> [groups] bfloat16."""
    largest = torch.zeros_like(places[0])
    for place in places:
        largest = torch.where(place.abs() > largest.abs(), place, largest)
    is_zero = largest.abs() < _TINY
    largest = torch.where(is_zero, 1.0, largest)
    # the search does not depend on the size of weights, whose fourth powers might be infinite
    units = places / largest
    importances = units * units
    importances += _sum(importances) * (1 / GROUP_INPUTS)
    best, scales = torch.full_like(largest, -1.0), torch.ones_like(largest)
    for candidate in CANDIDATES:
        codes = (units * candidate).round_().clamp_(-8, 7)
        weighted = importances * codes
        norms = _sum(codes.mul_(weighted))
        products = _sum(weighted.mul_(units))
        gain = products * products / norms
        is_better = gain > best
        best = torch.where(is_better, gain, best)
        scales = torch.where(is_better, products / norms, scales)
    return torch.where(is_zero, 1.0, scales * largest).to(torch.bfloat16)


def _sum(rows: torch.Tensor) -> torch.Tensor:
    """The sum of rows, added one after the other."""
    total = torch.zeros_like(rows[0])
    for row in rows:
        total += row
    return total
