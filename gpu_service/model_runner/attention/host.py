"""Attention of decode steps by the native kernels, for --device cpu: decision 32.

PyTorch's attention reads keys and values several times slower than the memory is, since it is made for many queries. A
decode step has one query for each sequence, so that its time is that of reading. What is not plain attention of one
token is left to the model's own function.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, Literal

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama import modeling_llama

from fiddler.kernels.attention import AttentionKernel
from fiddler.kernels.attention_block import Step
from gpu_service.model_runner.attention.functions import AttentionFunction, AttentionFunctions
from gpu_service.model_runner.kv_cache import KvCache
from gpu_service.model_runner.reading.copied_code import is_copy

_NAME: Final = "fiddler_host"
_UNSUPPORTED: Final = frozenset({"position_bias", "cache", "softcap", "output_attentions", "head_mask"})
"""Arguments of attention functions that change what is computed."""

_running = threading.local()
"""The HostAttention of this thread's forward."""


class HostAttention:
    """The attention of a model whose keys and values are on the CPU, in bfloat16."""

    def __init__(self, functions: AttentionFunctions, kernel: AttentionKernel) -> None:
        """Replaces nothing yet.

        Args:
            functions: Of the model.
            kernel: Computes.
        """
        self._functions = functions
        self._kernel = kernel
        self._sinks: dict[nn.Module, torch.Tensor] = {}
        self._visible: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._steps: dict[tuple[int, int], tuple[object, object, Step | None]] = {}

    @property
    def is_used(self) -> bool:
        """Whether this thread is within a block of `used`."""
        return getattr(_running, "now", None) is self

    def kind_of(self, module: nn.Module) -> Literal["plain", "sinks"] | None:
        """What an attention module's own function computes; None: nothing that is known here."""
        return _kind_of(self._functions.of(module))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Lets the model's attention call `attend` within a `with` block."""
        _running.now = self
        try:
            with self._functions.replaced_by(_NAME):
                yield
        finally:
            _running.now = None
            self._visible.clear()
            self._steps.clear()

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **more: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Has the signature of transformers' attention functions, and computes what the module's own would."""
        function = self._functions.of(module)
        kind, output = _kind_of(function), None
        if kind is not None and _is_plain(query, key, value, more):
            sinks = self._sinks_of(module) if kind == "sinks" else None
            output = self._by_kernel(query, key, value, attention_mask, sinks=sinks, scale=more.get("scaling"))
        if output is None:
            own: tuple[torch.Tensor, torch.Tensor | None] = function(module, query, key, value, attention_mask, **more)
            return own
        return output, None

    def step(self, cache: KvCache, mask: torch.Tensor | None, angles: Any) -> Step | None:
        """What the layers of this forward share whose mask and angles these are; None if the kernels do not compute it.

        Args:
            cache: Of the forward, in which each sequence has one token.
            mask: As `visible_positions` takes it; None: all positions are seen.
            angles: Cosines and sines [sequences, 1, n].
        """
        key = id(mask), id(angles)
        if key not in self._steps:
            self._steps[key] = mask, angles, self._new_step(cache, mask, angles)
        return self._steps[key][2]

    def _new_step(self, cache: KvCache, mask: torch.Tensor | None, angles: Any) -> Step | None:
        first_row, positions = cache.decoding
        rows = len(positions)
        if not isinstance(angles, tuple) or angles[0].dtype is not torch.bfloat16 or angles[0].shape[:-1] != (rows, 1):
            return None
        visible = None if mask is None else self.visible_positions(mask, rows, cache.length)
        if mask is not None and visible is None:
            return None
        cosines, sines = angles
        return Step(
            first_row=first_row,
            length=cache.length,
            positions=positions,
            angles=(cosines[:, 0], sines[:, 0]),
            visible=visible,
        )

    def visible_positions(self, mask: torch.Tensor, rows: int, length: int) -> torch.Tensor | None:
        """The positions that rows of one token see, [rows, length] bool.

        Args:
            mask: [rows or 1, 1, 1, length]: of booleans, or of what is added to scores, 0 or the least number.
            rows: How many.
            length: Positions.

        Returns:
            None if the mask is another one. Its last dimension is contiguous.
        """
        if mask.shape not in ((rows, 1, 1, length), (1, 1, 1, length)) or mask.stride(-1) != 1:
            return None
        if mask.dtype is torch.bool:
            return mask[:, 0, 0].expand(rows, length)
        # layers share masks, and asking for all values takes as long as a short attention
        if id(mask) not in self._visible:
            hidden = mask <= torch.finfo(mask.dtype).min
            is_mask = not mask.masked_fill(hidden, 0).any()
            self._visible[id(mask)] = mask, (~hidden)[:, 0, 0].expand(rows, length) if is_mask else None
        return self._visible[id(mask)][1]

    def _by_kernel(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        sinks: torch.Tensor | None,
        scale: float | None,
    ) -> torch.Tensor | None:
        """[rows, 1, heads, dim]; None if the mask is not one of visible positions."""
        visible = None if mask is None else self.visible_positions(mask, len(query), key.shape[2])
        if mask is not None and visible is None:
            return None
        output = self._kernel.attend(query[:, :, 0], key, value, visible=visible, sinks=sinks, scale=scale)
        return output[:, None]

    def _sinks_of(self, module: Any) -> torch.Tensor:
        if module not in self._sinks:
            self._sinks[module] = module.sinks.detach().to(torch.float32).contiguous()
        return self._sinks[module]


def _is_plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, more: Mapping[str, Any]) -> bool:
    """Whether it is one token of each row over the keys and values of a cache, and nothing besides."""
    tensors = query, key, value
    return (
        query.shape[2] == 1
        and all(each.dtype is torch.bfloat16 and each.stride(-1) == 1 for each in tensors)
        and len(key) == len(query)
        and query.shape[1] % key.shape[1] == 0
        and not more.get("dropout")
        and has_no_others(more)
    )


def has_no_others(more: Mapping[str, Any]) -> bool:
    """Whether none of the further arguments of an attention function changes what is computed."""
    return _UNSUPPORTED.isdisjoint(more) or all(more.get(name) is None or more[name] is False for name in _UNSUPPORTED)


@cache
def _kind_of(function: AttentionFunction) -> Literal["plain", "sinks"] | None:
    """What transformers' own function computes, or a copy of what most models, or gpt-oss, have; None: another one."""
    if function is sdpa_attention_forward or is_copy(function, modeling_llama.eager_attention_forward):
        return "plain"
    return "sinks" if is_copy(function, modeling_gpt_oss.eager_attention_forward) else None


def _attend(module: nn.Module, *tensors: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    host: HostAttention = _running.now
    return host.attend(module, *tensors, **more)


ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
