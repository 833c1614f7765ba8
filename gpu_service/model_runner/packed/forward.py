"""Computes spans of several sequences in one forward.

The tokens of all spans are one row [1, tokens] to transformers' model: linear layers, routers and experts, which treat
each token alone, compute them without padding. Only attention and the angles of RoPE see whose a token is.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from gpu_service.gpu_experts.uploads import Uploads
from gpu_service.model_runner.attention_masks import AttentionMasks
from gpu_service.model_runner.forward_input import Span
from gpu_service.model_runner.kv_cache import KvCache
from gpu_service.model_runner.packed.attention import SpanAttention
from gpu_service.model_runner.packed.cache import PackedCache, groups_of
from gpu_service.model_runner.rope import RowAngles
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.no_experts import NoExperts


class Packed:
    """Computes packed spans over rows of a cache."""

    def __init__(
        self,
        module: nn.Module,
        cache: KvCache,
        attention: SpanAttention,
        *,
        masks: AttentionMasks,
        row_angles: RowAngles,
        device: torch.device,
    ) -> None:
        """Computes nothing yet.

        Args:
            module: transformers' model.
            cache: Holds keys and values.
            attention: Of the model.
            masks: Makes the model's masks.
            row_angles: Gives each token the angles of its sequence.
            device: Where the model is.
        """
        self._module = module
        self._cache = cache
        self._masks = masks
        self._row_angles = row_angles
        self._attention = attention
        self._uploads = Uploads(device)

    def compute(self, spans: Sequence[Span]) -> torch.Tensor:
        """Computes spans and stores their keys and values.

        Args:
            spans: Of different sequences.

        Returns:
            Logits [tokens that need them, vocab], in the order of the spans.

        Raises:
            NotPackedError: The model's code does not do what packed spans need.
        """
        return self._compute(spans, self._cache)

    def why_not(self, dispatcher: Dispatcher) -> str | None:
        """Tries two spans without experts, in a cache of their own.

        The model's code may fail in many ways, and each of them means that the model is computed as its code expects.

        Args:
            dispatcher: The model's, which has not computed anything yet.

        Returns:
            Why the model's code cannot compute them; None: it can.
        """
        spans = [Span(row=0, start=position, token_ids=[0], length=2) for position in range(2)]
        try:
            with dispatcher.with_backend(NoExperts()), torch.inference_mode():
                self._compute(spans, KvCache(num_rows=1, max_length=2))
        except Exception as error:
            dispatcher.cancel_batch()
            return " ".join(str(error).split()) or type(error).__name__
        finally:
            dispatcher.clear_counts()
        return None

    def _compute(self, spans: Sequence[Span], cache: KvCache) -> torch.Tensor:
        tokens = torch.tensor([[token for span in spans for token in span.token_ids]])
        positions = torch.cat([torch.arange(span.start, span.stop) for span in spans])[None]
        tokens, there, kept = self._uploads.to_device(tokens, positions, _kept(spans))
        packed = PackedCache(cache, groups_of(spans), there[0])
        self._row_angles.begin([span.length for span in spans for _ in span.token_ids], is_packed=True)
        with self._attention.over(packed):
            output = self._module(
                input_ids=tokens,
                position_ids=there,
                attention_mask=self._masks.of(there, max(span.stop for span in spans)),
                past_key_values=packed,
                use_cache=True,
                logits_to_keep=kept,
            )
        packed.check_seen()
        logits: torch.Tensor = output.logits[0]
        return logits[kept] if len(logits) > len(kept) else logits  # some families compute those of all tokens


def _kept(spans: Sequence[Span]) -> torch.Tensor:
    """The packed tokens whose logits are computed."""
    ends = itertools.accumulate(len(span.token_ids) for span in spans)
    kept = [range(end - span.num_logits, end) for span, end in zip(spans, ends, strict=True)]
    return torch.tensor([token for tokens in kept for token in tokens], dtype=torch.int64)
