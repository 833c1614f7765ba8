"""Every way a coded checkpoint can be one that is not served, with the class of its error and what the message says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fiddler.checkpoint import CheckpointError, errors
from tests.support.damage import Damage, add, after, drop, rename, replace
from tests.support.tampering import Tensors, edit_tensors

EXPERT = "model.layers.1.mlp.experts.3.down_proj"
DENSE = "model.layers.1.self_attn.q_proj"


class Case(NamedTuple):
    """One row of the table."""

    written: str
    """The row of `coded.FORMATS` that the checkpoint is written in; empty for a plain one."""
    damage: Damage
    error: type[CheckpointError]
    fragments: tuple[str, ...]
    """What the message says."""
    is_read: bool = False
    """Whether only reading the weights shows it."""


def settings(**changes: Any) -> Damage:
    """Changes keys of the quantization_config; None removes one."""

    def damage(directory: Path) -> None:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        changed = config.get("quantization_config", {}) | changes
        config["quantization_config"] = {key: value for key, value in changed.items() if value is not None}
        path.write_text(json.dumps(config))

    return damage


def weights(**changes: Any) -> Damage:
    """Changes keys of what compressed-tensors' only group says of weights."""

    def damage(directory: Path) -> None:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config["quantization_config"]["config_groups"]["group_0"]["weights"].update(changes)
        path.write_text(json.dumps(config))

    return damage


def unnamed(directory: Path) -> None:
    """Removes the quantization_config."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.pop("quantization_config", None)
    path.write_text(json.dumps(config))


def of_modelopt(algorithm: str | None) -> Damage:
    """ModelOpt's own file in place of the quantization_config."""
    quantization = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}
    return after(unnamed, lambda directory: (directory / "hf_quant_config.json").write_text(json.dumps(quantization)))


def stacked(directory: Path) -> None:
    """A matrix's planes get a dimension for experts."""

    def edit(tensors: Tensors) -> Tensors:
        planes = [name for name in tensors if name.startswith(f"{EXPERT}.") and not name.endswith("g_idx")]
        return tensors | {name: tensors[name][None].repeat(2, 1, 1) for name in planes}

    edit_tensors(directory, edit)


def first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Sets the first element."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return change


def _method(name: str, shown: str) -> Case:
    return Case(
        "fp8 block",
        settings(quant_method=name),
        errors.UnsupportedDtypeError,
        ("config.json", "quantization_config.quant_method", f"{shown} is not served", "served are fp8, "),
    )


UNSUPPORTED = errors.UnsupportedDtypeError
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
    "GPTQ with 2 bits": Case("gptq", settings(bits=2), UNSUPPORTED, ("config.json", ".bits", "2 bits", "4 and 8")),
    "GPTQ with 3 bits": Case("gptq", settings(bits=3), UNSUPPORTED, ("config.json", ".bits", "3 bits", "4 and 8")),
    "GPTQ in the order of activations by config.json": Case(
        "gptq", settings(desc_act=True), UNSUPPORTED, ("config.json", ".desc_act", "without desc_act")
    ),
    "GPTQ in the order of activations by its tensors": Case(
        "gptq",
        replace(f"{EXPERT}.g_idx", lambda order: order.flip(0).contiguous()),
        UNSUPPORTED,
        ("model.safetensors", EXPERT, "g_idx", "without desc_act"),
        is_read=True,
    ),
    "GPTQ with several matrices in the tensor of an expert": Case(
        "gptq", stacked, errors.ShapeError, (f"'{EXPERT}.weight'", "[2, 64, 96]", "it must be [64, 96]")
    ),
    "GPTQ with other groups": Case(
        "gptq", settings(group_size=64), errors.ShapeError, ("down_proj", "96 inputs in groups of 64", "group_size")
    ),
    "GPTQ without zero points": Case(
        "gptq", drop(f"{EXPERT}.qzeros"), errors.MissingTensorError, (EXPERT, "lacks", "qzeros")
    ),
    "GPTQ in halves of words": Case(
        "gptq",
        replace(f"{EXPERT}.qweight", lambda words: words.to(torch.int16)),
        UNSUPPORTED,
        (f"'{EXPERT}.qweight'", "I16", "I32 is due"),
    ),
    "GPTQ with a scale that is not a number": Case(
        "gptq", replace(f"{EXPERT}.scales", first(torch.nan)), UNSUPPORTED, (EXPERT, "scale of nan"), is_read=True
    ),
    "GPTQ with 8 bits in config.json": Case(
        "gptq",
        settings(bits=8),
        errors.ShapeError,
        ("model.safetensors", "48 inputs in groups of 32", "published with"),
    ),
    "GPTQ that config.json calls fp8": Case(
        "gptq", settings(quant_method="fp8"), UNSUPPORTED, ("qweight", "as GPTQ or AWQ weights do", "the format fp8")
    ),
    "AWQ gemv": Case("awq", settings(version="gemv"), UNSUPPORTED, ("config.json", ".version", "gemv", "gemm is")),
    "AWQ with 3 bits": Case("awq", settings(bits=3), UNSUPPORTED, ("config.json", ".bits", "3 bits", "4 bits are")),
    "AWQ with other groups": Case(
        "awq", settings(group_size=40), errors.ShapeError, ("96 inputs in groups of 40", "group_size")
    ),
    "AWQ with a scale that is not a number": Case(
        "awq", replace(f"{EXPERT}.scales", first(torch.inf)), UNSUPPORTED, (EXPERT, "scale of inf"), is_read=True
    ),
    "AWQ that config.json calls GPTQ": Case(
        "awq", settings(quant_method="gptq"), errors.ShapeError, ("model.safetensors", "scales", "must be")
    ),
    "FP8 without scales": Case(
        "fp8 block",
        drop(f"{EXPERT}.weight_scale_inv"),
        errors.MissingTensorError,
        ("model.safetensors", f"'{EXPERT}.weight' as F8_E4M3", "lacks its scales"),
    ),
    "dense FP8 without scales": Case(
        "fp8 block",
        drop(f"{DENSE}.weight_scale_inv"),
        errors.MissingTensorError,
        ("model.safetensors", f"'{DENSE}.weight' as F8_E4M3", "lacks its scales"),
    ),
    "FP8 with too few scales": Case(
        "fp8 small blocks",
        replace(f"{EXPERT}.weight_scale_inv", lambda scales: scales[:1].clone()),
        errors.ShapeError,
        (f"'{EXPERT}.weight_scale_inv'", "[1, 6]", "must be [4, 6]"),
    ),
    "FP8 with other blocks": Case(
        "fp8 small blocks",
        settings(weight_block_size=[64, 64]),
        errors.ShapeError,
        ("model.safetensors", "weight_scale_inv", "must be"),
    ),
    "FP8 with blocks of text": Case(
        "fp8 block",
        settings(weight_block_size=["128", 128]),
        errors.ConfigError,
        ("config.json", "weight_block_size", "two whole numbers"),
    ),
    "FP8 of e5m2": Case("fp8 block", settings(fmt="e5m2"), UNSUPPORTED, ("config.json", ".fmt", "e5m2", "e4m3 is")),
    "plain weights with scales": Case(
        "fp8 block",
        replace(f"{EXPERT}.weight", lambda codes: codes.float()),
        UNSUPPORTED,
        (f"'{EXPERT}.weight' as F32", "weight_scale_inv", "F8_E4M3"),
    ),
    "FP8 that config.json does not name": Case(
        "fp8 block", unnamed, UNSUPPORTED, ("model.safetensors", "weight_scale_inv", "quantisation scales")
    ),
    "dense FP8 that config.json does not name": Case(
        "",
        replace(f"{DENSE}.weight", lambda weight: weight.to(torch.float8_e4m3fn)),
        UNSUPPORTED,
        (f"'{DENSE}.weight' as F8_E4M3", "config.json", "no quantization_config"),
    ),
    "dense INT4 that config.json does not name": Case(
        "",
        add(f"{DENSE}.weight_packed", torch.zeros(4, 4, dtype=torch.int32)),
        UNSUPPORTED,
        (f"'{DENSE}.weight_packed'", "as packed INT4 weights do", "no quantization_config"),
    ),
    "FP8 with a scale that is not a number": Case(
        "fp8 block",
        replace(f"{EXPERT}.weight_scale_inv", first(torch.nan)),
        UNSUPPORTED,
        (f"'{EXPERT}.weight_scale_inv'", "scale of nan at [0, 0]"),
        is_read=True,
    ),
    "MXFP8 with a scale that is not a number": Case(
        "mxfp8",
        replace(f"{EXPERT}.weight_scale", first(255)),
        UNSUPPORTED,
        (f"'{EXPERT}.weight_scale'", "scale of nan"),
        is_read=True,
    ),
    "NVFP4 with a factor of 0": Case(
        "nvfp4",
        replace(f"{EXPERT}.weight_global_scale", first(0)),
        UNSUPPORTED,
        (f"'{EXPERT}.weight_scale'", "scale of nan"),
        is_read=True,
    ),
    "INT4 in the order of activations by config.json": Case(
        "int4 group 32", weights(actorder="group"), UNSUPPORTED, ("config.json", "actorder=group", "actorder=weight is")
    ),
    "INT4 in the order of activations by its tensors": Case(
        "int4 group 32",
        add(f"{EXPERT}.weight_g_idx", torch.zeros(96, dtype=torch.int32)),
        UNSUPPORTED,
        (f"'{EXPERT}.weight_g_idx'", "actorder=group", "actorder=weight is"),
    ),
    "INT4 with 8 bits in config.json": Case(
        "int4 group 32", weights(num_bits=8), errors.ShapeError, ("model.safetensors", "48 inputs in groups of 32")
    ),
    "INT4 with 3 bits in config.json": Case(
        "int4 group 32", weights(num_bits=3), UNSUPPORTED, ("model.safetensors", "with 3 bits", "4 and 8")
    ),
    "INT4 with other groups": Case(
        "int4 group 32",
        weights(group_size=40),
        errors.ShapeError,
        ("model.safetensors", "inputs in groups of 40", "group_size that divides"),
    ),
    "INT4 without scales": Case(
        "int4 group 32",
        drop(f"{EXPERT}.weight_scale"),
        errors.MissingTensorError,
        (f"'{EXPERT}.weight_", "lacks", f"'{EXPERT}.weight_scale'"),
    ),
    "INT4 that is sparse": Case(
        "int4 group 32",
        settings(sparsity_config={"format": "sparse-24-bitmask"}),
        UNSUPPORTED,
        ("config.json", "sparsity_config", "sparse-24-bitmask"),
    ),
    "INT4 that is rotated": Case(
        "int4 group 32",
        settings(transform_config={"config_groups": {"R1": {"type": "hadamard"}}}),
        UNSUPPORTED,
        ("config.json", "transform_config", "rotations"),
    ),
    "NVFP4 without its factor": Case(
        "nvfp4 of ModelOpt",
        drop(f"{EXPERT}.weight_scale_2"),
        errors.MissingTensorError,
        ("model.safetensors", EXPERT, "lacks", "weight_scale_2"),
    ),
    "ModelOpt's INT4": Case(
        "nvfp4 of ModelOpt", settings(quant_algo="W4A8_AWQ"), UNSUPPORTED, ("config.json", "W4A8_AWQ is not served")
    ),
    "ModelOpt's INT4 by its own file": Case(
        "nvfp4 of ModelOpt", of_modelopt("W4A16_AWQ"), UNSUPPORTED, ("hf_quant_config.json", "W4A16_AWQ")
    ),
    "ModelOpt's AWQ by its tensors": Case(
        "nvfp4 of ModelOpt",
        add(f"{EXPERT}.pre_quant_scale", torch.ones(96)),
        UNSUPPORTED,
        (f"'{EXPERT}.pre_quant_scale'", "factors of activations", "NVFP4 without AWQ is"),
    ),
    "ModelOpt's codes with scales of another format": Case(
        "nvfp4 of ModelOpt",
        replace(f"{EXPERT}.weight_scale", lambda scales: scales.float()),
        UNSUPPORTED,
        (f"'{EXPERT}.weight' as U8", "as F32", "NVFP4, MXFP4, MXFP8 and FP8 are supported"),
    ),
    "INT4 with zero points of another shape": Case(
        "int4 group 32 asymmetric",
        replace(f"{EXPERT}.weight_zero_point", lambda zeros: zeros[:4].clone()),
        errors.ShapeError,
        (f"'{EXPERT}.weight_zero_point'", "[4, 3]", "it must be [8, 3]"),
    ),
    "INT4 with zero points that are bytes": Case(
        "int4 group 32 asymmetric",
        replace(f"{EXPERT}.weight_zero_point", lambda zeros: zeros.to(torch.int8)),
        UNSUPPORTED,
        (f"'{EXPERT}.weight_zero_point' as I8", "I32 is due"),
    ),
    "INT8 with zero points of another shape": Case(
        "int8 asymmetric",
        replace(f"{EXPERT}.weight_zero_point", lambda zeros: zeros[:4].clone()),
        errors.ShapeError,
        (f"'{EXPERT}.weight_zero_point'", "[4, 1]", "it must be [64, 1]"),
    ),
    "MLX": Case(
        "gptq", settings(quant_method=None), UNSUPPORTED, ("config.json", "MLX's format is not served", "served are")
    ),
    "GPTQ in Marlin's form": Case(
        "gptq", settings(checkpoint_format="marlin"), UNSUPPORTED, ("GPTQ in the form marlin is not served",)
    ),
    "GPTQ with 2 bits in a module": Case(
        "gptq",
        after(
            settings(dynamic={"+:.*down_proj": {"bits": 2}}),
            replace(f"{EXPERT}.qzeros", lambda zeros: zeros[:, :4].clone()),
        ),
        UNSUPPORTED,
        (f"'{EXPERT}.qweight' with 2 bits", "4 and 8 are supported"),
    ),
    "GPTQ in groups of nothing": Case(
        "gptq", settings(group_size=0), errors.ShapeError, ("inputs in groups of 0", "group_size")
    ),
    "GPTQ with groups in a module that config.json does not name": Case(
        "gptq",
        after(
            settings(dynamic={"+:.*down_proj": {"bits": 4}}),
            replace(f"{EXPERT}.qzeros", lambda zeros: zeros[:1].clone()),
        ),
        errors.ShapeError,
        (EXPERT, "by its shape and quantization_config"),
    ),
    "zero points of int8 that are no integers": Case(
        "int8 asymmetric",
        replace(f"{EXPERT}.weight_zero_point", lambda zeros: zeros.to(torch.bfloat16)),
        UNSUPPORTED,
        (f"'{EXPERT}.weight_zero_point' as BF16", "I8 is due"),
    ),
    "GPTQ with biases that are not zero": Case(
        "gptq",
        add("model.layers.1.mlp.experts.3.w1.bias", torch.ones(3)),
        UNSUPPORTED,
        ("experts with biases or quantisation scales are not supported",),
    ),
    "AutoRound in an unknown packing": Case(
        "gptq",
        settings(quant_method="auto-round", packing_format="mlx"),
        UNSUPPORTED,
        ("AutoRound's mlx is not served", "auto_round:auto_gptq"),
    ),
    "AutoRound with rotations": Case(
        "gptq",
        settings(quant_method="auto-round", spinquant_config={"online_r1_rotation": True}),
        UNSUPPORTED,
        ("config.json", "rotations of weights or activations are not served"),
    ),
    "codes of unknown names": Case(
        "int4 group 32",
        after(rename("weight_packed", "weight_words"), rename("weight_scale", "weight_factor")),
        UNSUPPORTED,
        ("config.json", "the format compressed-tensors, but no tensor is"),
    ),
}
