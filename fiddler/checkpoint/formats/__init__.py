"""Published formats of 8- and 4-bit weights: which one a checkpoint is in, and its tensors put together from planes.

One file per format. Naming and layout of experts do not depend on the format: `group_planes` gives every coded tensor
the name and the shape that its plain form would have.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from fiddler.checkpoint.errors import ConfigError, UnsupportedDtypeError
from fiddler.checkpoint.formats.auto_round import auto_round
from fiddler.checkpoint.formats.awq import Awq
from fiddler.checkpoint.formats.compressed_tensors import CompressedTensors
from fiddler.checkpoint.formats.fp8 import Fp8
from fiddler.checkpoint.formats.gptq import Gptq
from fiddler.checkpoint.formats.modelopt import ModelOpt
from fiddler.checkpoint.formats.mxfp4 import Mxfp4
from fiddler.checkpoint.formats.refusals import check_plain, check_rest, check_scales, mlx_error, unknown_method
from fiddler.checkpoint.formats.repacked import RepackedStored
from fiddler.checkpoint.formats.stored import AnyStored, CodedStored, parts_of
from fiddler.checkpoint.formats.weight_format import WeightFormat
from fiddler.checkpoint.json_file import read_json
from fiddler.checkpoint.safetensors_index import StoredTensor

__all__ = [
    "AnyStored",
    "CodedStored",
    "RepackedStored",
    "WeightFormat",
    "check_plain",
    "check_scales",
    "detect",
    "group_planes",
    "parts_of",
]

_MODELOPT_FILE: Final = "hf_quant_config.json"


def detect(config: Mapping[str, Any], path: Path) -> WeightFormat | None:
    """The format that config.json names in its quantization_config; None if it names none.

    Older checkpoints of ModelOpt name theirs in hf_quant_config.json alone, which is then read.

    Args:
        config: The content of config.json.
        path: Its path.

    Raises:
        UnsupportedDtypeError: It names one that is not supported.
        ConfigError: hf_quant_config.json is unreadable.
    """
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        settings = section.get("quantization_config")
        if isinstance(settings, dict):
            return _of_settings(settings, path)
        if settings is not None:
            raise ConfigError(f"{path}: quantization_config must be a JSON object.")
    beside = path.with_name(_MODELOPT_FILE)
    if not beside.is_file():
        return None
    settings = read_json(beside, ConfigError).get("quantization")
    if not isinstance(settings, dict):
        raise ConfigError(f"{beside}: quantization must be a JSON object.")
    # without an algorithm only keys and values are in 8 bits, which weights do not show
    return None if settings.get("quant_algo") is None else ModelOpt(settings, beside)


def _of_settings(settings: Mapping[str, Any], path: Path) -> WeightFormat:
    match settings.get("quant_method"):
        case "fp8" | "fbgemm_fp8" | "mxfp8":
            return Fp8(settings, path)
        case "mxfp4":
            return Mxfp4()
        case "compressed-tensors":
            return CompressedTensors(settings, path)
        case "modelopt":
            return ModelOpt(settings, path)
        case "gptq":
            return Gptq(settings, path)
        case "awq":
            return Awq(settings, path)
        case "auto-round" | "intel/auto-round":
            return auto_round(settings, path)
        case None if "bits" in settings and "group_size" in settings:
            raise mlx_error(path)
        case method:
            raise unknown_method(method, path)


def group_planes(tensors: Iterable[StoredTensor], weight_format: WeightFormat | None, config: Path) -> list[AnyStored]:
    """The tensors of a checkpoint, coded ones put together; in the order of their first planes.

    Args:
        tensors: As they are stored.
        weight_format: The checkpoint's; None if its weights are plain.
        config: The path of config.json, for messages.

    Raises:
        CheckpointError: No tensor is in that format, codes have no scales, or see WeightFormat.build.
    """
    tensors = list(tensors)
    if weight_format is None:
        return list(tensors)
    by_name = {tensor.name: tensor for tensor in tensors}
    planes: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors:
        if found := weight_format.split(tensor.name):
            planes.setdefault(found[0], {})[found[1]] = tensor
    for name in planes:
        if name in by_name:
            planes[name].setdefault("codes", by_name[name])
    coded = {name: roles for name, roles in planes.items() if roles.keys() & {"codes", "packed", "qweight"}}
    if not coded:
        check_rest(tensors, weight_format.name, config)
        raise UnsupportedDtypeError(
            f"{config} says in quantization_config that weights are in the format {weight_format.name}, but no tensor "
            "is: use the config.json that was published with these weights."
        )
    owner = {tensor.name: name for name, roles in coded.items() for tensor in roles.values()}
    check_rest((tensor for tensor in tensors if tensor.name not in owner), weight_format.name, config)
    grouped: list[AnyStored] = []
    built: set[str] = set()
    for tensor in tensors:
        owned_by = owner.get(tensor.name)
        if owned_by is None:
            grouped.append(tensor)
        elif owned_by not in built:
            built.add(owned_by)
            grouped.append(weight_format.build(owned_by, coded[owned_by]))
    return grouped
