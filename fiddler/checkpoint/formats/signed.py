"""8-bit integers with zero points, both stored with their signs: compressed-tensors' int-quantized, asymmetric.

The kernels take zero points from bytes without signs, so that codes and zero points are both raised by 128 when they
are read.
"""

from functools import partial

import torch

from fiddler.checkpoint.errors import UnsupportedDtypeError
from fiddler.checkpoint.formats.refusals import check_scales
from fiddler.checkpoint.formats.repacked import Planes, RepackedStored, check_shapes, row_by_row
from fiddler.checkpoint.formats.scales import group_scales
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import Code, CodedTensor, Coding


def signed_with_zeros(
    name: str, codes: StoredTensor, scales: StoredTensor, zeros: StoredTensor, group: int | None
) -> RepackedStored:
    """The tensor, or the stack.

    Args:
        name: Of its plain form.
        codes: [..., outputs, inputs] I8.
        scales: See group_scales.
        zeros: I8, of the shape of the scales.
        group: Inputs of a group, if the settings have groups.

    Raises:
        CheckpointError: Scales or zero points do not fit.
    """
    coding = group_scales(name, Code.UINT8, codes.shape, scales, group=group, has_zeros=True)
    size = f"{list(codes.shape)} in {coding.name}"
    check_shapes({"zeros": zeros}, {"zeros": scales.shape}, size)
    if zeros.dtype != "I8":
        raise UnsupportedDtypeError(f"{zeros.file} stores the tensor {zeros.name!r} as {zeros.dtype}; I8 is due.")
    where = f"{scales.file}: {scales.name!r}"
    sources = {"codes": codes, "scales": scales, "zeros": zeros}
    return RepackedStored(name, coding, codes.shape, sources, partial(_repack, coding=coding, where=where))


def _repack(planes: Planes, coding: Coding, where: str) -> CodedTensor:
    outputs, inputs = planes["codes"].shape
    due = (-(-outputs // coding.group_outputs), coding.num_groups(inputs))
    codes, zeros = (row_by_row(planes[role].view(torch.uint8)) ^ 0x80 for role in ("codes", "zeros"))
    scales = row_by_row(planes["scales"].reshape(due))
    matrix = CodedTensor(coding, (outputs, inputs), codes, scales, zeros.reshape(due))
    check_scales(matrix, where)
    return matrix
