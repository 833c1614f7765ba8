"""FP8: e4m3 codes with a scale per block, per output or per matrix; DeepSeek-V4's FP4 experts alongside them.

X.weight F8_E4M3 [outputs, inputs] and X.weight_scale_inv or X.weight_scale: weight = code * scale, whatever the name
says. Blocks at the edges may be partial: DeepSeek-V3's kv_a_proj_with_mqa has 576 outputs and five rows of scales.
transformers: integrations/finegrained_fp8.py, integrations/fbgemm_fp8.py.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from fiddler.checkpoint.errors import ConfigError, UnsupportedDtypeError
from fiddler.checkpoint.formats.scales import fit_scales, required
from fiddler.checkpoint.formats.stored import CodedStored
from fiddler.checkpoint.formats.weight_format import WeightFormat
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import Code, ScaleKind

_SCALES = re.compile(r"(.*)_scale(?:_inv)?")
_SCALES_OF_MODULE = re.compile(r"(.*\.)scale")
"""DeepSeek-V4's spelling."""
_OF_ACTIVATIONS = re.compile(r"(.*\.)(?:input|activation)_scale(?:_ub)?")
_OF_ACTIVATIONS_OF_STACKS = re.compile(r"(.*)_(?:input|activation)_scale")
_MX_GROUP = 32
_BLOCK = (128, 128)


class Fp8(WeightFormat):
    """Checkpoints whose quant_method is fp8 or fbgemm_fp8."""

    name = "fp8"

    def __init__(self, settings: Mapping[str, Any], path: Path) -> None:
        """Reads the size of blocks.

        Args:
            settings: The quantization_config.
            path: Of config.json, for messages.

        Raises:
            UnsupportedDtypeError: Codes are not e4m3.
            ConfigError: The size of blocks is no pair of whole numbers.
        """
        block = settings.get("weight_block_size") or list(_BLOCK)
        if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
            raise ConfigError(f"{path}: quantization_config.weight_block_size must be two whole numbers, got {block}.")
        if settings.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
            raise UnsupportedDtypeError(f"{path}: quantization_config.fmt: {settings['fmt']} is not served; e4m3 is.")
        self._block = block[0], block[1]

    @override
    def split(self, name: str) -> tuple[str, str] | None:
        if match := _OF_ACTIVATIONS.fullmatch(name):
            return f"{match[1]}weight", "unused"
        if match := _OF_ACTIVATIONS_OF_STACKS.fullmatch(name):
            return match[1], "unused"
        if match := _SCALES.fullmatch(name):
            return match[1], "scales"
        match = _SCALES_OF_MODULE.fullmatch(name)
        return (f"{match[1]}weight", "scales") if match else None

    @override
    def build(self, name: str, planes: Mapping[str, StoredTensor]) -> CodedStored:
        codes = required(planes, "codes", name, "")
        scales = required(planes, "scales", name, "_scale_inv")
        unused = tuple(planes[role] for role in planes if role.startswith("unused"))
        if codes.dtype == "I8":
            fit = fit_scales(name, Code.E2M1, codes, scales, group=_MX_GROUP, kind=_power_of_two(scales))
        elif codes.dtype == "F8_E4M3":
            kind = _power_of_two(scales)
            fit = fit_scales(name, Code.E4M3, codes, scales, block=self._block, group=_MX_GROUP, kind=kind)
        else:
            raise UnsupportedDtypeError(
                f"{codes.file} stores {name!r} as {codes.dtype} with the scales {scales.name!r}; FP8 weights are "
                "F8_E4M3."
            )
        return CodedStored(name, fit.coding, fit.shape, codes, scales, unused=unused, **fit.orientation)


def _power_of_two(scales: StoredTensor) -> ScaleKind | None:
    """Of scales that are bytes: exponents."""
    return ScaleKind.E8M0 if scales.dtype in ("U8", "F8_E8M0") else None
