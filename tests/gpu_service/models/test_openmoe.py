"""The fields that OpenMoE's configuration must have, the model built from them, and which assignments find room."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiddler.checkpoint import Checkpoint
from gpu_service.errors import ModelError
from gpu_service.model_runner.loading import load, read_config
from gpu_service.models.openmoe import MoeBlock, OpenMoeConfig, OpenMoeForCausalLM, capacity, has_room
from tests.support import published
from tests.support.tampering import edit_config, edit_tensors

BASE = {"hidden_size": 768, "intermediate_size": 2048, "head_dim": 64, "num_attention_heads": 12} | {
    "num_key_value_heads": 12, "num_experts": 16, "num_hidden_layers": 12, "moe_layer_interval": 4
}  # fmt: skip
LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "head_dim": 128, "num_attention_heads": 24} | {
    "num_key_value_heads": 24, "num_experts": 32, "num_hidden_layers": 24, "moe_layer_interval": 6
}  # fmt: skip
LARGEST = {"hidden_size": 3072, "intermediate_size": 12288, "head_dim": 128, "num_attention_heads": 24} | {
    "num_key_value_heads": 24, "num_experts": 32, "num_hidden_layers": 32, "moe_layer_interval": 4
}  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return published.write("openmoe", tmp_path / "model")


@pytest.mark.parametrize("sizes", [BASE, LARGE, LARGEST], ids=["base", "8b", "34b"])
def test_the_published_configurations_make_models_with_experts_where_they_are(sizes: dict[str, int]) -> None:
    config = OpenMoeConfig.from_dict(published.OPENMOE | sizes | {"vocab_size": 256384})
    with torch.device("meta"):
        model = OpenMoeForCausalLM.from_config(config)
    places = [number for number, layer in enumerate(model.model.layers, 1) if isinstance(layer.mlp, MoeBlock)]
    interval = sizes["moe_layer_interval"]
    assert places == list(range(interval, sizes["num_hidden_layers"] + 1, interval))
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.shape == (sizes["num_attention_heads"] * sizes["head_dim"], sizes["hidden_size"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": None}, "num_experts: is missing"),
        ({"head_dim": None}, "head_dim: is missing"),
        ({"moe_layer_interval": None}, "moe_layer_interval: is missing"),
        ({"router_drop_tks": None}, "router_drop_tks: is missing"),
        ({"router_capacity_factor_eval": None}, "router_capacity_factor_eval: is missing"),
        ({"hidden_act": None}, "hidden_act: is missing"),
        ({"hidden_act": "gelu"}, "hidden_act: must be 'swiglu', got 'gelu'"),
        ({"router_topk": 1}, "router_topk: must be 2, got 1"),
        ({"router_drop_tks": "no"}, "router_drop_tks: must be False or True, got 'no'"),
        (
            {"router_capacity_factor_eval": -1.0},
            "router_capacity_factor_eval: must be a number of at least 0, got -1.0",
        ),
        ({"mlp_gated": False}, "mlp_gated: must be True, got False"),
        ({"rope_theta": 500000.0}, "rope_theta: must be 10000.0 or 10000, got 500000.0"),
        ({"moe_layer_interval": 5}, "moe_layer_interval: must be at most num_hidden_layers, which is 4, got 5"),
        ({"num_experts": 1}, "num_experts: must be at least router_topk, which is 2, got 1"),
        ({"head_dim": 23}, "head_dim: must be even, got 23"),
        ({"num_key_value_heads": 2}, "num_key_value_heads: must divide num_attention_heads, which is 3, got 2"),
    ],
    ids=str,
)
def test_a_field_that_is_missing_or_wrong_is_named(directory: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(directory, **changes)
    with pytest.raises(ModelError) as raised:
        read_config(directory)
    assert str(raised.value).startswith(f"{directory / 'config.json'}: {message}")


def test_a_tensor_that_is_missing_is_named(directory: Path) -> None:
    name = "model.layers.1.mlp.gate_weight"
    edit_tensors(directory, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(ModelError, match=r"lacks model\.layers\.1\.mlp\.gate_weight"):
        load(Checkpoint.open(directory), read_config(directory), torch.float32)


def test_the_family_is_told_from_the_architecture_and_not_from_llama_s_type(directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.model_type == "openmoe"
    assert read_config(directory).model_type == "openmoe"
    edit_config(directory, model_type=None)
    assert Checkpoint.open(directory).model_type == "openmoe"


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "room"),
    [(1, 32, 4), (32, 32, 4), (39, 32, 4), (40, 32, 6), (48, 32, 6), (100, 32, 12), (2048, 32, 256), (100, 16, 26)],
)
def test_an_expert_has_room_for_twice_its_even_share(num_tokens: int, num_experts: int, room: int) -> None:
    config = OpenMoeConfig.from_dict(published.OPENMOE | {"num_experts": num_experts})
    assert capacity(config, num_tokens) == room
    assert room >= math.floor(4 * num_tokens / num_experts)


@given(
    prompts=st.integers(1, 20).flatmap(
        lambda tokens: st.lists(
            st.lists(st.permutations(range(4)).map(lambda order: order[:2]), min_size=tokens, max_size=tokens),
            min_size=1,
            max_size=3,
        )
    ),
    room=st.integers(1, 6),
)
def test_first_choices_are_seated_first_and_those_that_found_no_room_still_count(
    prompts: list[list[list[int]]], room: int
) -> None:
    seated = has_room(torch.tensor(prompts), 4, room)
    for prompt, answers in zip(prompts, seated.tolist(), strict=True):
        asked = [0] * 4
        for choice in (0, 1):
            for experts, answer in zip(prompt, answers, strict=True):
                asked[experts[choice]] += 1
                assert answer[choice] == (asked[experts[choice]] <= room)


def test_a_token_that_is_decoded_is_never_dropped_however_many_there_are() -> None:
    config = OpenMoeConfig.from_dict(published.OPENMOE)
    block = MoeBlock(config)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(block.gate_weight, std=0.1, generator=generator)
    hidden = torch.randn(1, 1, 64, generator=generator).expand(12, 1, 64)
    ids, weights = block.route(hidden)
    assert (ids >= 0).all()
    assert (weights.sum(-1) < 0.95).all()
    ids, _ = block.route(hidden.transpose(0, 1))
    assert (ids >= 0).sum() == 2 * capacity(config, 12)
