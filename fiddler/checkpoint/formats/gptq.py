"""GPTQ with 4 or 8 bits, both of its forms.

X.qweight I32 [inputs * bits / 32, outputs], packed along the inputs, low bits first; X.qzeros I32 [groups, outputs *
bits / 32], packed along the outputs; X.scales [groups, outputs]; X.g_idx I32 [inputs], the group of each input. Zero
points are stored less one, unless checkpoint_format is gptq_v2. GPTQModel: gptqmodel/utils/model.py.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from typing_extensions import override

from fiddler.checkpoint.errors import ShapeError, UnsupportedDtypeError
from fiddler.checkpoint.formats.refusals import check_groups, check_scales
from fiddler.checkpoint.formats.repacked import (
    Planes,
    RepackedStored,
    check_one_matrix,
    check_words,
    fields,
    pack_row_by_row,
    row_by_row,
)
from fiddler.checkpoint.formats.stored import required, scale_kind
from fiddler.checkpoint.formats.weight_format import WeightFormat
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import Code, CodedTensor, Coding

_PLANES = re.compile(r"(.*\.)(qweight|qzeros|scales|g_idx)")
_BITS: Final = (4, 8)


class Gptq(WeightFormat):
    """Checkpoints whose quant_method is gptq."""

    name = "gptq"

    def __init__(self, settings: Mapping[str, Any], path: Path) -> None:
        """Reads bits, groups and form.

        Args:
            settings: The quantization_config.
            path: Of config.json, for messages.

        Raises:
            UnsupportedDtypeError: The number of bits, or groups in the order of activations, are not supported.
        """
        self._bits, self._group = settings.get("bits"), settings.get("group_size", -1)
        self._zeros_less_one = settings.get("checkpoint_format", "gptq") != "gptq_v2"
        if self._bits not in _BITS:
            raise UnsupportedDtypeError(
                f"{path}: quantization_config.bits: GPTQ with {self._bits} bits is not served; 4 and 8 bits are."
            )
        if settings.get("desc_act") and self._group not in (-1, None):
            raise UnsupportedDtypeError(
                f"{path}: quantization_config.desc_act: GPTQ in the order of activations is supported with group_size "
                f"-1 only, got {self._group}; use a checkpoint without desc_act."
            )

    @override
    def split(self, name: str) -> tuple[str, str] | None:
        match = _PLANES.fullmatch(name)
        return (f"{match[1]}weight", match[2]) if match else None

    @override
    def build(self, name: str, planes: Mapping[str, StoredTensor]) -> RepackedStored:
        words = required(planes, "qweight", name, " (qweight)")
        scales = required(planes, "scales", name, " (scales)")
        required(planes, "qzeros", name, " (qzeros)")
        check_one_matrix(words)
        bits = int(self._bits or 0)
        inputs, outputs = words.shape[0] * 32 // bits, words.shape[1]
        group = inputs if self._group in (-1, None) else int(self._group)
        check_groups(f"{words.file}: {name!r}", inputs, group)
        groups = inputs // group
        due = {"scales": (groups, outputs), "qzeros": (groups, outputs * bits // 32)}
        for role, shape in due.items():
            if planes[role].shape != shape:
                raise ShapeError(
                    f"{planes[role].file} holds the tensor {planes[role].name!r} of shape {list(planes[role].shape)}; "
                    f"for {outputs} outputs and {inputs} inputs in groups of {group} it must be {list(shape)}."
                )
        coding = Coding(Code.UINT4 if bits == 4 else Code.UINT8, scale_kind(scales), group, has_zeros=True)
        check_words(planes, "qweight", "qzeros", "g_idx")
        sources = {role: planes[role] for role in ("qweight", "qzeros", "scales", "g_idx") if role in planes}
        repack = partial(_repack, coding=coding, zeros_less_one=self._zeros_less_one, where=f"{words.file}: {name!r}")
        return RepackedStored(name, coding, (outputs, inputs), sources, repack)


def _repack(planes: Planes, coding: Coding, zeros_less_one: bool, where: str) -> CodedTensor:
    bits = coding.code.bits
    by_input = fields(planes["qweight"], bits)  # [words, outputs, fields]
    codes = by_input.permute(1, 0, 2).flatten(1)
    if "g_idx" in planes and not torch.equal(
        planes["g_idx"], torch.arange(codes.shape[1], dtype=torch.int32) // coding.group_inputs
    ):
        raise UnsupportedDtypeError(
            f"{where} has groups in the order of activations (g_idx), which are not served: use a checkpoint without "
            "desc_act."
        )
    zeros = fields(planes["qzeros"], bits).flatten(1).T
    if zeros_less_one:
        zeros = (zeros + 1) & ((1 << bits) - 1)
    shape = (codes.shape[0], codes.shape[1])
    scales = row_by_row(planes["scales"].T)
    matrix = CodedTensor(coding, shape, pack_row_by_row(codes, bits), scales, row_by_row(zeros))
    check_scales(matrix, where)
    return matrix
