"""OpenMoE's experts: three stacks for each layer, transposed, the first of twice the width."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.errors import CheckpointError
from tests.support import published
from tests.support.tampering import SINGLE_FILE, Tensors, edit_config, edit_tensors

PREFIX = "model.layers.1.mlp.experts"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return published.write("openmoe", tmp_path / "model", dtype=torch.bfloat16)


def test_every_expert_s_matrices_are_views_of_the_stacks(directory: Path) -> None:
    stored = load_file(directory / SINGLE_FILE)
    checkpoint = Checkpoint.open(directory)
    assert [layer.decoder_layer for layer in checkpoint.layers] == [1, 3]
    layer = checkpoint.layers[0]
    assert (layer.num_experts, layer.hidden_size, layer.intermediate_size) == (8, 64, 48)
    assert layer.activation.name == "silu"
    for number, expert in enumerate(layer.experts):
        assert expert.gate is not None
        assert expert.factor is not None
        linear, gate = stored[f"{PREFIX}.wi_gate"][number].chunk(2, dim=1)
        assert torch.equal(checkpoint.tensor(expert.factor), linear.T)
        assert torch.equal(checkpoint.tensor(expert.gate), gate.T)
        assert torch.equal(checkpoint.tensor(expert.up), stored[f"{PREFIX}.wi_up"][number].T)
        assert torch.equal(checkpoint.tensor(expert.down), stored[f"{PREFIX}.wo"][number].T)
    names = {f"model.layers.{layer}.mlp.experts.{part}" for layer in (1, 3) for part in ("wi_gate", "wi_up", "wo")}
    assert checkpoint.expert_tensor_names == names


def _without(tensors: Tensors, name: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize("part", ["wi_gate", "wi_up", "wo"])
def test_a_stack_that_is_missing_is_named(directory: Path, part: str) -> None:
    edit_tensors(directory, lambda tensors: _without(tensors, f"{PREFIX}.{part}"))
    with pytest.raises(CheckpointError, match=rf"lacks the tensor '{PREFIX}\.{part}'"):
        Checkpoint.open(directory)


@pytest.mark.parametrize(
    ("part", "shape", "due"),
    [
        ("wi_gate", (8, 64, 48), r"must be \[8, 64, 96\]"),
        ("wi_up", (8, 63, 48), r"must be \[experts, 64, intermediate\]"),
        ("wi_up", (8, 64), r"must be \[experts, 64, intermediate\]"),
        ("wo", (8, 64, 48), r"must be \[8, 48, 64\]"),
        ("wo", (7, 48, 64), r"must be \[8, 48, 64\]"),
    ],
    ids=str,
)
def test_a_shape_that_does_not_fit_is_told(directory: Path, part: str, shape: tuple[int, ...], due: str) -> None:
    name = f"{PREFIX}.{part}"
    edit_tensors(directory, lambda tensors: tensors | {name: torch.zeros(shape, dtype=torch.bfloat16)})
    with pytest.raises(CheckpointError, match=due) as raised:
        Checkpoint.open(directory)
    assert name in str(raised.value)


def test_another_number_of_experts_or_width_in_the_configuration_is_told(directory: Path) -> None:
    edit_config(directory, num_experts=16)
    with pytest.raises(CheckpointError, match=r"holds 8 experts .* says there are 16"):
        Checkpoint.open(directory)
    edit_config(directory, num_experts=8, intermediate_size=50)
    with pytest.raises(CheckpointError, match=r"expert intermediate size of 48 .* says 50"):
        Checkpoint.open(directory)
