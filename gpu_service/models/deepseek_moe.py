"""DeepSeek-MoE 16B (model_type deepseek): Llama's decoder with MoE blocks, written from the paper and its config.json.

Dai et al., "DeepSeekMoE: Towards Ultimate Expert Specialization", arXiv 2401.06066, section 3: for every token, each
MoE block adds up the outputs of n_shared_experts experts that all tokens use and of num_experts_per_tok routed ones,
weighted by their softmax affinities. It is not DeepSeek-V2 (deepseek_v2), whose attention is different.
"""

from copy import copy
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaMLP, LlamaModel

from gpu_service.models.config_fields import (
    FieldError,
    Settings,
    allow_counts,
    require_at_most,
    require_counts,
    require_divisor,
    require_one_of,
)
from gpu_service.moe.layer import MoeLayer

_COUNTS = (
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_hidden_layers",
    "vocab_size",
)


@strict
class DeepseekConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """A config.json of model_type deepseek; all other fields are Llama's."""

    model_type = "deepseek"

    moe_intermediate_size: int | None = None
    """Of one expert, routed or shared."""
    n_routed_experts: int | None = None
    n_shared_experts: int | None = None
    num_experts_per_tok: int | None = None
    """Of the routed ones."""
    first_k_dense_replace: int = 0
    """The number of first layers that have an MLP and no experts."""
    moe_layer_freq: int = 1
    """Of the later layers, those whose index is a multiple of this have experts."""
    norm_topk_prob: bool = False
    """Whether the routing weights of a token are divided by their sum."""
    scoring_func: str = "softmax"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of a config.json.

        Raises:
            FieldError: A field is missing or wrong.
        """
        check(config_dict)
        return super().from_dict(config_dict, **kwargs)

    def has_experts(self, layer_idx: int) -> bool:
        """Whether a decoder layer has a MoE block instead of an MLP."""
        return layer_idx >= self.first_k_dense_replace and layer_idx % self.moe_layer_freq == 0


def check(settings: Settings) -> None:
    """Checks the fields that the model is built from.

    Raises:
        FieldError: A field is missing or wrong.
    """
    require_counts(settings, _COUNTS)
    require_at_most(settings, "num_experts_per_tok", "n_routed_experts")
    allow_counts(settings, ("moe_layer_freq", "n_shared_experts", "num_key_value_heads"))
    require_divisor(settings, "num_attention_heads", "hidden_size")
    require_divisor(settings, "num_key_value_heads", "num_attention_heads")
    allow_counts(settings, ("first_k_dense_replace",), least=0)
    require_one_of(settings, "norm_topk_prob", (False, True), default=False)
    require_one_of(settings, "scoring_func", ("softmax",), default="softmax")
    scaling = settings.get("rope_scaling") or {}
    kind = scaling.get("type", scaling.get("rope_type")) if isinstance(scaling, dict) else scaling
    if kind not in (None, "default", "linear"):
        # the published code has "dynamic", too: its angles depend on the longest sequence that it has computed so far
        raise FieldError(f"rope_scaling: its type must be linear, or it must be null, got {kind!r}")


class Router(nn.Module):
    """Softmax over all experts, of which the num_experts_per_tok largest are used.

    The paper does not divide their affinities by the sum (equations 9 to 11), and norm_topk_prob of published models
    says the same.
    """

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        assert config.num_experts_per_tok is not None
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.num_experts_per_token = config.num_experts_per_tok
        self.normalizes = config.norm_topk_prob

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[rows, hidden] -> logits [rows, experts], weights [rows, k] and expert ids [rows, k].

        Everything is computed in float32, as transformers does for its later families: in bfloat16, affinities that
        differ by less than 1 % would be equal, and the choice between their experts arbitrary.
        """
        logits = functional.linear(hidden.to(torch.float32), self.weight.to(torch.float32))
        weights, ids = logits.softmax(dim=-1).topk(self.num_experts_per_token, dim=-1)
        if self.normalizes:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return logits, weights, ids


class MoeBlock(nn.Module):
    """The routed experts and the shared ones."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = MoeLayer(config)
        self.shared_experts = _shared_experts(config) if config.n_shared_experts else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., hidden]."""
        _, weights, ids = self.gate(hidden.reshape(-1, hidden.shape[-1]))
        output: torch.Tensor = self.experts(hidden, ids, weights)
        return output if self.shared_experts is None else output + self.shared_experts(hidden)


def _shared_experts(config: DeepseekConfig) -> LlamaMLP:
    """All shared experts as one MLP, as they are stored: their outputs are added up without weights."""
    assert config.n_shared_experts is not None
    assert config.moe_intermediate_size is not None
    shared = copy(config)
    shared.intermediate_size = config.n_shared_experts * config.moe_intermediate_size
    return LlamaMLP(shared)  # type: ignore[no-untyped-call]


class DeepseekModel(LlamaModel):  # type: ignore[no-untyped-call]
    """The decoder without a head."""

    config_class = DeepseekConfig

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        for layer_idx, layer in enumerate(self.layers):
            if config.has_experts(layer_idx):
                layer.mlp = MoeBlock(config)
        self.post_init()  # type: ignore[no-untyped-call]


class DeepseekForCausalLM(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """The model that generates text. Its experts are MoeLayers, which must be connected."""

    config_class = DeepseekConfig

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        self.model = DeepseekModel(config)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_config(cls, config: DeepseekConfig) -> "DeepseekForCausalLM":
        """The model with random weights, like transformers' Auto classes."""
        return cls(config)
