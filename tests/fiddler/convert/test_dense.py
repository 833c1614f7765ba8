"""Which tensors beside the experts are linear layers."""

from pathlib import Path

import pytest

from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.convert.dense import is_linear


def _is_linear(name: str, shape: tuple[int, ...] = (8, 8), *, is_tied: bool = False) -> bool:
    tensor = StoredTensor(file=Path("x"), name=name, dtype="BF16", shape=shape, begin=0, end=128)
    return is_linear(tensor, {"text_config": {"tie_word_embeddings": is_tied}})


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.3.mlp.shared_experts.gate_proj.weight",
        "model.layers.0.linear_attn.in_proj_qkvz.weight",
        "layers.0.attn.wq_b.weight",
        "layers.0.feed_forward.w1.weight",
        "transformer.blocks.1.norm_attn_norm.attn.Wqkv.weight",
        "decoder.block.1.layer.1.EncDecAttention.k.weight",
        "encoder.block.0.layer.1.mlp.wi.weight",
        "model.layers.0.shared_mlp.input_linear.weight",
        "model.decoder.layers.0.fc1.weight",
    ],
)
def test_linear_layers(name: str) -> None:
    assert _is_linear(name)
    assert not _is_linear(name, (8,))
    assert not _is_linear(name, (2, 8, 8))
    assert not _is_linear(name.removesuffix("weight") + "bias", (8,))


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "shared.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.gate.router_mlp.out_proj.weight",
        "model.layers.0.block_sparse_moe.router.layer.weight",
        "model.layers.0.self_attn.indexer.weights_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.visual.blocks.0.attn.qkv.weight",
        "model.vision_tower.layers.0.self_attn.q_proj.weight",
        "multi_modal_projector.linear_1.weight",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "model.layers.0.linear_attn.in_proj_b.weight",
        "model.layers.0.mamba.A_log",
    ],
)
def test_others(name: str) -> None:
    assert not _is_linear(name)


def test_a_gate_of_one_output_and_a_tied_head_are_none() -> None:
    assert not _is_linear("model.layers.0.mlp.shared_gate_proj.weight", (1, 8))
    assert not _is_linear("lm_head.weight", is_tied=True)
    assert _is_linear("model.layers.0.self_attn.q_proj.weight", is_tied=True)
