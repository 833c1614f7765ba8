"""config.json of the result: the source's, with a quantization_config as compressed-tensors reads it."""

import re
from collections.abc import Iterable
from typing import Any, Final

from fiddler.convert.plan import Item, Plan
from fiddler.convert.recipe import GROUP_INPUTS, ExpertFormat

_FORMATS: Final[dict[ExpertFormat, str]] = {"int4": "pack-quantized", "int8": "int-quantized"}
_WEIGHTS: Final[dict[ExpertFormat, dict[str, Any]]] = {
    "int4": {"num_bits": 4, "strategy": "group", "group_size": GROUP_INPUTS},
    "int8": {"num_bits": 8, "strategy": "channel", "group_size": None},
}
_ANY_LINEAR: Final = "Linear"
_SETTINGS: Final = "quantization_config"
_SUFFIX: Final = ".weight"


def converted_config(config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The configuration of the result.

    Args:
        config: The source's.
        plan: What is written.
    """
    result = {key: _without_settings(value) for key, value in config.items() if key != _SETTINGS}
    name = str(plan.dtype).removeprefix("torch.")
    result.pop("torch_dtype", None)
    result["dtype"] = name
    for section in result.values():
        if isinstance(section, dict) and section.keys() & {"dtype", "torch_dtype"}:
            section.pop("torch_dtype", None)
            section["dtype"] = name
    result[_SETTINGS] = _settings(plan)
    return result


def _without_settings(value: Any) -> Any:
    return {key: each for key, each in value.items() if key != _SETTINGS} if isinstance(value, dict) else value


def _settings(plan: Plan) -> dict[str, Any]:
    items = list(plan.items)
    groups = []
    dense_kinds = {item.coded_as for item in items if not item.is_expert and item.coded_as}
    experts = plan.recipe.experts
    if dense_kinds - {experts}:
        groups.append(_group(experts, _patterns(item for item in items if item.is_expert and item.coded_as)))
        groups += [_group(kind, [_ANY_LINEAR]) for kind in sorted(dense_kinds)]
    else:
        groups.append(_group(experts, [_ANY_LINEAR]))
    formats = {group["format"] for group in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "ignore": [item.name.removesuffix(_SUFFIX) for item in items if _is_plain_matrix(item)],
        "kv_cache_scheme": None,
    }


def _group(kind: ExpertFormat, targets: list[str]) -> dict[str, Any]:
    weights = {"type": "int", "symmetric": True, "dynamic": False, "actorder": None, **_WEIGHTS[kind]}
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": _FORMATS[kind],
    }


def _patterns(items: Iterable[Item]) -> list[str]:
    """Regular expressions for the modules of items: their names, with any numbers."""
    names = (item.name.removesuffix(_SUFFIX) for item in items)
    # whole numbers only: those in w1 tell projections apart
    return sorted({"re:" + re.sub(r"(?<=[._])\d+(?=\\.|$)", r"\\d+", re.escape(name)) + "$" for name in names})


def _is_plain_matrix(item: Item) -> bool:
    return item.coded_as is None and len(item.shape) == 2 and item.name.endswith(_SUFFIX)
