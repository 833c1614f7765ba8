"""A checkpoint of Qwen3-30B-A3B's form: many small experts, heads wider than their share of a token, norms in each."""

from pathlib import Path

from transformers import AutoConfig

from tests.support.large_checkpoint import Shapes, attention_shapes, block_shapes, outer_shapes, write_noise

HEAD_DIM = 128
TOP_K = 8
HEADS_OF_A_KEY = 8
"""How many heads of queries share one of keys and values."""
_NAMES = ("gate_proj", "down_proj", "up_proj")


def qwen3_parts(
    *, hidden: int, inner: int, num_layers: int, num_heads: int, vocab_size: int, num_experts: int
) -> list[Shapes]:
    """The shapes of the tensors of each file, by name."""
    layers: list[Shapes] = []
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        queries = num_heads * HEAD_DIM
        attention = attention_shapes(prefix, hidden=hidden, queries=queries, keys=queries // HEADS_OF_A_KEY)
        norms: Shapes = {f"{prefix}.self_attn.{name}_norm.weight": (HEAD_DIM,) for name in "qk"}
        block = block_shapes(f"{prefix}.mlp", _NAMES, hidden=hidden, inner=inner, num_experts=num_experts)
        layers.append(attention | norms | block)
    return [outer_shapes(hidden, vocab_size), *layers]


def write_qwen3(
    directory: Path,
    *,
    hidden: int,
    inner: int,
    num_layers: int,
    num_heads: int,
    vocab_size: int,
    num_experts: int,
) -> Path:
    """A bf16 qwen3_moe of that shape, with a tensor for each matrix of an expert; its matrices are noise."""
    config = AutoConfig.for_model(
        "qwen3_moe",
        hidden_size=hidden,
        intermediate_size=TOP_K * inner,
        moe_intermediate_size=inner,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // HEADS_OF_A_KEY,
        head_dim=HEAD_DIM,
        num_experts=num_experts,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        vocab_size=vocab_size,
        max_position_embeddings=1024,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
        architectures=["Qwen3MoeForCausalLM"],
    )
    parts = qwen3_parts(
        hidden=hidden,
        inner=inner,
        num_layers=num_layers,
        num_heads=num_heads,
        vocab_size=vocab_size,
        num_experts=num_experts,
    )
    return write_noise(directory, config, parts)
