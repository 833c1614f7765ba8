"""AWQ, version gemm: 4 bits in groups with zero points, packed along the outputs.

X.qweight I32 [inputs, outputs / 8], whose fields hold outputs 0, 2, 4, 6, 1, 3, 5, 7 of eight; X.qzeros I32 [groups,
outputs / 8] in the same order; X.scales [groups, outputs]. In a stack each has a leading dimension for matrices.
AutoAWQ: awq/utils/packing_utils.py.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from typing_extensions import override

from fiddler.checkpoint.errors import UnsupportedDtypeError
from fiddler.checkpoint.formats.refusals import check_groups, check_scales
from fiddler.checkpoint.formats.repacked import (
    Planes,
    RepackedStored,
    check_shapes,
    check_words,
    fields,
    pack_row_by_row,
    row_by_row,
    sizes_of,
)
from fiddler.checkpoint.formats.scales import required, scale_kind
from fiddler.checkpoint.formats.weight_format import WeightFormat
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import Code, CodedTensor, Coding

_PLANES = re.compile(r"(.*\.)(qweight|qzeros|scales)")
_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Of outputs 0 to 7 among the fields of a word."""
_BITS: Final = 4


class Awq(WeightFormat):
    """Checkpoints whose quant_method is awq."""

    name = "awq"

    def __init__(self, settings: Mapping[str, Any], path: Path) -> None:
        """Reads the size of groups.

        Args:
            settings: The quantization_config.
            path: Of config.json, for messages.

        Raises:
            UnsupportedDtypeError: Its version or its number of bits is not supported.
        """
        # GPTQModel calls it format
        version = str(settings.get("version") or settings.get("format") or "gemm").lower()
        bits = settings.get("bits", _BITS)
        if version != "gemm":
            raise UnsupportedDtypeError(f"{path}: quantization_config.version: AWQ {version} is not served; gemm is.")
        if bits != _BITS:
            raise UnsupportedDtypeError(
                f"{path}: quantization_config.bits: AWQ with {bits} bits is not served; 4 bits are."
            )
        self._group = settings.get("group_size", 128)

    @override
    def split(self, name: str) -> tuple[str, str] | None:
        match = _PLANES.fullmatch(name)
        return (f"{match[1]}weight", match[2]) if match else None

    @override
    def build(self, name: str, planes: Mapping[str, StoredTensor]) -> RepackedStored:
        words = required(planes, "qweight", name, " (qweight)")
        scales, zeros = required(planes, "scales", name, " (scales)"), required(planes, "qzeros", name, " (qzeros)")
        check_words(planes, "qweight", "qzeros")
        stack, inputs, num_words = sizes_of(words)
        outputs = num_words * 8
        group = inputs if self._group in (-1, None) else int(self._group)
        check_groups(f"{words.file}: {name!r}", inputs, group)
        groups = inputs // group
        due = {"scales": (*stack, groups, outputs), "qzeros": (*stack, groups, num_words)}
        check_shapes(planes, due, f"{outputs} outputs and {inputs} inputs in groups of {group}")
        coding = Coding(Code.UINT4, scale_kind(scales), group, has_zeros=True)
        repack = partial(_repack, coding=coding, where=f"{scales.file}: {scales.name!r}")
        sources = {"qweight": words, "qzeros": zeros, "scales": scales}
        return RepackedStored(name, coding, (*stack, outputs, inputs), sources, repack)


def _repack(planes: Planes, coding: Coding, where: str) -> CodedTensor:
    order = torch.tensor(_PLACES)
    codes = fields(planes["qweight"], _BITS)[..., order].flatten(1).T
    zeros = fields(planes["qzeros"], _BITS)[..., order].flatten(1).T
    shape = (codes.shape[0], codes.shape[1])
    scales = row_by_row(planes["scales"].T)
    matrix = CodedTensor(coding, shape, pack_row_by_row(codes, _BITS), scales, row_by_row(zeros))
    check_scales(matrix, where)
    return matrix
