"""Stacks that are stored transposed, [experts, inputs, outputs], as Llama-4 and Qwen3-VL store theirs.

Of codes of a byte each, or of NVFP4, whose pairs of codes are of adjacent inputs all the same. They are repacked when
they are read: the kernels need the inputs of an output to be adjacent.
"""

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

from fiddler.checkpoint.formats.refusals import check_scales
from fiddler.checkpoint.formats.repacked import Planes, RepackedStored, row_by_row
from fiddler.coding import CodedTensor, Coding

if TYPE_CHECKING:
    from fiddler.checkpoint.formats.stored import CodedStored


def transposed(stored: "CodedStored", coding: Coding) -> RepackedStored:
    """A transposed stack [matrices, inputs, outputs] as one of [matrices, outputs, inputs].

    Args:
        stored: The stack.
        coding: Of its matrices, once they are [outputs, inputs].
    """
    *stack, inputs, outputs = stored.shape
    sources = {"codes": stored.codes, "scales": stored.scales}
    if stored.multiplier is not None:
        sources["multiplier"] = stored.multiplier
    where = f"{stored.scales.file}: {stored.scales.name!r}"
    repack = partial(_repack, coding=coding, shape=(outputs, inputs), divides=stored.divides, where=where)
    return RepackedStored(stored.name, coding, (*stack, outputs, inputs), sources, repack)


def factor_of(value: float, divides: bool) -> float:
    """What scales are multiplied by, from the number that is stored."""
    if not divides:
        return value
    return 1.0 / value if value else math.nan  # refused with the scales


def _repack(planes: Planes, *, coding: Coding, shape: tuple[int, int], divides: bool, where: str) -> CodedTensor:
    outputs, inputs = shape
    due = (-(-outputs // coding.group_outputs), coding.num_groups(inputs))
    # scales of outputs may be stored as columns though the codes are rows, as transformers' fbgemm stores those of down
    scales = planes["scales"].reshape(due) if 1 in due else planes["scales"].T
    multiplier = factor_of(float(planes["multiplier"].flatten()[0]), divides) if "multiplier" in planes else 1.0
    codes = row_by_row(planes["codes"].view(torch.uint8).T)
    scales = row_by_row(scales).view(coding.scale.dtype)
    matrix = CodedTensor(coding, shape, codes, scales, multiplier=multiplier)
    check_scales(matrix, where)
    return matrix
