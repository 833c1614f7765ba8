"""OpenMoE (base, 8B, 34B): ST-MoE's decoder with rotary positions, written from the paper and the checkpoints.

Xue et al., "OpenMoE: An Early Effort on Open Mixture-of-Experts Language Models", arXiv 2402.01739. It comes from T5X
and was published with Llama's configuration, but differs from Llama: attention scores are not divided by the square
root of the head's size; the gate of an MLP is itself a SwiGLU; every moe_layer_interval-th layer has experts, followed
by another MLP with its own norm and residual.

Experts have room for a limited number of a prompt's tokens, in evaluation too; see decision 15.
"""

import math
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from gpu_service.models.config_fields import (
    FieldError,
    Settings,
    allow_counts,
    require_at_most,
    require_counts,
    require_divisor,
    require_number,
    require_one_of,
    require_present,
)
from gpu_service.moe.layer import MoeLayer

_COUNTS = (
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "moe_layer_interval",
    "num_attention_heads",
    "num_experts",
    "num_hidden_layers",
    "router_min_capacity",
    "router_topk",
    "vocab_size",
)
_ROPE_THETA = 10000.0


@strict
class OpenMoeConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """A config.json that names OpenMoeForCausalLM; all other fields are Llama's."""

    model_type = "openmoe"

    num_experts: int | None = None
    moe_layer_interval: int | None = None
    """One in this many layers has experts: the last of them."""
    router_topk: int = 2
    router_capacity_factor_eval: float | int = 2.0
    """An expert has room for this many times the tokens that it would get if they were spread evenly."""
    router_min_capacity: int = 4
    router_drop_tks: bool = True

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of a config.json.

        Raises:
            FieldError: A field is missing or wrong.
        """
        check(config_dict)
        return super().from_dict({**config_dict, "model_type": cls.model_type}, **kwargs)  # config.json says llama

    def validate_architecture(self) -> None:
        """Allows heads of any size: those of the 8B model, 24 of 128, are together wider than its hidden state."""

    def has_experts(self, layer_idx: int) -> bool:
        """Whether a decoder layer has a MoE block instead of an MLP."""
        assert self.moe_layer_interval is not None
        return (layer_idx + 1) % self.moe_layer_interval == 0


def check(settings: Settings) -> None:
    """Checks the fields that the model is built from, and that they ask for what OpenMoE's code computes.

    Raises:
        FieldError: A field is missing or wrong.
    """
    require_counts(settings, _COUNTS)
    allow_counts(settings, ("num_key_value_heads",))
    require_divisor(settings, "num_key_value_heads", "num_attention_heads")
    if settings["head_dim"] % 2:
        raise FieldError(f"head_dim: must be even, got {settings['head_dim']}")
    require_present(settings, ("router_drop_tks", "router_capacity_factor_eval", "hidden_act"))
    require_one_of(settings, "router_topk", (2,), default=None)
    require_one_of(settings, "router_drop_tks", (False, True), default=None)
    require_number(settings, "router_capacity_factor_eval", least=0, default=2.0)
    require_one_of(settings, "hidden_act", ("swiglu",), default=None)
    require_one_of(settings, "mlp_gated", (True,), default=True)
    require_one_of(settings, "rope_theta", (_ROPE_THETA, int(_ROPE_THETA)), default=_ROPE_THETA)
    require_one_of(settings, "rope_scaling", (None,), default=None)
    if settings["num_experts"] < settings["router_topk"]:
        raise FieldError(f"num_experts: must be at least router_topk, which is 2, got {settings['num_experts']}")
    require_at_most(settings, "moe_layer_interval", "num_hidden_layers")


def capacity(config: OpenMoeConfig, num_tokens: int) -> int:
    """The assignments that an expert has room for in a prompt of `num_tokens` tokens: an even number."""
    assert config.num_experts is not None
    even_share = config.router_topk * num_tokens / config.num_experts
    room = math.floor(config.router_capacity_factor_eval * even_share)
    return max(room + room % 2, config.router_min_capacity)


def has_room(ids: torch.Tensor, num_experts: int, room: int) -> torch.Tensor:
    """Which assignments find room at their experts.

    Args:
        ids: [sequences, tokens, k], the preferred expert of each token first. The first choices of all tokens are
            served before any second choice, and earlier tokens before later ones; assignments without room count, too.
        num_experts: In the layer.
        room: Assignments that each expert has room for, in each sequence.

    Returns:
        [sequences, tokens, k] bool.
    """
    in_order = ids.transpose(1, 2).flatten(1)
    wanted = functional.one_hot(in_order, num_experts).cumsum(1)
    place = wanted.gather(2, in_order[:, :, None]).squeeze(2)
    return (place <= room).view(ids.shape[0], ids.shape[2], ids.shape[1]).transpose(1, 2)


class MoeBlock(nn.Module):
    """The router, which is a parameter rather than a module as published, and the experts."""

    def __init__(self, config: OpenMoeConfig) -> None:
        super().__init__()
        assert config.num_experts is not None
        self.config = config
        self.gate_weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.experts = MoeLayer(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[sequences, tokens, hidden] -> the same; several tokens of a sequence are a whole prompt."""
        ids, weights = self.route(hidden)
        output: torch.Tensor = self.experts(hidden, ids.flatten(0, 1), weights.flatten(0, 1))
        return output

    def route(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Expert ids, -1 if the expert has no room, and weights, both [sequences, tokens, 2].

        Weights are the two largest of a softmax over all experts, in float32, not divided by their sum.
        """
        logits = functional.linear(hidden.to(torch.float32), self.gate_weight.to(torch.float32))
        weights, ids = logits.softmax(dim=-1).topk(self.config.router_topk, dim=-1)
        num_tokens = hidden.shape[1]
        if self.config.router_drop_tks and num_tokens > 1:
            room = capacity(self.config, num_tokens)
            ids = ids.masked_fill(~has_room(ids, logits.shape[-1], room), -1)
        return ids, weights


class Mlp(nn.Module):
    """down(a * silu(b) * up(x)), with gate(x) = (a | b)."""

    def __init__(self, config: OpenMoeConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., hidden]."""
        linear, gate = self.gate_proj(hidden).chunk(2, dim=-1)
        output: torch.Tensor = self.down_proj(linear * functional.silu(gate) * self.up_proj(hidden))
        return output


class Attention(LlamaAttention):
    """Llama's attention without the division by the square root of the head's size, as in T5."""

    def __init__(self, config: OpenMoeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.scaling = 1.0


class DecoderLayer(nn.Module):
    """Attention, an MLP or experts, and another MLP after experts."""

    def __init__(self, config: OpenMoeConfig, layer_idx: int) -> None:
        super().__init__()
        self.has_experts = config.has_experts(layer_idx)
        self.self_attn = Attention(config, layer_idx)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MoeBlock(config) if self.has_experts else Mlp(config)
        if self.has_experts:
            self.pre_extra_mlp_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.extra_mlp = Mlp(config)

    def forward(self, hidden_states: torch.Tensor, **attention: Any) -> torch.Tensor:
        """[sequences, tokens, hidden] -> the same; further arguments are the attention's."""
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **attention)
        hidden_states = hidden_states + attended
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        if self.has_experts:
            hidden_states = hidden_states + self.extra_mlp(self.pre_extra_mlp_layernorm(hidden_states))
        return hidden_states


class OpenMoeModel(LlamaModel):  # type: ignore[no-untyped-call]
    """The decoder without a head."""

    config_class = OpenMoeConfig

    def __init__(self, config: OpenMoeConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # LlamaModel's would build Llama's layers
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]


class OpenMoeForCausalLM(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """The model that generates text. Its experts are MoeLayers, which must be connected."""

    config_class = OpenMoeConfig

    def __init__(self, config: OpenMoeConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = OpenMoeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_config(cls, config: OpenMoeConfig) -> "OpenMoeForCausalLM":
        """The model with random weights, like transformers' Auto classes."""
        return cls(config)

    @property
    def needs_whole_prompts(self) -> bool:
        """Whether a prompt must be computed at once, because an expert's room depends on the whole prompt."""
        return bool(self.config.router_drop_tks)
