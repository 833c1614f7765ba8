"""One forward of transformers' model over rows of a cache: all rows at once, or row by row.

Rows are computed together where the model's layers keep keys and values and nothing else, so that one block of memory
and one mask serve them all. Which it is, transformers' own cache of the model says.
"""

from typing import Any, Protocol

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from gpu_service.attention_masks import AttentionMasks
from gpu_service.slot_cache import SlotCache
from gpu_service.state_cache import StateCache


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

    def __init__(self, cache: SlotCache, masks: AttentionMasks, device: torch.device) -> None:
        self.cache = cache
        self._masks = masks
        self._device = device

    def compute(
        self, module: nn.Module, token_ids: torch.Tensor, positions: torch.Tensor, first_row: int, kept: Any
    ) -> torch.Tensor:
        """See Forward."""
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
        self.cache = cache
        self._device = device
        self._spoiled_rows = spoiled_rows

    def compute(
        self, module: nn.Module, token_ids: torch.Tensor, positions: torch.Tensor, first_row: int, kept: Any
    ) -> torch.Tensor:
        """See Forward."""
        rows: list[torch.Tensor] = []
        spoiled: set[int] = set()
        num_tokens = token_ids.shape[1]
        for number in range(len(token_ids)):
            row = first_row + number
            output = module(
                input_ids=token_ids[number : number + 1].to(self._device),
                position_ids=positions[number : number + 1].to(self._device),
                past_key_values=self.cache.row(row, int(positions[number, 0])),
                use_cache=True,
                logits_to_keep=kept,
            )
            self.cache.keep(row, output.past_key_values)
            rows.append(output.logits)
            spoiled.update(number * num_tokens + token for token in self._spoiled_rows)
            self._spoiled_rows.clear()
        self._spoiled_rows.update(spoiled)
        return torch.cat(rows)


def build_forward(
    module: nn.Module, num_slots: int, max_length: int, device: torch.device, spoiled_rows: set[int]
) -> Forward:
    """The forward that fits a model's layers.

    Args:
        module: transformers' model.
        num_slots: Rows of the cache.
        max_length: Positions in each.
        device: Where the model is.
        spoiled_rows: Dispatcher.spoiled_rows, which counts the rows of one forward, and here of one batch.
    """
    config: Any = module.config
    text_config = config.get_text_config(decoder=True)
    if keeps_only_keys_and_values(config):
        implementation = text_config._attn_implementation
        masks = AttentionMasks(text_config, next(module.parameters()).dtype, is_added=implementation == "eager")
        is_divisible = not getattr(module, "needs_whole_prompts", False)
        return Together(SlotCache(num_slots, max_length, is_divisible), masks, device)
    own_class = not module._supports_default_dynamic_cache()  # type: ignore[operator]
    return RowByRow(StateCache(config, num_slots, max_length, own_class), device, spoiled_rows)


def keeps_only_keys_and_values(config: Any) -> bool:
    """Whether all layers of a model keep keys and values, each of its own, and nothing else."""
    layers = DynamicCache(config=config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
