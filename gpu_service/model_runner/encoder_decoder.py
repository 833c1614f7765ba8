"""Models with an encoder and a decoder: a prompt is the encoder's input, and what is generated is the decoder's.

A request's first forward computes its whole prompt, because an expert's capacity counts all tokens of a sequence, and
the decoder's start token. Each later forward computes one token of the decoder, row by row, through transformers' own
cache. The engine counts the positions of the prompt and then those of the output; the decoder counts its own from 0.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import MoEModelOutputWithPastAndCrossAttentions as EncoderOutput
from typing_extensions import override

from gpu_service.gpu_experts.uploads import Uploads
from gpu_service.model_runner.forwards import Forward
from gpu_service.model_runner.state_cache import StateCache


class DecoderCache(EncoderDecoderCache):
    """A row's keys and values: of its output, and of its prompt. Copies share the latter, which no step changes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecoderCache":
        twin = DecoderCache(copy.deepcopy(self.self_attention_cache, memo), self.cross_attention_cache)
        twin.is_updated = dict(self.is_updated)
        return twin


class EncoderDecoder(Forward):
    """A forward for each row: of the encoder and the decoder for a prompt, later of the decoder alone."""

    cache: StateCache
    is_repeatable = False  # the decoder's cache has moved on

    def __init__(self, module: nn.Module, cache: StateCache, start_token_id: int, *, device: torch.device) -> None:
        """Computes nothing yet.

        Args:
            module: transformers' model.
            cache: Holds a DecoderCache for each row.
            start_token_id: What the decoder begins with.
            device: Where the model is.
        """
        self.cache = cache
        self._module: Any = module
        self._device = device
        self._uploads = Uploads(device)
        self._start = torch.tensor([[start_token_id]], device=device)

    @override
    def compute(
        self, token_ids: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int], *, first_row: int, kept: Any
    ) -> Iterator[torch.Tensor]:
        for number in range(len(token_ids)):
            yield self._compute_row(token_ids[[number]], int(positions[number, 0]), first_row + number)

    def _compute_row(self, token_ids: torch.Tensor, start: int, row: int) -> torch.Tensor:
        """[1, 1, vocab]: what follows the start token if the tokens are a prompt, or else what follows the token."""
        (token_ids,) = self._uploads.to_device(token_ids)
        cache = self.cache.row(row, start)
        if start == 0:
            encoded, token_ids = self._module.get_encoder()(input_ids=token_ids).last_hidden_state, self._start
            cache = DecoderCache(DynamicCache(), DynamicCache())
            self.cache.keep(row, cache)
        else:
            # only its shape matters: its keys and values are in the cache
            length = cache.cross_attention_cache.get_seq_length()
            nothing = torch.zeros(1, 1, 1, dtype=self._module.dtype, device=self._device)
            encoded = nothing.expand(1, length, self._module.config.hidden_size)
        output = self._module(
            encoder_outputs=EncoderOutput(last_hidden_state=encoded),
            decoder_input_ids=token_ids,
            past_key_values=cache,
            use_cache=True,
        )
        logits: torch.Tensor = output.logits
        return logits[:, -1:]


def num_layers(config: Any) -> int:
    """Layers of a model: the decoder's, and the encoder's if it has one."""
    if not getattr(config, "is_encoder_decoder", False):
        return int(config.get_text_config(decoder=True).num_hidden_layers)
    # transformers calls an encoder's layers num_hidden_layers, too; families name the decoder's differently
    decoder = next(getattr(config, name) for name in ("num_decoder_layers", "decoder_layers") if hasattr(config, name))
    return int(config.num_hidden_layers + decoder)
