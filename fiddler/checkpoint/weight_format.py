"""Refuses checkpoints in quantised weight formats, recognised by config.json or by the names of their tensors.

BF16, F16 and F32 are the formats that are supported. No weight is read here.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from fiddler.checkpoint.errors import UnsupportedDtypeError
from fiddler.checkpoint.safetensors_index import StoredTensor

_SUPPORTED: Final = "use a checkpoint in BF16, F16 or F32"
_METHODS: Final = {"fp8": "FP8", "mxfp4": "MXFP4", "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes"}
"""Names of quant_method as their authors write them; others are shown as they are."""

_TENSORS: Final = (
    (re.compile(r".*\.(?:gate_up|down)_proj_(?:blocks|scales)"), "MXFP4"),
    (re.compile(r".*\.(?:w[123]|\w+_proj)\.weight_packed"), "packed INT4"),
    (re.compile(r".*\.(?:w[123]|\w+_proj)\.(?:qweight|qzeros)"), "GPTQ or AWQ"),
    (re.compile(r".*\.(?:w[123]|\w+_proj)\.weight_scale(?:_inv)?"), "FP8"),
)


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuses a config.json that describes quantised weights.

    Raises:
        UnsupportedDtypeError: Weights are quantised; the message names the format.
    """
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        settings = section.get("quantization_config")
        if isinstance(settings, dict):
            raise UnsupportedDtypeError(
                f"{path} says in quantization_config that weights are {_format(settings)}, which is not supported yet: "
                f"{_SUPPORTED}."
            )


def check_names(tensors: Iterable[StoredTensor]) -> None:
    """Refuses tensors with names that only quantised formats use.

    Raises:
        UnsupportedDtypeError: A tensor has such a name; the message names the format.
    """
    for tensor in tensors:
        for pattern, name in _TENSORS:
            if pattern.fullmatch(tensor.name):
                raise UnsupportedDtypeError(
                    f"{tensor.file} holds the tensor {tensor.name!r}, as {name} weights do, a format that is not "
                    f"supported yet: {_SUPPORTED}."
                )


def _format(settings: Mapping[str, Any]) -> str:
    method = str(settings.get("quant_method", "a quantised format"))
    name = _METHODS.get(method, method)
    details = [
        *([f"{settings['bits']} bits"] if isinstance(settings.get("bits"), int) else []),
        *([str(settings["format"])] if isinstance(settings.get("format"), str) else []),
        *(f"{bits}-bit integers" for bits in _group_bits(settings)),
    ]
    return f"{name} ({', '.join(details)})" if details else name


def _group_bits(settings: Mapping[str, Any]) -> list[int]:
    """The integer widths of compressed-tensors, which has one for each group of weights."""
    groups = settings.get("config_groups")
    weights = [group.get("weights") for group in groups.values()] if isinstance(groups, dict) else []
    kinds = [each for each in weights if isinstance(each, dict) and each.get("type") == "int"]
    return sorted({each["num_bits"] for each in kinds if isinstance(each.get("num_bits"), int)})
