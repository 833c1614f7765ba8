"""Two layers of Mixtral-8x7B with experts in 8 and 4 bits, written from bf16 as they would be published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from benchmarks.harness import mixtral
from tests.support.large_checkpoint import mixtral_parts

Tensors = dict[str, torch.Tensor]
_BLOCK = 128
_GROUP = 32
_INDEX = "model.safetensors.index.json"


def write(source: Path, directory: Path, name: str) -> Path:
    """Writes a checkpoint in a format, file by file: experts are rounded to the nearest code, the rest is copied.

    Args:
        source: The checkpoint in bf16, with an index.
        directory: Where the coded one goes; it is complete once tokenizer.json is there.
        name: Of a row of FORMATS.
    """
    code, settings = FORMATS[name]
    directory.mkdir(parents=True, exist_ok=True)
    index = json.loads((source / _INDEX).read_text())
    weight_map: dict[str, str] = {}
    for file in sorted(set(index["weight_map"].values())):
        stored: Tensors = {}
        for key, tensor in load_file(source / file).items():
            stored.update(code(key, tensor) if ".experts." in key else {key: tensor})
        save_file(stored, directory / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(stored, file))
    (directory / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = json.loads((source / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    for path in sorted(source.glob("*token*.json"), reverse=True):
        shutil.copy(path, directory)
    return directory


def num_bytes(name: str) -> int:
    """The bytes of the weights that `write` writes in a format; nothing is computed."""
    code, _ = FORMATS[name]
    shape = {key: value for key, value in mixtral.SHAPE.items() if key != "num_heads"}
    total = 0
    for part in mixtral_parts(**shape):
        for key, sizes in part.items():
            tensor = torch.empty(sizes, dtype=torch.bfloat16, device="meta")
            stored = code(key, tensor) if ".experts." in key else {key: tensor}
            total += sum(each.nbytes for each in stored.values())
    return total


def _int8(name: str, weight: torch.Tensor) -> Tensors:
    scales = weight.abs().amax(-1, keepdim=True).float() / 127
    codes = (weight / scales).round_().clamp_(-127, 127).to(torch.int8)
    return {name: codes, f"{name}_scale": scales}


def _fp8(name: str, weight: torch.Tensor) -> Tensors:
    outputs, inputs = weight.shape
    blocks = weight.float().view(outputs // _BLOCK, _BLOCK, inputs // _BLOCK, _BLOCK)
    scales = blocks.abs().amax((1, 3), keepdim=True) / 448
    codes = (blocks / scales).to(torch.float8_e4m3fn).view(outputs, inputs)
    return {name: codes, f"{name}_scale_inv": scales[:, 0, :, 0].contiguous()}


def _int4(name: str, weight: torch.Tensor) -> Tensors:
    groups = weight.float().view(weight.shape[0], -1, _GROUP)
    scales = (groups.abs().amax(-1) / 7).to(torch.bfloat16)
    codes = (groups / scales.float()[..., None]).round_().clamp_(-8, 7).add_(8).to(torch.uint8).flatten(1)
    stem = name.removesuffix("weight")
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    return {
        f"{stem}weight_packed": packed.view(torch.int32),
        f"{stem}weight_scale": scales,
        f"{stem}weight_shape": torch.tensor(weight.shape),
    }


def _compressed_tensors(**weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, **weights}}},
    }


FORMATS: Final[dict[str, tuple[Callable[[str, torch.Tensor], Tensors], dict[str, Any]]]] = {
    "int8": (_int8, _compressed_tensors(num_bits=8, strategy="channel")),
    "fp8": (_fp8, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [_BLOCK, _BLOCK]}),
    "int4": (_int4, _compressed_tensors(num_bits=4, strategy="group", group_size=_GROUP)),
}
"""By name: what codes an expert's matrix, and the quantization_config."""
