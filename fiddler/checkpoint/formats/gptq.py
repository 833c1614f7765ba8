"""GPTQ with 4 or 8 bits, both of its forms, and checkpoints in which modules differ in bits.

X.qweight I32 [inputs * bits / 32, outputs], packed along the inputs, low bits first; X.qzeros I32 [groups, outputs *
bits / 32], packed along the outputs; X.scales [groups, outputs]; X.g_idx I32 [inputs], the group of each input. Zero
points are stored less one, unless checkpoint_format is gptq_v2. In a stack each has a leading dimension for matrices.
GPTQModel: gptqmodel/utils/model.py.
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

_PLANES = re.compile(r"(.*\.)(qweight|qzeros|scales|g_idx)")
_BITS: Final = (4, 8)
_FORMS: Final = ("gptq", "gptq_v2")


class Gptq(WeightFormat):
    """Checkpoints whose quant_method is gptq."""

    name = "gptq"
    adds_biases = True

    def __init__(self, settings: Mapping[str, Any], path: Path) -> None:
        """Reads bits, groups and form.

        Args:
            settings: The quantization_config.
            path: Of config.json, for messages.

        Raises:
            UnsupportedDtypeError: The number of bits, or groups in the order of activations, are not supported.
        """
        self._bits, self._group = settings.get("bits"), settings.get("group_size", -1)
        self._is_mixed = bool(settings.get("dynamic"))
        self._groups = {self._group, *_groups_of_modules(settings.get("dynamic"))}
        form = settings.get("checkpoint_format") or _FORMS[0]
        if form not in _FORMS:
            raise UnsupportedDtypeError(
                f"{path}: quantization_config.checkpoint_format: GPTQ in the form {form} is not served; "
                f"{' and '.join(_FORMS)} are."
            )
        self._zeros_less_one = form != "gptq_v2"
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
        zeros = required(planes, "qzeros", name, " (qzeros)")
        stack, num_words, outputs = sizes_of(words)
        bits, stored = self._bits_and_groups(words, zeros)
        inputs = num_words * 32 // bits
        group = self._group_of(inputs, stored)
        check_groups(f"{words.file}: {name!r}", inputs, group)
        groups = inputs // group
        due = {"scales": (*stack, groups, outputs), "qzeros": (*stack, groups, outputs * bits // 32)}
        check_shapes(planes, due, f"{outputs} outputs and {inputs} inputs in groups of {group}")
        coding = Coding(Code.UINT4 if bits == 4 else Code.UINT8, scale_kind(scales), group, has_zeros=True)
        check_words(planes, "qweight", "qzeros", "g_idx")
        sources = {role: planes[role] for role in ("qweight", "qzeros", "scales", "g_idx") if role in planes}
        repack = partial(_repack, coding=coding, zeros_less_one=self._zeros_less_one, where=f"{words.file}: {name!r}")
        return RepackedStored(name, coding, (*stack, outputs, inputs), sources, repack)

    def _group_of(self, inputs: int, groups: int) -> int:
        """Inputs of a group: what config.json says of the module, or of all modules; 0 if it says nothing that fits.

        Args:
            inputs: Of the module.
            groups: How many it has by its shapes, where modules differ; else 0.
        """
        if not groups:
            return inputs if self._group in (-1, None) else int(self._group)
        allowed = {inputs if group in (-1, None) else group for group in self._groups}
        group = inputs // groups
        return group if group in allowed and group * groups == inputs else 0

    def _bits_and_groups(self, words: StoredTensor, zeros: StoredTensor) -> tuple[int, int]:
        """Bits of a module's codes, and its groups of inputs; 0 for what config.json says of all.

        Where `dynamic` gives modules bits and groups of their own, by expressions for their names, shapes say it.

        Raises:
            UnsupportedDtypeError: The number of bits is not supported.
        """
        if not self._is_mixed or len(zeros.shape) < 2:
            return int(self._bits or 0), 0
        bits = zeros.shape[-1] * 32 / max(1, words.shape[-1])
        if bits not in _BITS:
            raise UnsupportedDtypeError(
                f"{words.file} stores {words.name!r} with {bits:g} bits by the shape of {zeros.name!r}; 4 and 8 are "
                "supported: use a checkpoint in which no module has fewer."
            )
        return int(bits), max(1, zeros.shape[-2])


def _groups_of_modules(modules: object) -> list[Any]:
    """The group sizes of `dynamic`: settings by an expression for modules' names, some of which have none."""
    each = modules.values() if isinstance(modules, Mapping) else ()
    return [one["group_size"] for one in each if isinstance(one, Mapping) and "group_size" in one]


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
