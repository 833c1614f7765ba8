"""Models with an encoder and a decoder: a prompt is the encoder's input, and what is generated is the decoder's.

A request's first forward computes its whole prompt, since a sequence's capacity of an expert counts all of its tokens,
and the decoder's start token; each of the others computes one token of the decoder, row by row, through transformers'
own cache. Which positions the engine counts (the prompt's, then the output's) only its bookkeeping knows: the decoder
counts its own from 0.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import MoEModelOutputWithPastAndCrossAttentions as EncoderOutput

from gpu_service.errors import ModelError
from gpu_service.model_runner.parts import compute_parts
from gpu_service.model_runner.state_cache import StateCache


class DecoderCache(EncoderDecoderCache):
    """A row's keys and values: of its output, and of its prompt, which no step changes and so all its copies share."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecoderCache":
        twin = DecoderCache(copy.deepcopy(self.self_attention_cache, memo), self.cross_attention_cache)
        twin.is_updated = dict(self.is_updated)
        return twin


class EncoderDecoder:
    """See gpu_service.model_runner.forwards.Forward."""

    is_repeatable = False  # the decoder's cache has moved on

    def __init__(self, cache: StateCache, start_token_id: int, device: torch.device, spoiled_rows: set[int]) -> None:
        """Prepares.

        Args:
            cache: Holds a DecoderCache for each row.
            start_token_id: What the decoder begins with.
            device: Where the model is.
            spoiled_rows: See `compute_parts`.
        """
        self.cache = cache
        self._device = device
        self._start = torch.tensor([[start_token_id]], device=device)
        self._spoiled_rows = spoiled_rows

    def compute(
        self, module: nn.Module, token_ids: torch.Tensor, positions: torch.Tensor, first_row: int, kept: Any
    ) -> torch.Tensor:
        """[sequences, 1, vocab]: after the start token where the tokens are a prompt."""
        num_tokens = token_ids.shape[1]
        parts = [
            (
                row * num_tokens,
                partial(self._compute_row, module, token_ids[[row]], int(positions[row, 0]), first_row + row),
            )
            for row in range(len(token_ids))
        ]
        return compute_parts(parts, self._spoiled_rows)

    def _compute_row(self, module: Any, token_ids: torch.Tensor, start: int, row: int) -> torch.Tensor:
        token_ids = token_ids.to(self._device)
        cache = self.cache.row(row, start)
        if start == 0:
            encoded, token_ids = module.get_encoder()(input_ids=token_ids).last_hidden_state, self._start
            cache = DecoderCache(DynamicCache(), DynamicCache())
            self.cache.keep(row, cache)
        else:
            # only its shape matters: its keys and values are in the cache
            length = cache.cross_attention_cache.get_seq_length()
            nothing = torch.zeros(1, 1, 1, dtype=module.dtype, device=self._device)
            encoded = nothing.expand(1, length, module.config.hidden_size)
        output = module(
            encoder_outputs=EncoderOutput(last_hidden_state=encoded),
            decoder_input_ids=token_ids,
            past_key_values=cache,
            use_cache=True,
        )
        logits: torch.Tensor = output.logits
        return logits[:, -1:]


def start_token_of(generation_config: Any, config: Any) -> int | None:
    """What the decoder of a model begins with; None where the model has no encoder.

    Raises:
        ModelError: It has one, and no configuration says.
    """
    if not getattr(config, "is_encoder_decoder", False):
        return None
    for settings, name in (
        (generation_config, "decoder_start_token_id"),
        (config, "decoder_start_token_id"),
        (generation_config, "bos_token_id"),
    ):
        if isinstance(token_id := getattr(settings, name, None), int):
            return token_id
    raise ModelError(
        "decoder_start_token_id: neither generation_config.json nor config.json says what output begins with"
    )


def forced_bos_token_of(generation_config: Any, config: Any) -> int | None:
    """What a decoder makes first where a request does not say, by generation_config.json; None where that says nothing.

    Raises:
        ModelError: It is no token of the vocabulary.
    """
    token_id = generation_config.forced_bos_token_id if getattr(config, "is_encoder_decoder", False) else None
    if token_id is None:
        return None
    if type(token_id) is not int or not 0 <= token_id < config.vocab_size:
        problem = f"must be 0 to {config.vocab_size - 1}, the vocabulary, got {token_id!r}"
        raise ModelError(f"generation_config.json: forced_bos_token_id: {problem}")
    return token_id


def num_layers(config: Any) -> int:
    """Layers of a model: the decoder's, and the encoder's where there is one."""
    if not getattr(config, "is_encoder_decoder", False):
        return int(config.get_text_config(decoder=True).num_hidden_layers)
    # transformers calls an encoder's layers num_hidden_layers, too, and a decoder's as each family does
    decoder = next(getattr(config, name) for name in ("num_decoder_layers", "decoder_layers") if hasattr(config, name))
    return int(config.num_hidden_layers + decoder)


def build(
    module: nn.Module, num_slots: int, max_length: int, start_token_id: int, spoiled_rows: set[int]
) -> EncoderDecoder:
    """The forward of a model with an encoder and a decoder: see gpu_service.model_runner.forwards.build_forward."""
    config: Any = module.config
    cache = StateCache(config, num_slots, max_length, is_made_by_model=True)
    return EncoderDecoder(cache, start_token_id, next(module.parameters()).device, spoiled_rows)
