"""One forward of transformers' model over rows of a cache: all rows at once, or row by row.

Rows are computed together where the model's layers keep keys and values and nothing else, so that one block of memory
and one mask serve them all. Which it is, transformers' own cache of the model says.
"""

import itertools
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from gpu_service.model_runner import encoder_decoder
from gpu_service.model_runner.attention_masks import AttentionMasks
from gpu_service.model_runner.kv_cache import SlotCache
from gpu_service.model_runner.parts import compute_parts
from gpu_service.model_runner.state_cache import StateCache


class Forward(Protocol):
    """Computes a batch and keeps what its sequences need later."""

    @property
    def cache(self) -> SlotCache | StateCache:
        """The rows."""
        ...

    is_repeatable: bool
    """Whether a batch that failed on its way may be computed again."""

    def compute(
        self, module: nn.Module, token_ids: torch.Tensor, positions: torch.Tensor, first_row: int, kept: Any
    ) -> torch.Tensor:
        """[sequences, kept tokens, vocab].

        Args:
            module: transformers' model.
            token_ids: [sequences, tokens] int64 on the CPU.
            positions: [sequences, tokens] int64 on the CPU.
            first_row: The cache's row of the first sequence.
            kept: What transformers calls logits_to_keep.
        """
        ...


class Together:
    """All rows in one forward."""

    is_repeatable = True  # what was stored of a batch's keys and values is stored again in the same place

    def __init__(
        self,
        cache: SlotCache,
        masks: AttentionMasks,
        device: torch.device,
        spoiled_rows: set[int],
        temperature_step: int | None = None,
    ) -> None:
        """Prepares.

        Args:
            cache: Holds keys and values.
            masks: Makes the model's masks.
            device: Where the model is.
            spoiled_rows: See `compute_parts`.
            temperature_step: Positions after which the attention's temperature changes, as Llama-4's does. transformers
                tells it from the first row's position for all rows, so that only rows of one temperature are computed
                together. None: it does not change.
        """
        self.cache = cache
        self._masks = masks
        self._device = device
        self._spoiled_rows = spoiled_rows
        self._temperature_step = temperature_step

    def compute(
        self, module: nn.Module, token_ids: torch.Tensor, positions: torch.Tensor, first_row: int, kept: Any
    ) -> torch.Tensor:
        """See Forward."""
        if self._temperature_step is None or len(positions) == 1:
            return self._compute(module, token_ids, positions, first_row, kept)
        parts, begin = [], 0
        temperatures = (positions[:, 0] + 1) // self._temperature_step
        for _, group in itertools.groupby(temperatures.tolist()):
            end = begin + len(list(group))
            part = token_ids[begin:end], positions[begin:end], first_row + begin
            parts.append((begin, partial(self._compute, module, *part, kept)))
            begin = end
        return compute_parts(parts, self._spoiled_rows)

    def _compute(
        self, module: nn.Module, token_ids: torch.Tensor, positions: torch.Tensor, first_row: int, kept: Any
    ) -> torch.Tensor:
        self.cache.begin(first_row, positions, self._device)
        positions = positions.to(self._device)
        output = module(
            input_ids=token_ids.to(self._device),
            position_ids=positions,
            attention_mask=self._masks.of(positions, self.cache.length),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=kept,
        )
        logits: torch.Tensor = output.logits
        return logits


class RowByRow:
    """A forward for each row."""

    is_repeatable = False  # states have moved on

    def __init__(self, cache: StateCache, device: torch.device, spoiled_rows: set[int]) -> None:
        """Prepares.

        Args:
            cache: Holds what the model keeps.
            device: Where the model is.
            spoiled_rows: See `compute_parts`.
        """
        self.cache = cache
        self._device = device
        self._spoiled_rows = spoiled_rows

    def compute(
        self, module: nn.Module, token_ids: torch.Tensor, positions: torch.Tensor, first_row: int, kept: Any
    ) -> torch.Tensor:
        """See Forward."""
        num_tokens = token_ids.shape[1]
        parts = [
            (
                row * num_tokens,
                partial(self._compute_row, module, token_ids[[row]], positions[[row]], first_row + row, kept),
            )
            for row in range(len(token_ids))
        ]
        return compute_parts(parts, self._spoiled_rows)

    def _compute_row(
        self, module: nn.Module, token_ids: torch.Tensor, positions: torch.Tensor, row: int, kept: Any
    ) -> torch.Tensor:
        output = module(
            input_ids=token_ids.to(self._device),
            position_ids=positions.to(self._device),
            past_key_values=self.cache.row(row, int(positions[0, 0])),
            use_cache=True,
            logits_to_keep=kept,
        )
        self.cache.keep(row, output.past_key_values)
        logits: torch.Tensor = output.logits
        return logits


def build_forward(
    module: nn.Module,
    num_slots: int,
    max_length: int,
    device: torch.device,
    spoiled_rows: set[int],
    start_token_id: int | None = None,
) -> Forward:
    """The forward that fits a model's layers.

    Args:
        module: transformers' model.
        num_slots: Rows of the cache.
        max_length: Positions in each.
        device: Where the model is.
        spoiled_rows: Dispatcher.spoiled_rows.
        start_token_id: What the decoder begins with; None where the model has no encoder.
    """
    if start_token_id is not None:
        return encoder_decoder.build(module, num_slots, max_length, start_token_id, spoiled_rows)
    config: Any = module.config
    text_config = config.get_text_config(decoder=True)
    if keeps_only_keys_and_values(config):
        implementation = text_config._attn_implementation
        masks = AttentionMasks(text_config, next(module.parameters()).dtype, is_added=implementation == "eager")
        is_divisible = not getattr(module, "needs_whole_prompts", False)
        step = text_config.floor_scale if getattr(text_config, "attn_temperature_tuning", False) else None
        return Together(SlotCache(num_slots, max_length, is_divisible), masks, device, spoiled_rows, step)
    own_class = not module._supports_default_dynamic_cache()  # type: ignore[operator]
    return RowByRow(StateCache(config, num_slots, max_length, own_class), device, spoiled_rows)


def keeps_only_keys_and_values(config: Any) -> bool:
    """Whether all layers of a model keep keys and values, each of its own, and nothing else."""
    layers = DynamicCache(config=config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
