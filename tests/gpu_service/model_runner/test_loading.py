"""transformers' classes are replaced while a model is built, and at no other time."""

import pytest
import torch
import transformers
from transformers import modeling_utils
from transformers.models.mixtral import modeling_mixtral

from fiddler.checkpoint import Checkpoint
from gpu_service.errors import ModelError
from gpu_service.model_runner import loading
from gpu_service.moe.layer import MoeLayer
from tests.support import checkpoints

EXPERTS = modeling_mixtral.MixtralExperts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(checkpoints.write("mixtral", tmp_path_factory.mktemp("mixtral")))


def _load(checkpoint: Checkpoint) -> torch.nn.Module:
    return loading.load(checkpoint, loading.read_config(checkpoint.directory), torch.float32)


def test_the_experts_are_replaced_and_transformers_keeps_its_own(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = vars(modeling_utils)["apply_patches"]
    lazy = type(transformers)
    monkeypatch.setattr(lazy, "__dir__", lambda module: pytest.fail("this takes 0.4 s for each model that is built"))
    modules = list(_load(checkpoint).modules())
    assert any(isinstance(module, MoeLayer) for module in modules)
    assert not any(isinstance(module, EXPERTS) for module in modules)
    assert modeling_mixtral.MixtralExperts is EXPERTS
    assert vars(modeling_utils)["apply_patches"] is own


def test_transformers_keeps_its_own_if_building_fails(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    own = vars(modeling_utils)["apply_patches"]
    built = []

    def fail(*arguments: object) -> None:
        built.append(modeling_mixtral.MixtralExperts)
        raise RuntimeError("planted")

    monkeypatch.setattr(modeling_mixtral.MixtralModel, "__init__", fail)
    with pytest.raises(ModelError, match="planted"):
        _load(checkpoint)
    assert built
    assert modeling_mixtral.MixtralExperts is EXPERTS
    assert vars(modeling_utils)["apply_patches"] is own
