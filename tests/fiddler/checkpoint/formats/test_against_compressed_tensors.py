"""compressed-tensors' formats, decoded here and by its own package: the same float32, bit by bit."""

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file

from fiddler.checkpoint import Checkpoint
from fiddler.coding import CodedTensor, dequantize
from fiddler.expert_math import layer_weights
from tests.support import coded, coded_layouts
from tests.support.checkpoints import write

FORMATS = {
    "fp8 channel": "float-quantized",
    "int4 group 32": "pack-quantized",
    "int4 group 32 asymmetric": "pack-quantized",
    "int8 packed": "pack-quantized",
    "int8": "int-quantized",
    "int8 asymmetric": "int-quantized",
    "mxfp4": "mxfp4-pack-quantized",
}
"""Rows of `coded.FORMATS`, and what the package calls them."""
EXPERT = "model.layers.1.mlp.experts.3.down_proj."


def _by_the_package(directory: Path, name: str) -> torch.Tensor:
    group = json.loads((directory / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    stored = {
        key.removeprefix(EXPERT): tensor
        for key, tensor in load_file(directory / "model.safetensors").items()
        if key.startswith(EXPERT)
    }
    if stored["weight_scale"].dtype in (torch.bfloat16, torch.float16):
        stored["weight_scale"] = stored["weight_scale"].float()  # it rounds weights to the scales' dtype
    decompressed = BaseCompressor.get_value_from_registry(FORMATS[name]).decompress(
        stored, QuantizationScheme.model_validate(group)
    )
    weight = decompressed["weight"]
    assert isinstance(weight, torch.Tensor)
    return weight


@pytest.mark.parametrize("name", FORMATS)
def test_the_package_decodes_the_same(name: str, tmp_path: Path) -> None:
    plain = write("qwen3_moe", tmp_path / "plain", hidden_size=64, moe_intermediate_size=96)
    directory = coded.rewrite(plain, tmp_path / "coded", name, lambda tensor: "_proj." in tensor)
    checkpoint = Checkpoint.open(directory)
    down = layer_weights(checkpoint, checkpoint.layers[1]).experts[3].down
    assert isinstance(down, CodedTensor)
    ours, theirs = dequantize(down), _by_the_package(directory, name)
    assert ours.abs().max() > 0
    assert torch.equal(ours, theirs.float())


def test_the_package_unpacks_the_same_zero_points_of_a_stack(tmp_path: Path) -> None:
    directory = coded_layouts.write("fused", "int4 group 32 asymmetric", tmp_path)
    checkpoint = Checkpoint.open(directory)
    layer = checkpoint.layers[1]
    stored = load_file(directory / "model.safetensors")
    prefix = f"{layer.name}.gate_up_proj.weight"
    scales = stored[f"{prefix}_scale"]
    theirs = unpack_from_int32(stored[f"{prefix}_zero_point"], 4, scales.shape, packed_dim=0) + 8
    assert theirs.unique().numel() > 3
    for number, expert in enumerate(layer_weights(checkpoint, layer).experts):
        assert isinstance(expert.gate, CodedTensor)
        assert isinstance(expert.up, CodedTensor)
        gate, up = theirs[number].chunk(2)
        assert torch.equal(expert.gate.planes()["zeros"], gate.to(torch.uint8))
        assert torch.equal(expert.up.planes()["zeros"], up.to(torch.uint8))
