"""RMS norms of few rows on the host by the native library: decision 32.

A norm of a decode step is seven operations of PyTorch, and beginning each of them takes longer than its arithmetic.
"""

from functools import cache
from typing import Any, Final

import torch
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fiddler.kernels.attention_block import Norm
from fiddler.kernels.norm import rms_norm
from gpu_service.model_runner.reading.copied_code import is_copy

FEW_VALUES: Final = 2**16
"""Of rows; PyTorch computes more of them faster, with several threads."""


def install(module: nn.Module) -> None:
    """Lets the native library compute few rows of every RMS norm whose code is known, in place.

    Args:
        module: The model, on the CPU, in bfloat16. The native library must be there.
    """
    for child in module.modules():
        cls: Any = type(child)
        if is_copy(cls.forward, LlamaRMSNorm.forward):
            child.__class__ = _with_few_rows(cls, rounds_first=True)
        elif is_copy(cls.forward, GptOssRMSNorm.forward):
            child.__class__ = _with_few_rows(cls, rounds_first=False)


def described(norm: Any) -> Norm | None:
    """A norm as the kernels take it; None if its code is not known, or its weight not bfloat16."""
    rounds_first = getattr(norm, "rounds_first", None)
    if rounds_first is None or norm.weight.dtype is not torch.bfloat16 or not norm.weight.is_contiguous():
        return None
    return Norm(norm.weight.detach(), norm.variance_epsilon, rounds_first)


@cache
def _with_few_rows(cls: Any, *, rounds_first: bool) -> Any:
    """A norm's class that computes few rows natively, and is that class in all else."""

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        is_due = hidden_states.dtype is torch.bfloat16 and hidden_states.is_contiguous()
        if is_due and hidden_states.numel() <= FEW_VALUES and self.weight.dtype is torch.bfloat16:
            return rms_norm(hidden_states, self.weight, self.variance_epsilon, rounds_first=rounds_first)
        computed: torch.Tensor = cls.forward(self, hidden_states)
        return computed

    return type(cls.__name__, (cls,), {"forward": forward, "rounds_first": rounds_first})
