"""An attention function of transformers that computes each span of a packed forward apart, by the model's own function.

A model's attention looks its function up by the name in its configuration. During a packed forward that name is ours:
the function gets the queries of all packed tokens, takes each span's keys and values from the cache, and calls what the
model would have called, sdpa or its own eager code, for each span. So no score of one sequence and another is computed.

Attention with latents (MLA) caches these, and expands what it gets from the cache by its method `expand_kv` before it
calls the function. During a packed forward the method leaves them as they are, and each span's are expanded here.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gpu_service.model_runner.attention.functions import AttentionFunction, AttentionFunctions
from gpu_service.model_runner.attention.host import HostAttention
from gpu_service.model_runner.packed.cache import Group, NotPackedError, PackedCache

_NAME: Final = "fiddler_spans"
_EXPAND: Final = "expand_kv"
_running = threading.local()
"""The SpanAttention of this thread's packed forward, and its cache."""


class SpanAttention:
    """The attention of a model over packed spans."""

    def __init__(self, module: nn.Module, functions: AttentionFunctions, host: HostAttention | None) -> None:
        """Makes `expand_kv` wait for the attention function where that is ours.

        Args:
            module: transformers' model.
            functions: Of the model.
            host: Computes groups that decode; None: the model's own functions do.
        """
        self._expansions: dict[nn.Module, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {}
        for child in module.modules():
            if callable(getattr(child, _EXPAND, None)):
                self._expand_late(child)
        self._functions = functions
        self._host = host

    @contextmanager
    def over(self, cache: PackedCache) -> Iterator[None]:
        """Lets the model compute a packed forward over a cache within a `with` block."""
        _running.now = self, cache
        try:
            with self._functions.replaced_by(_NAME):
                yield
        finally:
            _running.now = None

    def function_of(self, attention: nn.Module, group: Group) -> AttentionFunction:
        """What computes a group of an attention module."""
        return self._host.attend if self._host is not None and group.is_decode else self._functions.of(attention)

    def expanded(
        self, attention: nn.Module, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values [rows, heads, length, dim] of what an attention module keeps in the cache."""
        expand = self._expansions.get(attention)
        return (keys, values) if expand is None else expand(keys, values)

    def _expand_late(self, attention: nn.Module) -> None:
        expand = self._expansions[attention] = getattr(attention, _EXPAND)

        def expand_kv(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            now = getattr(_running, "now", None)
            return (keys, values) if now is not None and now[1].gave(keys, values) else expand(keys, values)

        setattr(attention, _EXPAND, expand_kv)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Has the signature of transformers' attention functions.

    Args:
        module: The attention.
        query: [1, heads, tokens, dim].
        key: What `PackedCache.update` returned, as `value` is.
        value: See `key`.
        attention_mask: [1, heads or 1, tokens, length]: of each token over the positions of its own sequence.
        **more: Passed on.

    Returns:
        [1, tokens, heads, dim], and no weights.
    """
    attention, cache = _running.now
    if attention_mask is None or attention_mask.ndim != 4:
        raise NotPackedError("its attention is given no mask of ours")
    outputs = []
    for group, *kept in cache.visible(key, value):
        keys, values = attention.expanded(module, *kept)
        function = attention.function_of(module, group)
        output, _ = function(module, _queries(query, group), keys, values, _mask(attention_mask, group), **more)
        outputs.append(output.transpose(0, 1) if group.is_decode else output)
    return torch.cat(outputs, dim=1), None


def _queries(query: torch.Tensor, group: Group) -> torch.Tensor:
    """[1, heads, tokens, dim] -> a group's: [rows, heads, 1, dim], or [1, heads, its tokens, dim]."""
    own = query[:, :, group.tokens]
    return own.transpose(0, 2) if group.is_decode else own


def _mask(mask: torch.Tensor, group: Group) -> torch.Tensor:
    own = mask[:, :, group.tokens, : group.stop]
    return own.transpose(0, 2) if group.is_decode else own


ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
