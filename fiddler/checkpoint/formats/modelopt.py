"""NVIDIA ModelOpt: NVFP4, with a scale for every 16 inputs and one for the matrix, and FP8 with one scale.

X.weight U8 [outputs, inputs / 2], X.weight_scale F8_E4M3 [outputs, inputs / 16], X.weight_scale_2 F32 []; or X.weight
F8_E4M3 and X.weight_scale F32 []. X.input_scale is of activations.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from fiddler.checkpoint.errors import UnsupportedDtypeError
from fiddler.checkpoint.formats.stored import CodedStored, group_scales, required
from fiddler.checkpoint.formats.weight_format import WeightFormat
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import Code

_PLANES = re.compile(r"(.*\.)(weight_scale_2|weight_scale|input_scale)")
_ROLES: Final = {"weight_scale_2": "multiplier", "weight_scale": "scales", "input_scale": "unused"}
_GROUP: Final = 16


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
        if algorithm not in (None, "NVFP4", "FP8"):
            raise UnsupportedDtypeError(
                f"{path}: quant_algo: ModelOpt's {algorithm} is not served; of ModelOpt NVFP4 and FP8 are."
            )

    @override
    def split(self, name: str) -> tuple[str, str] | None:
        match = _PLANES.fullmatch(name)
        return (f"{match[1]}weight", _ROLES[match[2]]) if match else None

    @override
    def build(self, name: str, planes: Mapping[str, StoredTensor]) -> CodedStored:
        codes, scales = required(planes, "codes", name, ""), required(planes, "scales", name, "_scale")
        unused = (planes["unused"],) if "unused" in planes else ()
        if codes.dtype == "F8_E4M3":
            coding = group_scales(name, Code.E4M3, codes.shape, scales)
            return CodedStored(name, coding, codes.shape, codes, scales, unused=unused)
        if codes.dtype != "U8":
            raise UnsupportedDtypeError(
                f"{codes.file} stores {name!r} as {codes.dtype} with the scales {scales.name!r}; of ModelOpt NVFP4 and "
                "FP8 are supported."
            )
        multiplier = required(planes, "multiplier", name, "_scale_2")
        shape = (*codes.shape[:-1], codes.shape[-1] * 2)
        coding = group_scales(name, Code.E2M1, shape, scales, group=_GROUP)
        return CodedStored(name, coding, shape, codes, scales, multiplier=multiplier, unused=unused)
