"""The fields that DeepSeek-MoE's configuration must have, and the model that is built from them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.errors import ModelError
from gpu_service.model_runner.loading import load, read_config
from gpu_service.models.deepseek_moe import DeepseekConfig, DeepseekForCausalLM, MoeBlock, Router
from tests.support import published
from tests.support.tampering import edit_config, edit_tensors

PUBLISHED = published.DEEPSEEK | {
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "vocab_size": 102400,
}
"""The config.json of deepseek-moe-16b-base."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return published.write("deepseek", tmp_path / "model")


def test_the_published_configuration_makes_the_published_model() -> None:
    with torch.device("meta"):
        model = DeepseekForCausalLM.from_config(DeepseekConfig.from_dict(PUBLISHED))
    parts = [isinstance(layer.mlp, MoeBlock) for layer in model.model.layers]
    assert parts == [False] + [True] * 27
    dense = sum(parameter.numel() for parameter in model.parameters())
    experts = 27 * 64 * 3 * 2048 * 1408
    assert round((dense + experts) / 1e9, 1) == 16.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_routed_experts": None}, "n_routed_experts: is missing"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok: is missing"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size: is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: must be a whole number of at least 1, got 0"),
        ({"vocab_size": "many"}, "vocab_size: must be a whole number of at least 1, got 'many'"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok: must be at most n_routed_experts, which is 8, got 9"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace: must be a whole number of at least 0, got -1"),
        ({"scoring_func": "sigmoid"}, "scoring_func: must be 'softmax', got 'sigmoid'"),
        ({"norm_topk_prob": 1}, "norm_topk_prob: must be False or True, got 1"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling: its type must be linear"),
        ({"num_attention_heads": 3}, "num_attention_heads: must divide hidden_size, which is 64, got 3"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: must divide num_attention_heads, which is 4, got 3"),
    ],
    ids=str,
)
def test_a_field_that_is_missing_or_wrong_is_named(directory: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(directory, **changes)
    with pytest.raises(ModelError) as raised:
        read_config(directory)
    assert str(raised.value).startswith(f"{directory / 'config.json'}: {message}")


def test_a_tensor_that_is_missing_is_named(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {n: t for n, t in tensors.items() if n != "model.layers.1.mlp.gate.weight"})
    with pytest.raises(ModelError, match=r"lacks model\.layers\.1\.mlp\.gate\.weight"):
        load(Checkpoint.open(directory), read_config(directory), torch.float32)


def test_linear_scaling_of_positions_divides_them(directory: Path) -> None:
    edit_config(directory, rope_scaling={"type": "linear", "factor": 4.0})
    model = load(Checkpoint.open(directory), read_config(directory), torch.float32)
    rotary: Any = model.get_submodule("model.rotary_emb")
    scaled, _ = rotary(torch.zeros(1, 1), torch.tensor([[8]]))
    edit_config(directory, rope_scaling=None)
    plain: Any = load(Checkpoint.open(directory), read_config(directory), torch.float32)
    torch.testing.assert_close(scaled, plain.model.rotary_emb(torch.zeros(1, 1), torch.tensor([[2]]))[0])


def test_routing_weights_are_affinities_and_not_normalised() -> None:
    config = DeepseekConfig.from_dict(published.DEEPSEEK)
    router = Router(config)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(router.weight, std=0.1, generator=generator)
    hidden = torch.randn(5, 64, generator=generator)
    _, weights, ids = router(hidden)
    affinities = (hidden @ router.weight.T).softmax(-1)
    torch.testing.assert_close(weights, affinities.gather(1, ids))
    assert (weights.sum(-1) < 0.95).all()
