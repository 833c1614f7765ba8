"""Families whose MoE blocks are replaced as a whole, through the two real services, in the hub's layout."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig

from cpu_expert_service.kernel import PyTorchKernel
from gpu_service.errors import ModelError
from gpu_service.models.registry import architecture_of
from tests.support import checkpoints, reference
from tests.support.calls import Stub, connect, generate_one, sampling
from tests.support.families import tiny
from tests.support.families.engine import Engine
from tests.support.pairs import start
from tests.support.tampering import SINGLE_FILE, edit_config

NUM_TOKENS = 32
TOLERANCE = 5e-5
_EXPERTS = {
    "dbrx": ("transformer.blocks.0.ffn.experts.mlp.w2", [8 * 48, 64]),
    "jetmoe": ("model.layers.0.mlp.input_linear.weight", [8, 192, 64]),
    "llama4": ("language_model.model.layers.1.feed_forward.experts.gate_up_proj", [8, 64, 192]),
    "llama4_text": ("model.layers.1.feed_forward.experts.gate_up_proj", [8, 64, 192]),
}
"""A tensor of experts and its shape on the hub."""


@dataclass(frozen=True)
class Case:
    """A family's checkpoint and transformers' model of it."""

    family: str
    directory: Path
    model: Any


@pytest.fixture(scope="module", params=_EXPERTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tiny.write(request.param, tmp_path_factory.mktemp(request.param))
    checkpoints.write_tokenizer(directory)
    auto_class = architecture_of(request.param).auto_class
    return Case(request.param, directory, auto_class.from_pretrained(directory, dtype=torch.float32).eval())


@pytest.fixture(scope="module")
def stub(case: Case) -> Iterator[Stub]:
    with start(case.directory) as pair, connect(pair.target) as stub:
        yield stub


def _tokens(stub: Stub, prompt: list[int]) -> list[int]:
    return generate_one(stub, prompt, max_tokens=NUM_TOKENS, sampling=sampling(temperature=0)).token_ids


def test_the_pair_gives_the_tokens_of_transformers_alone_and_at_once(case: Case, stub: Stub) -> None:
    expected = [reference.generate(case.model, prompt, NUM_TOKENS)[0] for prompt in reference.PROMPTS]
    assert [_tokens(stub, prompt) for prompt in reference.PROMPTS] == expected
    with ThreadPoolExecutor(len(expected)) as threads:
        assert list(threads.map(lambda prompt: _tokens(stub, prompt), reference.PROMPTS)) == expected


def test_its_experts_lie_as_on_the_hub(case: Case) -> None:
    name, shape = _EXPERTS[case.family]
    with safe_open(case.directory / SINGLE_FILE, "pt") as file:
        assert file.get_slice(name).get_shape() == shape


def _logits(directory: Path, prompt: list[int]) -> torch.Tensor:
    ((_, logits),) = Engine(directory, PyTorchKernel(1)).generate([prompt], NUM_TOKENS)
    return logits


def test_a_sharded_checkpoint_in_half_precision_agrees(case: Case, tmp_path: Path) -> None:
    directory = tiny.write(case.family, tmp_path, dtype=torch.bfloat16)
    checkpoints.shard(directory, 3)
    model = architecture_of(case.family).auto_class.from_pretrained(directory, dtype=torch.float32).eval()
    expected = reference.generate(model, reference.PROMPTS[1], NUM_TOKENS)[1]
    assert (_logits(directory, reference.PROMPTS[1]) - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_llama4_may_choose_several_experts(tmp_path: Path) -> None:
    model = tiny.build("llama4_text", config={"num_experts_per_tok": 3})
    model.save_pretrained(tmp_path)
    expected = reference.generate(model, reference.PROMPTS[1], NUM_TOKENS)[1]
    assert (_logits(tmp_path, reference.PROMPTS[1]) - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_dbrx_takes_the_base_of_its_positions_from_where_the_hub_has_it(tmp_path: Path) -> None:
    base = 500_000
    tiny.write("dbrx", tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["attn_config"]["rope_theta"] = base
    del settings["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.rope_parameters["rope_theta"] == 10_000  # since transformers does not read attn_config
    config.rope_parameters["rope_theta"] = base
    model = architecture_of("dbrx").auto_class.from_pretrained(tmp_path, config=config, dtype=torch.float32).eval()
    prompt = reference.PROMPTS[2]
    expected = reference.generate(model, prompt, NUM_TOKENS)[1]
    assert (_logits(tmp_path, prompt) - expected).abs().max() < TOLERANCE * expected.abs().max()


@pytest.mark.parametrize(
    ("base", "problem"),
    [
        (500_000, "attn_config.rope_theta: is 500000, and rope_parameters.rope_theta 10000.0; they must agree"),
        (None, "attn_config.rope_theta: must be a number above 0, got None"),
        ("much", "attn_config.rope_theta: must be a number above 0, got 'much'"),
    ],
)
def test_dbrx_without_one_base_is_refused(base: Any, problem: str, tmp_path: Path) -> None:
    tiny.write("dbrx", tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    edit_config(tmp_path, attn_config=settings["attn_config"] | {"rope_theta": base})
    with pytest.raises(ModelError) as raised:
        Engine(tmp_path, PyTorchKernel(1))
    assert str(raised.value) == f"{tmp_path / 'config.json'}: {problem}"
