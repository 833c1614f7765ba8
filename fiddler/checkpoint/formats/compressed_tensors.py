"""compressed-tensors, the format of llm-compressor: int4 and int8 (packed or plain), FP8, MXFP4, MXFP8 and NVFP4.

What a tensor's planes are called and stored as says which of its formats it is in; `config_groups` says bits and
groups.

    pack-quantized         X.weight_packed I32 [outputs, inputs * bits / 32], low bits first, codes + 2^(bits - 1)
                           X.weight_scale [outputs, inputs / group], X.weight_shape
                           X.weight_zero_point I32, packed along the outputs, if asymmetric; of a stack, too,
                           each matrix by itself
    int-quantized          X.weight I8, X.weight_scale [outputs, 1], X.weight_zero_point I8 if asymmetric
    float-quantized        X.weight F8_E4M3, X.weight_scale
    mxfp4-pack-quantized   X.weight_packed U8 [outputs, inputs / 2], X.weight_scale U8 [outputs, inputs / 32]
    nvfp4-pack-quantized   X.weight_packed U8, X.weight_scale F8_E4M3 [outputs, inputs / 16], X.weight_global_scale F32

compressed-tensors: compressors/{pack_quantized,naive_quantized,mxfp4,nvfp4}/base.py.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from fiddler.checkpoint.errors import UnsupportedDtypeError
from fiddler.checkpoint.formats.repacked import RepackedStored
from fiddler.checkpoint.formats.scales import Fit, check_zeros, fit_scales, group_scales, required
from fiddler.checkpoint.formats.signed import signed_with_zeros
from fiddler.checkpoint.formats.stored import CodedStored
from fiddler.checkpoint.formats.weight_format import WeightFormat
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import Code, Coding, ScaleKind

_PLANES = re.compile(r"(.*\.)(weight_(?:packed|scale|shape|zero_point|global_scale|g_idx)|input_(?:global_)?scale)")
_ROLES: Final = {
    "weight_packed": "packed",
    "weight_scale": "scales",
    "weight_zero_point": "zeros",
    "weight_global_scale": "multiplier",
    "weight_g_idx": "order",
}
_BLOCK = (128, 128)
_MX_GROUP, _NV_GROUP = 32, 16
_PACKED: Final = (None, "pack-quantized")
"""Formats of groups whose weights may be packed; 4-bit codes of 32 inputs could be taken for another group's 8 bits."""


class CompressedTensors(WeightFormat):
    """Checkpoints whose quant_method is compressed-tensors."""

    name = "compressed-tensors"

    def __init__(self, settings: Mapping[str, Any], path: Path) -> None:
        """Reads what the groups of `config_groups` say of weights.

        Args:
            settings: The quantization_config.
            path: Of config.json, for messages.

        Raises:
            UnsupportedDtypeError: Weights are sparse, transformed, or grouped in the order of activations.
        """
        self._schemes = [weights for _, weights in _schemes(settings)] or [{}]
        self._packed_schemes = [weights for stored, weights in _schemes(settings) if stored in _PACKED] or self._schemes
        where = f"{path}: quantization_config"
        if any(scheme.get("actorder") == "group" for scheme in self._schemes):
            raise UnsupportedDtypeError(
                f"{where}.config_groups: groups in the order of activations (actorder=group) are not served; "
                "actorder=weight is."
            )
        sparsity = settings.get("sparsity_config")
        if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
            raise UnsupportedDtypeError(
                f"{where}.sparsity_config: the format {sparsity['format']} is not served; use a checkpoint whose "
                "weights are not compressed as sparse."
            )
        transforms = settings.get("transform_config")
        if isinstance(transforms, dict) and transforms.get("config_groups"):
            raise UnsupportedDtypeError(
                f"{where}.transform_config: rotations of weights or activations are not served; use a checkpoint "
                "without them."
            )

    @override
    def split(self, name: str) -> tuple[str, str] | None:
        match = _PLANES.fullmatch(name)
        return (f"{match[1]}weight", _ROLES.get(match[2], f"unused {match[2]}")) if match else None

    @override
    def build(self, name: str, planes: Mapping[str, StoredTensor]) -> CodedStored | RepackedStored:
        scales = required(planes, "scales", name, "_scale")
        if "order" in planes:
            raise UnsupportedDtypeError(
                f"{planes['order'].file} holds {planes['order'].name!r}: groups in the order of activations "
                "(actorder=group) are not served; actorder=weight is."
            )
        unused = tuple(planes[role] for role in planes if role.startswith("unused"))
        codes = planes.get("packed") or required(planes, "codes", name, "_packed")
        if codes.dtype == "I32":
            coding, shape = self._packed(name, codes, scales, "zeros" in planes)
            zeros = planes.get("zeros")
            if zeros is not None:
                check_zeros(planes, coding, shape)
            return CodedStored(name, coding, shape, codes, scales, zeros, unused=unused)
        if codes.dtype == "I8" and "zeros" in planes:
            return signed_with_zeros(name, codes, scales, planes["zeros"], self._group())
        fit = self._fit(name, codes, scales, "multiplier" in planes)
        multiplier = planes.get("multiplier")
        return CodedStored(
            name,
            fit.coding,
            fit.shape,
            codes,
            scales,
            multiplier=multiplier,
            divides=True,
            unused=unused,
            **fit.orientation,
        )

    def _fit(self, name: str, codes: StoredTensor, scales: StoredTensor, has_multiplier: bool) -> Fit:
        match codes.dtype:
            case "U8" if has_multiplier:
                return fit_scales(name, Code.E2M1, codes, scales, group=_NV_GROUP)
            case "U8":
                return fit_scales(name, Code.E2M1, codes, scales, group=_MX_GROUP, kind=ScaleKind.E8M0)
            case "F8_E4M3":
                kind = ScaleKind.E8M0 if scales.dtype == "U8" else None
                block = next((_block(scheme) for scheme in self._schemes if _block(scheme)), _BLOCK)
                return fit_scales(name, Code.E4M3, codes, scales, block=block, group=_MX_GROUP, kind=kind)
            case "I8":
                return fit_scales(name, Code.INT8, codes, scales, group=self._group())
        raise UnsupportedDtypeError(
            f"{codes.file} stores {name!r} as {codes.dtype}, which is not supported; of compressed-tensors int4, int8, "
            "FP8, MXFP4, MXFP8 and NVFP4 are."
        )

    def _group(self) -> int | None:
        return next((each for each in map(_group, self._schemes) if each), None)

    def _packed(
        self, name: str, codes: StoredTensor, scales: StoredTensor, has_zeros: bool
    ) -> tuple[Coding, tuple[int, ...]]:
        problem: Exception | None = None
        for scheme in self._packed_schemes:
            bits = scheme.get("num_bits")
            if bits not in (4, 8):
                problem = problem or UnsupportedDtypeError(
                    f"{codes.file} stores {name!r} with {bits} bits; 4 and 8 are supported."
                )
                continue
            shape = (*codes.shape[:-1], codes.shape[-1] * 32 // bits)
            code = Code.UINT4 if bits == 4 else Code.UINT8
            try:
                return group_scales(name, code, shape, scales, group=_group(scheme), has_zeros=has_zeros), shape
            except Exception as error:
                problem = error
        assert problem is not None
        raise problem


def _schemes(settings: Mapping[str, Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """The format of each group, None if it has none of its own, and what it says of weights."""
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            yield group.get("format"), weights


def _group(scheme: Mapping[str, Any]) -> int | None:
    size = scheme.get("group_size")
    return size if type(size) is int and size > 0 else None


def _block(scheme: Mapping[str, Any]) -> tuple[int, int] | None:
    block = scheme.get("block_structure")
    return (block[0], block[1]) if isinstance(block, list) and len(block) == 2 else None
