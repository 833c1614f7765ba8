"""Routers of few rows on the host by the native library: decision 33.

A router is about ten operations of PyTorch on a few values, or several times as many if it chooses groups of experts.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch
from torch import nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from fiddler.kernels.linear import LinearKernel
from fiddler.kernels.native import NativeError
from fiddler.kernels.routing import Routed, RouterKernel, RouterWeights, Scoring
from gpu_service.model_runner.dense.norms import FEW_VALUES
from gpu_service.model_runner.reading.copied_code import is_copy


def _mixtral(router: Any) -> RouterWeights:
    return RouterWeights(weight=router.weight, k=router.top_k, scoring=Scoring.SOFTMAX, normalizes=True)


def _qwen3(router: Any) -> RouterWeights:
    return RouterWeights(
        weight=router.weight,
        k=router.top_k,
        scoring=Scoring.SOFTMAX,
        normalizes=bool(getattr(router, "norm_topk_prob", True)),
        rounds_weights=True,
    )


def _chosen_only(router: Any) -> RouterWeights:
    return RouterWeights(
        weight=router.weight,
        bias=getattr(router, "bias", None),
        k=router.top_k,
        scoring=Scoring.SOFTMAX_OF_CHOSEN,
        rounds_weights=True,
    )


def _deepseek(router: Any) -> RouterWeights:
    return RouterWeights(
        weight=router.weight,
        k=router.top_k,
        scoring=Scoring.SIGMOID,
        keeps_logits=True,
        normalizes=bool(router.norm_topk_prob),
        added=1e-20,
        factor=float(router.routed_scaling_factor),
        corrections=router.e_score_correction_bias.detach().to(torch.float32).contiguous(),
        groups=router.num_group,
        kept_groups=router.topk_group,
    )


_FORMS: Final[tuple[tuple[Any, Callable[[Any], RouterWeights]], ...]] = (
    (MixtralTopKRouter, _mixtral),
    (Qwen3MoeTopKRouter, _qwen3),
    (Qwen3_5MoeTopKRouter, _qwen3),
    (GptOssTopKRouter, _chosen_only),
    (GraniteMoeTopKRouter, _chosen_only),
    (DeepseekV3TopkRouter, _deepseek),
)
"""Routers whose copies are known, and what the library is told of one."""


class HostRouter:
    """A router of few rows: computed when it is called, or before, in the call of its decoder layer."""

    def __init__(self, kernel: RouterKernel) -> None:
        self.kernel = kernel
        self._ahead: tuple[torch.Tensor, Routed] | None = None

    def set_ahead(self, rows: torch.Tensor, routed: Routed) -> None:
        """Says what is chosen for [rows, hidden], until `forget` is called."""
        self._ahead = rows, routed

    def forget(self) -> None:
        """Forgets it: other rows may come to lie in the same memory."""
        self._ahead = None

    def route(self, rows: torch.Tensor) -> Routed:
        """Chooses experts for [rows, hidden]."""
        if self._ahead is not None:
            known, routed = self._ahead
            if known.data_ptr() == rows.data_ptr() and known.shape == rows.shape:
                return routed
        return self.kernel.route(rows)


def host_router_of(block: nn.Module) -> HostRouter | None:
    """The router of a MoE block, if `install` has found one there."""
    found = [
        child.host_router for child in block.modules() if isinstance(getattr(child, "host_router", None), HostRouter)
    ]
    return found[0] if len(found) == 1 else None  # type: ignore[return-value]


def install(module: nn.Module, kernel: LinearKernel) -> None:
    """Lets the native library compute few rows of every router whose code is known, in place.

    Args:
        module: The model, on the CPU, in bfloat16.
        kernel: Computes.
    """
    for child in module.modules():
        cls: Any = type(child)
        described = next((form for known, form in _FORMS if is_copy(cls.forward, known.forward)), None)
        weight = getattr(child, "weight", None)
        if described is None or weight is None or weight.dtype is not torch.bfloat16:
            continue
        try:
            router: Any = child
            router.host_router = HostRouter(RouterKernel(kernel, described(child)))
        except NativeError:
            continue
        child.__class__ = _with_few_rows(cls)


@cache
def _with_few_rows(cls: Any) -> Any:
    """A router's class that computes few rows natively, and is that class in all else."""

    def forward(self: Any, hidden_states: torch.Tensor) -> Routed:
        if hidden_states.dtype is torch.bfloat16 and hidden_states.numel() <= FEW_VALUES:
            host: HostRouter = self.host_router
            return host.route(hidden_states.reshape(-1, hidden_states.shape[-1]))
        computed: Routed = cls.forward(self, hidden_states)
        return computed

    return type(cls.__name__, (cls,), {"forward": forward})
