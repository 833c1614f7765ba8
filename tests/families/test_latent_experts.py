"""Nemotron-H with moe_latent_size: rows are projected before the routed experts, and back after them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fiddler.checkpoint import Checkpoint, CheckpointError
from gpu_service.model_runner.loading import read_config
from gpu_service.model_runner.trial import try_model
from tests.support import reference
from tests.support.families import tiny
from tests.support.families.engine import Engine, best_kernel
from tests.support.tampering import edit_config

LATENT, NUM_TOKENS = 48, 24


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write("nemotron_h", tmp_path_factory.mktemp("latent"), config={"moe_latent_size": LATENT})


def test_tokens_are_those_of_transformers(directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.train(False)
    engine = Engine(directory, best_kernel(), max_rows=8)
    assert {layer.hidden_size for layer in engine.checkpoint.layers} == {LATENT}
    assert engine.model.routers == {}, "the next layer's router does not take the rows that experts are given"
    expected = [reference.generate(model, prompt, NUM_TOKENS) for prompt in reference.PROMPTS]
    for found in ([engine.generate([each], NUM_TOKENS)[0] for each in reference.PROMPTS],
                  engine.generate(reference.PROMPTS, NUM_TOKENS)):  # fmt: skip
        for (tokens, logits), (due_tokens, due_logits) in zip(found, expected, strict=True):
            assert tokens == due_tokens
            torch.testing.assert_close(logits, due_logits, rtol=1e-4, atol=1e-4)


def test_the_trial_passes(directory: Path) -> None:
    try_model(Checkpoint.open(directory), read_config(directory), torch.float32)


def test_a_wrong_latent_size_is_named(tmp_path: Path) -> None:
    directory = tiny.write("nemotron_h", tmp_path, config={"moe_latent_size": LATENT})
    edit_config(directory, moe_latent_size=LATENT + 1)
    with pytest.raises(CheckpointError, match=r"with a hidden size of 49 \(\S+config\.json: moe_latent_size\)"):
        Checkpoint.open(directory)


def test_the_setting_means_nothing_to_other_families(tmp_path: Path) -> None:
    directory = tiny.write("mixtral", tmp_path)
    edit_config(directory, moe_latent_size=LATENT)
    assert Checkpoint.open(directory).layers[0].hidden_size == 64
