"""DBRX's experts: stored one below the other in a matrix for each projection."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.errors import CheckpointError
from tests.support.families import tiny
from tests.support.tampering import Tensors, edit_config, edit_tensors

W2 = "transformer.blocks.1.ffn.experts.mlp.w2"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny.write("dbrx", tmp_path)


def test_every_matrix_is_a_view_of_its_rows(directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    assert [layer.decoder_layer for layer in checkpoint.layers] == [0, 1, 2]
    stored = tiny.build("dbrx").state_dict()
    for layer in checkpoint.layers:
        assert (layer.num_experts, layer.hidden_size, layer.intermediate_size) == (8, 64, 48)
        for number, expert in enumerate(layer.experts):
            rows = slice(number * 48, (number + 1) * 48)
            assert expert.gate is not None
            assert torch.equal(checkpoint.tensor(expert.gate), stored[f"{layer.name}.w1"][rows])
            assert torch.equal(checkpoint.tensor(expert.up), stored[f"{layer.name}.v1"][rows])
            assert torch.equal(checkpoint.tensor(expert.down), stored[f"{layer.name}.w2"][rows].T)


def _without(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != W2}


def _shorter(tensors: Tensors) -> Tensors:
    return tensors | {W2: tensors[W2][:-48].contiguous()}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_without, rf"lacks the tensor '{W2}', though it holds others of the experts of decoder layer 1"),
        (_shorter, rf"'{W2}' of shape \[336, 64\]; with 8 experts of 48 and a hidden size of 64 .* \[384, 64\]"),
    ],
    ids=["a tensor is missing", "an expert is missing"],
)
def test_what_is_missing_is_told(directory: Path, change: Callable[[Tensors], Tensors], problem: str) -> None:
    edit_tensors(directory, change)
    with pytest.raises(CheckpointError, match=problem):
        Checkpoint.open(directory)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"ffn_hidden_size": 48}, "gives no number of experts, which the shapes"),
        ({"moe_num_experts": 8}, "gives no intermediate size of experts, which the shapes"),
        ({"moe_num_experts": 7, "ffn_hidden_size": 48}, "with 7 experts of 48"),
    ],
    ids=str,
)
def test_what_config_json_does_not_say_is_told(directory: Path, section: dict[str, int], problem: str) -> None:
    edit_config(directory, ffn_config=section)
    with pytest.raises(CheckpointError, match=problem):
        Checkpoint.open(directory)
