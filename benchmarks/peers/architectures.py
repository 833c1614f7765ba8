"""What llama.cpp calls the tensors of a checkpoint, by the checkpoint's model_type."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

_OUTER: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_ATTENTION: Final = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One of llama.cpp's. Names are llama.cpp's, with the checkpoint's, both without ".weight"."""

    name: str
    layer: Mapping[str, str]
    """Of what a layer has once."""
    block: str
    """Of a layer's MoE block in the checkpoint."""
    experts: Mapping[str, str]
    """Of an expert's matrices; llama.cpp stacks those of all experts."""
    rotates_adjacent: bool
    """Whether it rotates adjacent pairs of queries and keys, where the checkpoint has them half a head apart."""

    def tensors(self, config: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
        """Each tensor's name in GGUF, and the tensors of the checkpoint that it is made of."""
        for name, source in _OUTER.items():
            yield f"{name}.weight", [f"{source}.weight"]
        for layer in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}"
            for name, source in self.layer.items():
                yield f"blk.{layer}.{name}.weight", [f"{prefix}.{source}.weight"]
            block = f"{prefix}.{self.block}"
            yield f"blk.{layer}.ffn_gate_inp.weight", [f"{block}.gate.weight"]
            for name, part in self.experts.items():
                experts = [f"{block}.experts.{expert}.{part}.weight" for expert in range(config["num_local_experts"])]
                yield f"blk.{layer}.{name}.weight", experts


ARCHITECTURES: Final = {
    "mixtral": Architecture(
        "llama",
        _ATTENTION,
        "block_sparse_moe",
        {"ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"},
        rotates_adjacent=True,
    ),
    "qwen3_moe": Architecture(
        "qwen3moe",
        {**_ATTENTION, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
        "mlp",
        {"ffn_gate_exps": "gate_proj", "ffn_down_exps": "down_proj", "ffn_up_exps": "up_proj"},
        rotates_adjacent=False,
    ),
}


def is_plain(name: str) -> bool:
    """Whether a tensor of GGUF is in float32 in every file: norms and routers."""
    return "norm" in name or "gate_inp" in name
