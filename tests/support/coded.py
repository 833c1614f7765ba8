"""Writes checkpoints in 8 and 4 bits as they are published, and the float32 checkpoint that each stands for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.coders import (
    Coder,
    Tensors,
    awq,
    fp4_of_deepseek,
    fp8,
    gptq,
    int4,
    int8,
    int8_with_zeros,
    mxfp4_packed,
    mxfp8,
    nvfp4,
)


def _compressed_tensors(weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        **more,
    }


def _integers(bits: int, group: int | None = None, symmetric: bool = True) -> dict[str, Any]:
    strategy = "channel" if group is None else "group"
    return {"type": "int", "num_bits": bits, "strategy": strategy, "group_size": group, "symmetric": symmetric}


_FP8_SETTINGS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
FORMATS: dict[str, tuple[Coder, dict[str, Any]]] = {
    "fp8 block": (fp8(128), _FP8_SETTINGS),
    "fp8 small blocks": (fp8(16, dtype=torch.bfloat16), {**_FP8_SETTINGS, "weight_block_size": [16, 16]}),
    "fp8 channel": (fp8(None, "_scale"), _compressed_tensors({"type": "float", "num_bits": 8, "strategy": "channel"})),
    "mxfp8": (mxfp8, _FP8_SETTINGS),
    "fp4 of DeepSeek": (fp4_of_deepseek, {**_FP8_SETTINGS, "expert_dtype": "fp4"}),
    "int4 group 32": (int4(32, True), _compressed_tensors(_integers(4, 32))),
    "int4 group 32 asymmetric": (int4(32, False, torch.float16), _compressed_tensors(_integers(4, 32, False))),
    "int8 packed": (int8(True), _compressed_tensors(_integers(8))),
    "int8": (int8(False), _compressed_tensors(_integers(8), format="int-quantized")),
    "int8 asymmetric": (
        int8_with_zeros,
        _compressed_tensors(_integers(8, symmetric=False), format="int-quantized"),
    ),
    "mxfp4": (
        mxfp4_packed,
        _compressed_tensors({"type": "float", "num_bits": 4, "strategy": "group", "group_size": 32}),
    ),
    "nvfp4": (nvfp4(False), _compressed_tensors({"type": "float", "num_bits": 4, "strategy": "tensor_group"})),
    "gptq": (gptq(4, 32), {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}),
    "gptq asymmetric v2": (
        gptq(4, 32, v2=True, symmetric=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
    ),
    "gptq 8 bits in one group": (
        gptq(8, None),
        {"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": True},
    ),
    "awq": (awq(32), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}),
    "nvfp4 of ModelOpt": (nvfp4(True), {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
}
"""By name: what codes a matrix, and the quantization_config."""


def rewrite(plain: Path, coded: Path, name: str, is_coded: Callable[[str], bool]) -> Path:
    """Copies a float32 checkpoint to `coded` in a format, and makes the plain one what that stands for.

    Args:
        plain: A checkpoint in one file. Its matrices become those that the codes stand for.
        coded: Where the coded one goes.
        name: Of a row of FORMATS.
        is_coded: Which matrices are coded, by their names.
    """
    code, settings = FORMATS[name]
    return rewrite_with(
        plain, coded, settings, lambda tensor, weight: code(tensor, weight) if is_coded(tensor) else None
    )


def rewrite_with(
    plain: Path,
    coded: Path,
    settings: dict[str, Any],
    code: Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor] | None],
) -> Path:
    """The same with any coder, which returns None for tensors that stay as they are."""
    file = plain / "model.safetensors"
    tensors = load_file(file)
    stored: Tensors = {}
    for name, tensor in tensors.items():
        result = code(name, tensor) if tensor.ndim >= 2 else None
        if result is None:
            stored[name] = tensor
        else:
            stored.update({key: value.contiguous() for key, value in result[0].items()})
            tensors[name] = result[1].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    shutil.copytree(plain, coded, ignore=lambda _, names: [each for each in names if each.endswith(".safetensors")])
    save_file(stored, coded / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((coded / "config.json").read_text())
    (coded / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return coded
