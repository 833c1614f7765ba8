"""Damaged checkpoints in formats that name their codes and scales: FP8, MXFP8, NVFP4 and compressed-tensors."""

import torch

from fiddler.checkpoint import errors
from tests.support.coded_damage import (
    DENSE,
    EXPERT,
    UNSUPPORTED,
    Case,
    first,
    of_modelopt,
    settings,
    unnamed,
    weights,
)
from tests.support.damage import add, drop, replace

CASES: dict[str, Case] = {
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
    "zero points of int8 that are no integers": Case(
        "int8 asymmetric",
        replace(f"{EXPERT}.weight_zero_point", lambda zeros: zeros.to(torch.bfloat16)),
        UNSUPPORTED,
        (f"'{EXPERT}.weight_zero_point' as BF16", "I8 is due"),
    ),
}
