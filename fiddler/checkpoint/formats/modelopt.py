"""NVIDIA ModelOpt: NVFP4, MXFP4, MXFP8, and FP8 with a scale per matrix, output or block.

    NVFP4    X.weight U8 [outputs, inputs / 2], X.weight_scale F8_E4M3 [outputs, inputs / 16], X.weight_scale_2 F32 []
    MXFP4    X.weight U8, X.weight_scale U8 [outputs, inputs / 32]
    FP8      X.weight F8_E4M3, X.weight_scale F32 [], [outputs], or of blocks: [outputs / 128, 1, inputs / 128, 1]

Stacks are called as the model calls them, without a module of their own: X, X_weight_scale, X_weight_scale_2.
X.input_scale is of activations. ModelOpt: modelopt/torch/export/quant_utils.py.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from fiddler.checkpoint.errors import UnsupportedDtypeError
from fiddler.checkpoint.formats.scales import fit_scales, required
from fiddler.checkpoint.formats.stored import CodedStored
from fiddler.checkpoint.formats.weight_format import WeightFormat
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import Code, ScaleKind

_PLANES = re.compile(r"(.*)\.(weight_scale_2|weight_scale|input_scale|pre_quant_scale)")
_STACKS = re.compile(r"(.*)_(weight_scale_2|weight_scale|input_scale|pre_quant_scale)")
_ROLES: Final = {
    "weight_scale_2": "multiplier",
    "weight_scale": "scales",
    "input_scale": "unused",
    "pre_quant_scale": "smoothing",
}
_SERVED: Final = (
    "NVFP4",
    "FP8",
    "FP8_PB_WO",
    "FP8_BLOCK_SCALES",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "MXFP4",
    "MXFP8",
    "W4A8_NVFP4_FP8",
    "W4A8_MXFP4_FP8",
    "W4A16_NVFP4",
    "W4A16_MXFP4",
    "MIXED_PRECISION",
)
_NV_GROUP, _MX_GROUP = 16, 32
_BLOCK = (128, 128)


class ModelOpt(WeightFormat):
    """Checkpoints whose quant_method is modelopt."""

    name = "modelopt"

    def __init__(self, settings: Mapping[str, Any], path: Path) -> None:
        """Checks the algorithm.

        Args:
            settings: The quantization_config, or what hf_quant_config.json says under quantization.
            path: Of that file, for messages.

        Raises:
            UnsupportedDtypeError: The algorithm is not supported.
        """
        algorithm = settings.get("quant_algo")
        if algorithm not in (None, *_SERVED):
            raise UnsupportedDtypeError(
                f"{path}: quant_algo: ModelOpt's {algorithm} is not served; of ModelOpt {', '.join(_SERVED)} are."
            )

    @override
    def split(self, name: str) -> tuple[str, str] | None:
        if match := _PLANES.fullmatch(name):
            return f"{match[1]}.weight", _ROLES[match[2]]
        match = _STACKS.fullmatch(name)
        return (match[1], _ROLES[match[2]]) if match else None

    @override
    def build(self, name: str, planes: Mapping[str, StoredTensor]) -> CodedStored:
        codes, scales = required(planes, "codes", name, ""), required(planes, "scales", name, "_scale")
        if "smoothing" in planes:
            raise UnsupportedDtypeError(
                f"{planes['smoothing'].file} holds {planes['smoothing'].name!r}: factors of activations, as ModelOpt's "
                "AWQ stores them, are not served; NVFP4 without AWQ is."
            )
        unused = (planes["unused"],) if "unused" in planes else ()
        kind = ScaleKind.E8M0 if scales.dtype == "U8" else None
        multiplier = None
        if codes.dtype == "F8_E4M3":
            fit = fit_scales(name, Code.E4M3, codes, _of_blocks(scales), block=_BLOCK, group=_MX_GROUP, kind=kind)
        elif codes.dtype == "U8" and scales.dtype == "U8":
            fit = fit_scales(name, Code.E2M1, codes, scales, group=_MX_GROUP, kind=kind)
        elif codes.dtype == "U8" and scales.dtype == "F8_E4M3":
            multiplier = required(planes, "multiplier", name, "_scale_2")
            fit = fit_scales(name, Code.E2M1, codes, scales, group=_NV_GROUP)
        else:
            raise UnsupportedDtypeError(
                f"{codes.file} stores {name!r} as {codes.dtype} with the scales {scales.name!r} as {scales.dtype}; of "
                "ModelOpt NVFP4, MXFP4, MXFP8 and FP8 are supported."
            )
        return CodedStored(
            name, fit.coding, fit.shape, codes, scales, multiplier=multiplier, unused=unused, **fit.orientation
        )


def _of_blocks(scales: StoredTensor) -> StoredTensor:
    """Scales of blocks without the dimensions of 1 between theirs."""
    if len(scales.shape) == 4 and scales.shape[1::2] == (1, 1):
        return replace(scales, shape=scales.shape[::2])
    return scales
