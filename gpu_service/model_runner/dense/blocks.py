"""Decoder layers up to the choice of experts in one native call, for decode steps with --device cpu: decision 33.

It is for layers whose code, and that of their attention and norms, is a copy of code that is known here. All others,
and all that is no decode step, are computed by their own code.
"""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import nn
from transformers.models.glm4_moe import modeling_glm4_moe as glm4_moe
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.llama import modeling_llama as llama
from transformers.models.minimax_m2 import modeling_minimax_m2 as minimax_m2
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.olmoe import modeling_olmoe as olmoe
from transformers.models.qwen2_moe import modeling_qwen2_moe as qwen2_moe
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as qwen3_vl_moe

from fiddler.kernels.attention_block import AttentionBlock, BlockWeights, Linear
from fiddler.kernels.linear import LinearKernel
from fiddler.kernels.native import NativeError
from gpu_service.model_runner.attention.host import HostAttention, has_no_others
from gpu_service.model_runner.dense import norms
from gpu_service.model_runner.dense.routers import HostRouter, host_router_of
from gpu_service.model_runner.kv_cache import KvCache
from gpu_service.model_runner.reading.copied_code import is_copy
from gpu_service.moe.layer import MoeLayer

_LAYERS: Final = (qwen3_moe.Qwen3MoeDecoderLayer, mixtral.MixtralDecoderLayer)
_LAYERS_WITH_SCORES: Final = (gpt_oss.GptOssDecoderLayer,)
"""The experts of these return the router's scores, too."""
_ATTENTIONS: Final = (llama.LlamaAttention, qwen2_moe.Qwen2MoeAttention, mixtral.MixtralAttention)
_ATTENTIONS_WITH_NORMS: Final = (
    qwen3_moe.Qwen3MoeAttention,
    qwen3_vl_moe.Qwen3VLMoeTextAttention,
    glm4_moe.Glm4MoeAttention,
    minimax_m2.MiniMaxM2Attention,
    olmoe.OlmoeAttention,
)
"""These normalise queries and keys: each head, or all heads together."""
_ATTENTIONS_WITH_SINKS: Final = (gpt_oss.GptOssAttention,)
_PLAIN_BLOCKS: Final = (
    mixtral.MixtralSparseMoeBlock,
    qwen3_moe.Qwen3MoeSparseMoeBlock,
    olmoe.OlmoeSparseMoeBlock,
    gpt_oss.GptOssMLP,
)
"""These compute nothing but their router and their experts."""


class BlockRows(NamedTuple):
    """What a layer computes before its experts, [rows, 1, hidden]."""

    residual: torch.Tensor
    """The hidden rows after attention."""
    normed: torch.Tensor
    """Their norm."""


class HostBlock:
    """What one decoder layer computes before its experts, and where it can, the layer."""

    def __init__(
        self,
        block: AttentionBlock,
        attention: HostAttention,
        layer: int,
        *,
        router: HostRouter | None = None,
        experts: MoeLayer | None = None,
    ) -> None:
        """Computes nothing yet.

        Args:
            block: The layer's weights.
            attention: Of the model.
            layer: The number by which the cache knows it.
            router: Of the layer's experts, which the block computes, too; None: it does not.
            experts: What the layer adds to its rows after attention, which is all that it does with them; None: it does
                more.
        """
        self._block = block
        self._attention = attention
        self._layer = layer
        self._router = router
        self._experts = experts

    def end(self) -> None:
        """Forgets what was chosen for the experts, which have been computed."""
        if self._router is not None:
            self._router.forget()

    def compute(
        self,
        hidden: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        position_embeddings: Any = None,
        **more: Any,
    ) -> BlockRows | torch.Tensor | None:
        """Has the arguments of a decoder layer.

        Returns:
            The layer's output, [rows, 1, hidden], if its experts were sent in the same call; else what comes before
            them. None if this is no decode step over a cache of keys and values, and the layer's own code computes it.
        """
        if not self._is_due(hidden, past_key_values, more):
            return None
        memory = past_key_values.memory(self._layer)
        step = None if memory is None else self._attention.step(past_key_values, attention_mask, position_embeddings)
        if memory is None or step is None:
            return None
        keys, values = memory
        router, experts = self._router, self._experts
        prepared = None if router is None or experts is None else experts.prepare(step.rows, router.kernel.k)
        if prepared is None or experts is None:
            computed = self._block.compute(hidden[:, 0], step, keys=keys, values=values)
            if router is not None and computed.routed is not None:
                router.set_ahead(computed.normed, computed.routed)
            return BlockRows(computed.residual[:, None], computed.normed[:, None])
        computed = self._block.compute(hidden[:, 0], step, keys=keys, values=values, posting=prepared.message.posting)
        assert computed.routed is not None, "there is a router"
        _, weights, ids = computed.routed
        output = experts.sum_prepared(
            prepared, computed.slot, addend=computed.residual, normed=computed.normed, ids=ids, weights=weights
        )
        return output[:, None]

    def _is_due(self, hidden: torch.Tensor, cache: Any, more: Mapping[str, Any]) -> bool:
        return (
            self._attention.is_used
            and type(cache) is KvCache
            and hidden.dtype is torch.bfloat16
            and hidden.shape[1] == 1
            and hidden.numel() <= norms.FEW_VALUES
            and hidden.is_contiguous()
            and has_no_others(more)
        )


def install(module: nn.Module, attention: HostAttention, kernel: LinearKernel) -> None:
    """Lets the native library compute decode steps of every decoder layer whose code is known, in place.

    Args:
        module: The model, on the CPU, in bfloat16, with the linear layers and norms that dense.host installs.
        attention: Of the model.
        kernel: Computes.
    """
    for layer in list(module.modules()):
        cls: Any = type(layer)
        has_scores = _is_copy_of(cls, _LAYERS_WITH_SCORES)
        if not has_scores and not _is_copy_of(cls, _LAYERS):
            continue
        weights = _weights_of(layer, attention)
        if weights is None:
            continue
        own: Any = layer
        router = host_router_of(own.mlp)
        try:
            block = AttentionBlock(kernel, weights, None if router is None else router.kernel)
        except NativeError:
            continue
        own.host_block = HostBlock(
            block, attention, own.self_attn.layer_idx, router=router, experts=_only_experts_of(own.mlp)
        )
        own.__class__ = _with_block(cls, has_scores=has_scores)


@cache
def _with_block(cls: Any, *, has_scores: bool) -> Any:
    """A layer's class that computes decode steps natively, and is that class in all else."""

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        host: HostBlock = self.host_block
        computed = None if args else host.compute(hidden_states, **kwargs)
        if computed is None:
            own: torch.Tensor = cls.forward(self, hidden_states, *args, **kwargs)
            return own
        if isinstance(computed, torch.Tensor):
            return computed
        residual, normed = computed
        try:
            output: Any = self.mlp(normed)
        finally:
            host.end()
        sums: torch.Tensor = output[0] if has_scores else output
        return residual + sums

    return type(cls.__name__, (cls,), {"forward": forward})


def _weights_of(layer: Any, attention: HostAttention) -> BlockWeights | None:
    """None if one of the layer's parts is not known, or not native."""
    own = layer.self_attn
    has_norms, has_sinks = (_is_copy_of(type(own), forms) for forms in (_ATTENTIONS_WITH_NORMS, _ATTENTIONS_WITH_SINKS))
    if not has_norms and not has_sinks and not _is_copy_of(type(own), _ATTENTIONS):
        return None
    kind = attention.kind_of(own)
    linears = [getattr(own, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    outer = [norms.described(norm) for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    has_norms = has_norms and getattr(own, "use_qk_norm", True)
    inner = [norms.described(norm) for norm in (own.q_norm, own.k_norm)] if has_norms else [None, None]
    turn = _turn_of(own)
    is_known = (
        kind == ("sinks" if has_sinks else "plain")
        and turn is not None
        and getattr(own.config, "clip_qkv", None) is None
        and all(getattr(linear, "is_native", False) for linear in linears)
        and None not in outer
        and (not has_norms or None not in inner)
    )
    if not is_known:
        return None
    before, after = outer
    assert before is not None
    assert after is not None
    query, key, value, out = (Linear(linear.matrix, linear.bias) for linear in linears)
    return BlockWeights(
        before=before,
        query=query,
        key=key,
        value=value,
        out=out,
        after=after,
        query_norm=inner[0],
        key_norm=inner[1],
        sinks=own.sinks.detach().to(torch.float32).contiguous() if has_sinks else None,
        key_size=own.head_dim,
        value_size=own.head_dim,
        scale=own.scaling,
        shares_angles=turn == "halves",
    )


def _only_experts_of(block: Any) -> MoeLayer | None:
    """The experts of a MoE block that hands its rows to them as they are, and returns their sums."""
    experts = getattr(block, "experts", None)
    return experts if isinstance(experts, MoeLayer) and _is_copy_of(type(block), _PLAIN_BLOCKS) else None


def _is_copy_of(cls: Any, others: tuple[Any, ...]) -> bool:
    return any(is_copy(getattr(cls, "forward", None), other.forward) for other in others)


def _turn_of(attention: nn.Module) -> Literal["pairs", "halves"] | None:
    """How an attention module turns queries and keys, in pairs (i, i + half): "halves" if both have the same angles."""
    seen = inspect.unwrap(type(attention).forward).__globals__
    turn = seen.get("apply_rotary_pos_emb")
    if is_copy(turn, llama.apply_rotary_pos_emb) or is_copy(turn, glm4_moe.apply_rotary_pos_emb):
        return "pairs" if is_copy(_global(turn, "rotate_half"), llama.rotate_half) else None
    is_gpt_oss = is_copy(turn, gpt_oss.apply_rotary_pos_emb)
    return "halves" if is_gpt_oss and is_copy(_global(turn, "_apply_rotary_emb"), gpt_oss._apply_rotary_emb) else None


def _global(function: Any, name: str) -> Any:
    return inspect.unwrap(function).__globals__.get(name)
