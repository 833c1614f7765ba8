"""Tiny configurations of transformers' families with experts: the same small sizes for all, and what some need besides."""

from typing import Any, Final

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB_SIZE: Final = 320

_SMALL: Final[dict[str, Any]] = {
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    # attention
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "rotary_dim": 8,
    "block_size": 16,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "o_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 16,
    # recurrent layers
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_dt_rank": 8,
    "mamba_chunk_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "chunk_size": 16,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    # experts
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "shared_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "shared_experts_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 48,
}

_LATENT: Final[dict[str, Any]] = {"num_key_value_heads": 4}
_RECURRENT: Final = {"layer_types": ["linear_attention", "full_attention"] * 2}

_BESIDES: Final[dict[str, dict[str, Any]]] = {
    "axk1": _LATENT | {"head_dim": 8},
    "axk2": _LATENT,
    "bailing_hybrid": _LATENT | {"layer_group_size": 2},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 500000},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 8, "moe_top_k": 3},
    },
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT | {"head_dim": 8},
    "deepseek_v32": _LATENT,
    "dots3_note_text": _LATENT | {"layer_types": ["indexed_attention"] * 4},
    "gemma4_text": {
        "enable_moe_block": True,
        "top_k_experts": 2,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 16,
    },
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "granitemoehybrid": _RECURRENT,
    "inkling_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "local_layer_ids": [0, 2],
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "jetmoe": {"num_key_value_heads": 2, "kv_channels": 16},
    "kimi_linear": _LATENT | _RECURRENT,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    # the temperature changes within a prompt, a chunk of attention ends in it, and every other layer is dense
    "llama4_text": {
        "intermediate_size_mlp": 80,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 24,
        "floor_scale": 16,
        "pad_token_id": 0,
    },
    "phimoe": {"tie_word_embeddings": True},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 8,
    },
    # capacity: the longest of the tests' prompts has experts that get more
    "switch_transformers": {
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 96,
        "num_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_decoder_layers": 3,
        "num_sparse_decoder_layers": 3,
        "num_heads": 4,
        "expert_capacity": 5,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def settings_of(model_type: str) -> dict[str, Any]:
    """The settings of a tiny model of this type: of those above, the ones that its configuration has."""
    known = CONFIG_MAPPING[model_type]().to_dict()
    return {name: value for name, value in _SMALL.items() if name in known} | _BESIDES.get(model_type, {})
