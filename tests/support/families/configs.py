"""Tiny configurations of transformers' families with experts: small sizes for all, and what some of them need."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from transformers import PreTrainedConfig
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
_ROPE: Final[dict[str, Any]] = {"rope_type": "default", "rope_theta": 10000.0}
_RECURRENT: Final = {"layer_types": ["linear_attention", "full_attention"] * 2}

_NEEDED: Final[dict[str, dict[str, Any]]] = {
    "axk1": _LATENT | {"head_dim": 8},
    "axk2": _LATENT,
    "bailing_hybrid": _LATENT | {"layer_group_size": 2},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 8, "moe_top_k": 3},
    },
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT | {"head_dim": 8},
    "deepseek_v32": _LATENT,
    "deepseek_ocr2_text": _LATENT | {"mlp_layer_types": ["dense", *["sparse"] * 3]},
    "dots3_note_vision_encoder": {"per_layer_config": {}, "adapter_in_dim": 32, "adapter_out_dim": 64},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 64},
    "dots3_note_text": _LATENT | {"layer_types": ["indexed_attention"] * 4},
    "gemma4_text": {
        "enable_moe_block": True,
        "top_k_experts": 2,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 16,
        "pad_token_id": 0,
    },
    "glm4_moe_lite": _LATENT,
    "glm4v_moe_text": {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}},
    "glm5_next_text": _LATENT | {"qk_rope_head_dim": 0},
    "glm_moe_dsa": _LATENT,
    "granitemoehybrid": _RECURRENT,
    "inkling_vision": {"num_hidden_layers": 4, "text_hidden_size": 64},
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
    # the temperature changes within a prompt, a chunk of attention ends within it, and every other layer is dense
    "llama4_text": {
        "intermediate_size_mlp": 80,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 24,
        "floor_scale": 16,
        "pad_token_id": 0,
    },
    "muse_spark_audio": {
        "num_hidden_layers": 4,
        "out_hidden_size": 64,
        "hidden_sizes": [8, 8, 8, 8],
        "depths": [1, 1, 1, 1],
    },
    "mistral4": _LATENT
    | {"head_dim": 8, "rope_parameters": _ROPE | {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16}},
    "mistral_large4_text": _LATENT,
    "nemotron_h_omni": {"projector_hidden_size": 64, "vision_hidden_size": 32},
    # encoder and decoder have experts of different sizes, and the first layers of both are dense
    "nllb-moe": {
        "d_model": 64,
        "encoder_layers": 2,
        "encoder_ffn_dim": 96,
        "encoder_attention_heads": 4,
        "encoder_sparse_step": 2,
        "decoder_layers": 4,
        "decoder_ffn_dim": 80,
        "decoder_attention_heads": 4,
        "decoder_sparse_step": 2,
        "decoder_start_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    },
    "phimoe": {"tie_word_embeddings": True},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 300},
    # published without a window, which transformers would ignore
    "qwen3_omni_moe_text": {"sliding_window": None, "rope_parameters": _ROPE | {"mrope_section": [4, 2, 2]}},
    "qwen3_vl_moe_text": {"sliding_window": None, "rope_parameters": _ROPE | {"mrope_section": [4, 2, 2]}},
    "step3p5": {"pad_token_id": 0},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 8,
    },
    # some experts get more tokens of the tests' longest prompt than this capacity
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


_TOWER: Final[dict[str, Any]] = {
    "hidden_size": 32,
    "embed_dim": 32,
    "d_model": 32,
    "output_dim": 64,
    "out_hidden_size": 64,
    "projection_dim": 64,
    "intermediate_size": 32,
    "encoder_ffn_dim": 32,
    "mlp_ratio": 2.0,
    "depth": 1,
    "n_layers": 4,
    "max_img_size": 32,
    "text_hidden_size": 64,
    "video_temporal_patch_size": 2,
    "num_layers": 1,
    "encoder_layers": 1,
    "num_hidden_layers": 1,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "encoder_attention_heads": 2,
    "head_dim": 16,
    "global_head_dim": 16,
    "patch_size": 4,
    "image_size": 16,
    "deepstack_visual_indexes": [0],
}
"""The towers for images and sound of a multimodal model."""

_TEXT_PARTS = ("text_config", "thinker_config", "llm_config")


def config_of(model_type: str, **settings: Any) -> PreTrainedConfig:
    """The configuration of a tiny model of this type, with some settings of its own."""
    return _tiny(CONFIG_MAPPING[model_type], _SMALL, settings)


def _tiny(
    cls: type[PreTrainedConfig], small: dict[str, Any], own: Mapping[str, Any] = MappingProxyType({})
) -> PreTrainedConfig:
    """A configuration with the small settings that its class has, and so for its parts."""
    known = cls().to_dict()
    settings = {name: value for name, value in small.items() if name in known}
    needed = {**_NEEDED.get(cls.model_type, {}), **own}
    settings |= needed
    for name, part_class in (cls.sub_configs or {}).items():
        part = known.get(name)
        if isinstance(part, dict) and name not in needed:
            part_class = CONFIG_MAPPING[part["model_type"]] if part.get("model_type") in CONFIG_MAPPING else part_class
            settings[name] = _tiny(part_class, _SMALL if name in _TEXT_PARTS else _TOWER).to_dict()
    return cls(**settings)
