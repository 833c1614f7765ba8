"""Small checkpoints of the families that transformers does not know, written tensor by tensor as on the hub."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.convert_slow_tokenizer import import_protobuf

from tests.support import checkpoints
from tests.support.tampering import SINGLE_FILE, Tensors

DEEPSEEK: dict[str, Any] = {
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekConfig",
        "AutoModel": "modeling_deepseek.DeepseekModel",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM",
    },
    "aux_loss_alpha": 0.001,
    "bos_token_id": 1,
    "eos_token_id": None,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "model_type": "deepseek",
    "moe_intermediate_size": 32,
    "moe_layer_freq": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "transformers_version": "4.36.0",
    "use_cache": True,
    "vocab_size": checkpoints.VOCAB_SIZE,
}
"""The fields of deepseek-moe-16b's config.json."""

OPENMOE: dict[str, Any] = {
    "architectures": ["OpenMoeForCausalLM"],
    "attention_bias": False,
    "auto_map": {"AutoModelForCausalLM": "modeling_openmoe.OpenMoeForCausalLM"},
    "bos_token_id": 0,
    "dropout_rate": 0.0,
    "enable_kernel": False,
    "eos_token_id": None,
    "expert_parallel": None,
    "head_dim": 24,
    "hidden_act": "swiglu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 512,
    "mlp_gated": True,
    "model_type": "llama",
    "moe_layer_interval": 2,
    "num_attention_heads": 3,
    "num_experts": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 3,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_factor": 0.01,
    "router_capacity_factor_eval": 2.0,
    "router_capacity_factor_train": 1.25,
    "router_drop_tks": True,
    "router_min_capacity": 4,
    "router_noisy_policy": None,
    "router_topk": 2,
    "router_z_loss_factor": 0.0001,
    "tie_word_embeddings": False,
    "transformers_version": "4.34.0",
    "use_cache": True,
    "vocab_size": checkpoints.VOCAB_SIZE,
    "z_loss_factor": 0.01,
}
"""The fields of openmoe-base's config.json that are about the model."""

CONFIGS = {"deepseek": DEEPSEEK, "openmoe": OPENMOE}
Shapes = dict[str, tuple[int, ...]]


def write(
    family: str, directory: Path, *, dtype: torch.dtype = torch.float32, shards: int = 1, **overrides: Any
) -> Path:
    """Writes a random checkpoint with a tokenizer. A field of None is left out of config.json. Returns `directory`."""
    config = CONFIGS[family] | {"torch_dtype": str(dtype).removeprefix("torch.")} | overrides
    directory.mkdir(parents=True, exist_ok=True)
    shapes = deepseek_shapes(config) if family == "deepseek" else openmoe_shapes(config)
    narrow = re.compile(r"\.(q_proj|gate_proj|wi_gate|wo)\b") if family == "openmoe" else re.compile("(?!)")
    save_file(_draw(shapes, narrow, dtype), directory / SINGLE_FILE, {"format": "pt"})
    kept = {name: value for name, value in config.items() if value is not None or name not in overrides}
    (directory / "config.json").write_text(json.dumps(kept, indent=2))
    if shards > 1:
        checkpoints.shard(directory, shards)
    if family == "deepseek":
        write_deepseek_tokenizer(directory)
    else:
        write_openmoe_tokenizer(directory)
    return directory


def write_deepseek_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer.json that claims to be Llama's."""
    checkpoints.write_tokenizer(directory)
    edit_json(
        directory / "tokenizer_config.json",
        tokenizer_class="LlamaTokenizerFast",
        add_bos_token=True,
        add_eos_token=False,
        legacy=True,
    )


def write_openmoe_tokenizer(directory: Path, byte_fallback: bool = False) -> None:
    """A sentencepiece model of words and letters, and a configuration that names code in the checkpoint."""
    model = import_protobuf().ModelProto()  # type: ignore[no-untyped-call]
    model.trainer_spec.model_type = 1
    model.trainer_spec.unk_id = 3
    model.trainer_spec.byte_fallback = byte_fallback
    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<s>", 0.0, 3), ("<unk>", 0.0, 2)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256 if byte_fallback else 0)]
    pieces += [(word, -2.0, 1) for word in ("▁the", "▁expert", "▁experts", "▁where", "s")]
    pieces += [(letter, -8.0, 1) for letter in "▁abcdefghijklmnopqrtuvwxyz"]
    for text, score, kind in pieces:
        model.pieces.add(piece=text, score=score, type=kind)
    (directory / "spiece.model").write_bytes(model.SerializeToString())
    tokenizer_config = {
        "add_bos_token": True,
        "auto_map": {"AutoTokenizer": ["tokenization_openmoe.OpenMoeTokenizer", None]},
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "tokenizer_class": "OpenMoeTokenizer",
        "unk_token": "<unk>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def deepseek_shapes(config: dict[str, Any]) -> Shapes:
    """The tensors of a DeepSeek-MoE checkpoint."""
    hidden, experts = config["hidden_size"], config["n_routed_experts"]
    expert, shared = config["moe_intermediate_size"], config["n_shared_experts"]
    shapes = _decoder_shapes(config, hidden // config["num_attention_heads"])
    for layer in range(config["num_hidden_layers"]):
        mlp = f"model.layers.{layer}.mlp"
        if layer < config["first_k_dense_replace"] or layer % config["moe_layer_freq"]:
            shapes |= _mlp_shapes(mlp, hidden, config["intermediate_size"])
            continue
        shapes[f"{mlp}.gate.weight"] = (experts, hidden)
        for number in range(experts):
            shapes |= _mlp_shapes(f"{mlp}.experts.{number}", hidden, expert)
        if shared:
            shapes |= _mlp_shapes(f"{mlp}.shared_experts", hidden, shared * expert)
    return shapes


def openmoe_shapes(config: dict[str, Any]) -> Shapes:
    """The tensors of an OpenMoE checkpoint."""
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_experts"]
    shapes = _decoder_shapes(config, config["head_dim"])
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        if (layer + 1) % config["moe_layer_interval"]:
            shapes |= _mlp_shapes(f"{prefix}.mlp", hidden, inner, gate=2 * inner)
            continue
        shapes[f"{prefix}.mlp.gate_weight"] = (experts, hidden)
        shapes[f"{prefix}.mlp.experts.wi_gate"] = (experts, hidden, 2 * inner)
        shapes[f"{prefix}.mlp.experts.wi_up"] = (experts, hidden, inner)
        shapes[f"{prefix}.mlp.experts.wo"] = (experts, inner, hidden)
        shapes[f"{prefix}.pre_extra_mlp_layernorm.weight"] = (hidden,)
        shapes |= _mlp_shapes(f"{prefix}.extra_mlp", hidden, inner, gate=2 * inner)
    return shapes


def _decoder_shapes(config: dict[str, Any], head: int) -> Shapes:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.self_attn.q_proj.weight"] = (queries, hidden)
        shapes[f"{prefix}.self_attn.k_proj.weight"] = (keys, hidden)
        shapes[f"{prefix}.self_attn.v_proj.weight"] = (keys, hidden)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (hidden, queries)
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
    return shapes


def _mlp_shapes(prefix: str, hidden: int, inner: int, gate: int | None = None) -> Shapes:
    return {
        f"{prefix}.gate_proj.weight": (gate or inner, hidden),
        f"{prefix}.up_proj.weight": (inner, hidden),
        f"{prefix}.down_proj.weight": (hidden, inner),
    }


def _draw(shapes: Shapes, narrow: re.Pattern[str], dtype: torch.dtype) -> Tensors:
    """Matrices of standard deviation 0.2, so that experts matter; norms near 1.

    The matrices in `narrow` have less: OpenMoE does not divide its attention scores, and its gates are products, so
    that float32 would be too coarse for its logits.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        values = torch.randn(shape, generator=generator)
        deviation = 0.06 if narrow.search(name) else 0.2
        values = values * 0.05 + 1 if len(shape) == 1 else values * deviation
        tensors[name] = values.to(dtype)
    return tensors
