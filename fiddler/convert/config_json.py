"""config.json of the result: the source's, with a quantization_config as compressed-tensors reads it."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from fiddler.convert.plan import Item, Plan
from fiddler.convert.recipe import GROUP_INPUTS, CodedFormat

_FORMATS: Final[dict[CodedFormat, str]] = {"int4": "pack-quantized", "int8": "int-quantized"}
_WEIGHTS: Final[dict[CodedFormat, dict[str, Any]]] = {
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
    groups = _groups(items)
    formats = {group["format"] for group in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "ignore": [_module(item) for item in items if _is_plain_matrix(item)],
        "kv_cache_scheme": None,
    }


def _groups(items: Sequence[Item]) -> list[dict[str, Any]]:
    """A group for each format, the last one of all linear layers that no other names: what most of the dense ones are.

    Names come before classes wherever a module is looked up in `targets`.
    """
    experts: dict[CodedFormat, list[Item]] = {}
    dense: dict[CodedFormat, list[Item]] = {}
    for item in items:
        if item.coded_as:
            (experts if item.is_expert else dense).setdefault(item.coded_as, []).append(item)
    usual = max(dense or experts, key=lambda kind: len(dense.get(kind, ())))
    groups = []
    for kind in sorted({*experts, *dense} - {usual}):
        # a pattern for dense layers might match those of another format, too
        names = [_module(item) for item in dense.get(kind, ())]
        groups.append(_group(kind, _patterns(experts.get(kind, ())) + names))
    return [*groups, _group(usual, [_ANY_LINEAR])]


def _group(kind: CodedFormat, targets: list[str]) -> dict[str, Any]:
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
    names = map(_module, items)
    # whole numbers only: those in w1 tell projections apart
    return sorted({"re:" + re.sub(r"(?<=[._])\d+(?=\\.|$)", r"\\d+", re.escape(name)) + "$" for name in names})


def _module(item: Item) -> str:
    """The name of the module that an item is the weight of."""
    return item.name.removesuffix(_SUFFIX)


def _is_plain_matrix(item: Item) -> bool:
    return item.coded_as is None and len(item.shape) == 2 and item.name.endswith(_SUFFIX)
