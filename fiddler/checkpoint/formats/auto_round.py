"""AutoRound: it stores tensors as other tools do, and `packing_format` in quantization_config says as which.

    auto_round:auto_gptq       as GPTQ does, zero points less one
    auto_round, auto_round:... the same, zero points as they are
    auto_round:auto_awq        as AWQ does, version gemm
    auto_round:llm_compressor  as compressed-tensors does

`extra_config` gives modules bits of their own. AutoRound: auto_round/inference/backend.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fiddler.checkpoint.errors import UnsupportedDtypeError
from fiddler.checkpoint.formats.awq import Awq
from fiddler.checkpoint.formats.compressed_tensors import CompressedTensors
from fiddler.checkpoint.formats.gptq import Gptq
from fiddler.checkpoint.formats.weight_format import WeightFormat

_PREFIX: Final = "auto_round"
_LESS_ONE: Final = ("auto_gptq", "gptq")
_AS_STORED: Final = ("", "gptqmodel", "exllamav2", "tritonv2", "marlin")
_AWQ: Final = ("auto_awq", "awq")
_ROTATIONS: Final = ("spinquant_config", "rotation_config", "hadamard_config")
_COMPRESSED: Final = ("llm_compressor",)


def auto_round(settings: Mapping[str, Any], path: Path) -> WeightFormat:
    """The format in which AutoRound stored the tensors.

    Args:
        settings: The quantization_config.
        path: Of config.json, for messages.

    Raises:
        UnsupportedDtypeError: It is not supported.
    """
    packing = str(settings.get("packing_format") or settings.get("backend") or _PREFIX)
    kind = packing.removeprefix(_PREFIX).removeprefix(":")
    where = f"{path}: quantization_config"
    if any(settings.get(key) for key in _ROTATIONS):
        raise UnsupportedDtypeError(
            f"{where}: rotations of weights or activations are not served; use a checkpoint without them."
        )
    if kind in (*_LESS_ONE, *_AS_STORED):
        form = "gptq" if kind in _LESS_ONE else "gptq_v2"
        return Gptq({**settings, "checkpoint_format": form, "dynamic": settings.get("extra_config")}, path)
    if kind in _AWQ:
        return Awq({**settings, "version": "gemm"}, path)
    if kind in _COMPRESSED:
        return CompressedTensors(settings, path)
    raise UnsupportedDtypeError(
        f"{where}.packing_format: AutoRound's {packing} is not served; auto_round:auto_gptq, auto_round:auto_awq and "
        "auto_round:llm_compressor are."
    )
