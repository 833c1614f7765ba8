"""A model is tried on tensors without values: what a start would fail with is told, with the setting that is wrong."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.errors import UserError
from gpu_service.model_runner import trial
from gpu_service.model_runner.loading import read_config
from gpu_service.model_runner.trial import try_model
from tests.support.families import published, tiny

FAMILIES = ("mixtral", "qwen3_moe", "deepseek_v3", "olmoe", "phimoe", "gpt_oss")

WRONG: tuple[tuple[str, dict[str, Any]], ...] = (
    ("deepseek_v3", {"n_group": None, "topk_group": None}),
    ("deepseek_v3", {"n_group": 0}),
    ("deepseek_v3", {"topk_group": 10**9}),
    ("deepseek_v3", {"kv_lora_rank": None}),
    ("deepseek_v3", {"head_dim": None}),
    ("deepseek_v3", {"first_k_dense_replace": 10**9}),
    ("deepseek_v3", {"first_k_dense_replace": 0}),
    ("deepseek_v3", {"n_routed_experts": 0}),
    ("deepseek_v3", {"n_shared_experts": -1}),
    ("deepseek_v3", {"qk_rope_head_dim": 2.5}),
    ("mixtral", {"num_experts_per_tok": 9}),
    ("mixtral", {"num_experts_per_tok": -1}),
    ("mixtral", {"num_experts_per_tok": None}),
    ("mixtral", {"num_attention_heads": 5}),
    ("mixtral", {"num_attention_heads": 0}),
    ("mixtral", {"num_key_value_heads": 10**12}),
    ("mixtral", {"num_hidden_layers": 0}),
    ("mixtral", {"hidden_size": "64"}),
    ("mixtral", {"num_local_experts": 10**12}),
    ("qwen3_moe", {"head_dim": 0}),
    ("qwen3_moe", {"moe_intermediate_size": None}),
    ("olmoe", {"num_key_value_heads": 0}),
    ("phimoe", {"num_attention_heads": "four"}),
    ("phimoe", {"num_local_experts": 0}),
    ("gpt_oss", {"num_experts_per_tok": 10**9}),
    ("gpt_oss", {"head_dim": 10**12}),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("sound")
    return {family: tiny.write(family, root / family) for family in FAMILIES}


def attempt(directory: Path) -> None:
    try_model(Checkpoint.open(directory), read_config(directory), torch.float32)


@pytest.mark.parametrize(("family", "changes"), WRONG)
def test_a_wrong_setting_is_named_in_one_line(
    family: str, changes: dict[str, Any], sound: Mapping[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = Path(shutil.copytree(sound[family], tmp_path / "model"))
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        attempt(directory)
    message = str(caught.value)
    assert any(name in message for name in changes)
    assert "config.json" in message
    assert "\n" not in message
    assert time.monotonic() - began < 60
    assert "Traceback" not in "".join(capfd.readouterr()), "PyTorch logs what fails on fake tensors"


@pytest.mark.parametrize(
    "family",
    [
        *FAMILIES,
        "gemma4_text",
        "jetmoe",
        "llama4_text",
        "nemotron_h",
        "switch_transformers",
    ],
)
def test_a_sound_model_passes_and_no_weight_is_read(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = published.write(family, tmp_path)
    monkeypatch.setattr("gpu_service.model_runner.reading.dense_state.LazyTensor.__getitem__", None)
    attempt(directory)


def test_what_depends_on_values_is_not_held_against_a_model(
    sound: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(module: Any, config: Any) -> None:
        torch.ones(3).nonzero()

    monkeypatch.setattr(trial, "_compute", compute)
    attempt(sound["mixtral"])
