"""Experts of an encoder and of a decoder: how their layers are counted, and which errors name their tensors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.errors import CheckpointError
from tests.support.families import tiny
from tests.support.tampering import Tensors, edit_tensors

SWITCH = "decoder.block.1.layer.2.mlp.experts"
NLLB = "model.decoder.layers.3.ffn.experts"


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("switch_transformers", [1, 3, 4, 5, 6]),
        ("nllb-moe", [1, 3, 5]),
    ],
)
def test_layers_of_the_decoder_are_counted_on_from_the_encoder_s(
    family: str, layers: list[int], tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(tiny.write(family, tmp_path))
    assert [layer.decoder_layer for layer in checkpoint.layers] == layers
    assert {layer.activation.name for layer in checkpoint.layers} == {"relu"}


def test_biases_are_views_of_their_tensors(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.write("nllb-moe", tmp_path))
    stored = tiny.build("nllb-moe").state_dict()
    for layer in checkpoint.layers:
        for number, expert in enumerate(layer.experts):
            prefix = f"{layer.name}.expert_{number}"
            assert expert.gate is None
            assert expert.up_bias is not None
            assert expert.down_bias is not None
            assert torch.equal(checkpoint.tensor(expert.up_bias)[0], stored[f"{prefix}.fc1.bias"])
            assert torch.equal(checkpoint.tensor(expert.down_bias)[0], stored[f"{prefix}.fc2.bias"])
            assert torch.equal(checkpoint.tensor(expert.down), stored[f"{prefix}.fc2.weight"])


def _lacking(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {other: tensor for other, tensor in tensors.items() if other != name}


def _halved(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[name][: len(tensors[name]) // 2].clone()}


@pytest.mark.parametrize(
    ("family", "change", "problem"),
    [
        ("switch_transformers", _lacking(f"{SWITCH}.expert_3.wi.weight"), r"lacks .*'\S+\.expert_3\.wi\.weight'"),
        ("nllb-moe", _lacking(f"{NLLB}.expert_3.fc2.bias"), r"lacks .*'\S+\.expert_3\.fc2\.bias'"),
        ("nllb-moe", _halved(f"{NLLB}.expert_3.fc1.bias"), r"fc1.bias' of shape \[40\]; .* it must be \[80\]"),
        ("nllb-moe", _halved(f"{NLLB}.expert_3.fc2.weight"), r"fc2.weight' of shape \[32, 80\]; .* \[64, 80\]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(family: str, change: Callable[[Tensors], Tensors], problem: str, tmp_path: Path) -> None:
    directory = tiny.write(family, tmp_path)
    edit_tensors(directory, change)
    with pytest.raises(CheckpointError, match=problem):
        Checkpoint.open(directory)
