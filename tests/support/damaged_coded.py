"""Every way a coded checkpoint can be one that is not served, with the class of its error and what the message says."""

import json

from fiddler.checkpoint import errors
from tests.support import damaged_planes, damaged_words
from tests.support.coded_damage import (
    UNSUPPORTED,
    Case,
    settings,
)
from tests.support.damage import after, rename


def _method(name: str, shown: str) -> Case:
    return Case(
        "fp8 block",
        settings(quant_method=name),
        errors.UnsupportedDtypeError,
        ("config.json", "quantization_config.quant_method", f"{shown} is not served", "served are fp8, "),
    )


CASES: dict[str, Case] = {
    "bitsandbytes": _method("bitsandbytes", "bitsandbytes"),
    "EXL2": _method("exl2", "EXL2"),
    "EXL3": _method("exl3", "EXL3"),
    "HQQ": _method("hqq", "HQQ"),
    "torchao": _method("torchao", "torchao"),
    "Quark": _method("quark", "Quark"),
    "a method of the future": _method("fp3", "'fp3'"),
    "no method": Case("fp8 block", settings(quant_method=None), UNSUPPORTED, ("config.json", "names no quant_method")),
    "settings that are a list": Case(
        "",
        lambda directory: (directory / "config.json").write_text(
            json.dumps(json.loads((directory / "config.json").read_text()) | {"quantization_config": [1]})
        ),
        errors.ConfigError,
        ("config.json", "quantization_config must be a JSON object"),
    ),
    "codes of unknown names": Case(
        "int4 group 32",
        after(rename("weight_packed", "weight_words"), rename("weight_scale", "weight_factor")),
        UNSUPPORTED,
        ("config.json", "the format compressed-tensors, but no tensor is"),
    ),
    **damaged_words.CASES,
    **damaged_planes.CASES,
}
