"""Runs transformers' model over rows of a cache: all rows in one forward, or a forward for each row.

Rows can be computed together if the model's layers keep keys and values and nothing else: then one block of memory and
one mask serve them all. transformers' own cache of a model shows what its layers keep.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from typing_extensions import override

from gpu_service.gpu_experts.uploads import Uploads
from gpu_service.model_runner.attention.host import HostAttention
from gpu_service.model_runner.attention_masks import AttentionMasks
from gpu_service.model_runner.kv_cache import KvCache
from gpu_service.model_runner.rope import RowAngles
from gpu_service.model_runner.rope_angles import RopeAngles
from gpu_service.model_runner.state_cache import StateCache
from gpu_service.models.attention_reach import visible_keys


class Forward(ABC):
    """Computes a batch, in one part or several, and keeps what its sequences need later."""

    cache: KvCache | StateCache
    """The rows."""
    is_repeatable: ClassVar[bool]
    """Whether a batch that failed half-way may be computed again."""

    @abstractmethod
    def compute(
        self, token_ids: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int], *, first_row: int, kept: Any
    ) -> Iterator[torch.Tensor]:
        """Yields logits [sequences, kept tokens, vocab] after each forward of the model, in the order of the sequences.

        Args:
            token_ids: [sequences, tokens] int64 on the CPU.
            positions: [sequences, tokens] int64 on the CPU.
            lengths: Of each sequence as a whole; see `RopeAngles.of`.
            first_row: The cache's row of the first sequence.
            kept: What transformers calls logits_to_keep.
        """

    def retried(self, compute: Callable[[], torch.Tensor], make_room: Callable[[], bool]) -> torch.Tensor:
        """Computes a batch, a second time if the device had no memory left and gets some.

        Args:
            compute: Computes it.
            make_room: Gives memory back to the device, and returns whether there was any to give.
        """
        failure: torch.OutOfMemoryError | None = None
        try:
            return compute()
        except torch.OutOfMemoryError as error:
            # the frames of its traceback hold all that the batch had computed; the retry needs that memory
            failure = error.with_traceback(None)
            failure.__context__ = failure.__cause__ = None
        if not make_room() or not self.is_repeatable:
            raise failure
        return compute()


class Together(Forward):
    """All rows in one forward."""

    cache: KvCache
    is_repeatable = True  # a batch's keys and values are stored again in the same place

    def __init__(
        self,
        module: nn.Module,
        cache: KvCache,
        *,
        masks: AttentionMasks,
        device: torch.device,
        row_angles: RowAngles,
        host_attention: HostAttention | None = None,
        temperature_step: int | None = None,
    ) -> None:
        """Computes nothing yet.

        Args:
            module: transformers' model.
            cache: Holds keys and values.
            masks: Makes the model's masks.
            device: Where the model is.
            row_angles: Gives each row the angles of its sequence.
            host_attention: Computes the attention of decode steps; None: the model's own functions do.
            temperature_step: Positions after which the attention's temperature changes, as Llama-4's does. transformers
                takes the temperature of all rows from the first row's position, so only rows of the same temperature
                are computed together. None: it does not change.
        """
        self.cache = cache
        self._module = module
        self._masks = masks
        self._uploads = Uploads(device)
        self._temperature_step = temperature_step
        self._row_angles = row_angles
        self._host_attention = host_attention

    @override
    def compute(
        self, token_ids: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int], *, first_row: int, kept: Any
    ) -> Iterator[torch.Tensor]:
        for begin, end in self._groups(positions):
            self._row_angles.begin(lengths[begin:end])
            yield self._compute(token_ids[begin:end], positions[begin:end], first_row=first_row + begin, kept=kept)

    def _groups(self, positions: torch.Tensor) -> Iterator[tuple[int, int]]:
        """(begin, end) of the sequences that one forward can compute."""
        if self._temperature_step is None or len(positions) == 1:
            yield 0, len(positions)
            return
        temperatures = (positions[:, 0] + 1) // self._temperature_step
        begin = 0
        for _, group in itertools.groupby(temperatures.tolist()):
            end = begin + len(list(group))
            yield begin, end
            begin = end

    def _compute(self, token_ids: torch.Tensor, positions: torch.Tensor, *, first_row: int, kept: Any) -> torch.Tensor:
        token_ids, there = self._uploads.to_device(token_ids, positions)
        self.cache.begin(first_row, positions, there)
        with _decoding(self._host_attention, positions):
            output = self._module(
                input_ids=token_ids,
                position_ids=there,
                attention_mask=self._masks.of(there, self.cache.length),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=kept,
            )
        logits: torch.Tensor = output.logits
        return logits


class RowByRow(Forward):
    """A forward for each row."""

    cache: StateCache
    is_repeatable = False  # states have moved on

    def __init__(
        self,
        module: nn.Module,
        cache: StateCache,
        device: torch.device,
        angles: RopeAngles,
        host_attention: HostAttention | None = None,
    ) -> None:
        """Computes nothing yet.

        Args:
            module: transformers' model.
            cache: Holds what the model keeps.
            device: Where the model is.
            angles: Which lengths have the same angles.
            host_attention: Computes the attention of decode steps; None: the model's own functions do.
        """
        self._host_attention = host_attention
        self._row_angles = RowAngles(module, angles)
        self._needs_lengths = (
            angles.recomputes
        )  # otherwise a forward is a whole prompt or one token, as transformers' own
        self.cache = cache
        self._module = module
        self._uploads = Uploads(device)

    @override
    def compute(
        self, token_ids: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int], *, first_row: int, kept: Any
    ) -> Iterator[torch.Tensor]:
        for number in range(len(token_ids)):
            row = first_row + number
            if self._needs_lengths:
                self._row_angles.begin(lengths[number : number + 1])
            tokens, there = self._uploads.to_device(token_ids[number : number + 1], positions[number : number + 1])
            with _decoding(self._host_attention, positions):
                output = self._module(
                    input_ids=tokens,
                    position_ids=there,
                    past_key_values=self.cache.row(row, int(positions[number, 0])),
                    use_cache=True,
                    logits_to_keep=kept,
                )
            self.cache.keep(row, output.past_key_values)
            yield output.logits


def _decoding(attention: HostAttention | None, positions: torch.Tensor) -> AbstractContextManager[None]:
    """Computes the attention of [sequences, 1] positions on the host's kernels."""
    return nullcontext() if attention is None or positions.shape[1] > 1 else attention.used()


def masks_agree(module: nn.Module, masks: AttentionMasks, max_context: int) -> bool:
    """Whether a model's own code and transformers' cache let each layer see exactly what our masks let it see.

    They do not if the configuration has a setting that the class ignores: its masks ignore it, and transformers' cache,
    which forgets keys beyond a window, follows it.

    Args:
        module: transformers' model, which keeps only keys and values.
        masks: Ours.
        max_context: Positions that are ever computed.
    """
    config: Any = module.config
    layer_types = getattr(config.get_text_config(decoder=True), "layer_types", None)
    if not masks.spans:
        return True
    # beyond all windows if there are such positions; at two of them, since a whole chunk looks like a window
    last = min(4 * max(masks.spans), max_context - 1)
    positions = torch.tensor([max(0, last - 1), last])
    theirs = visible_keys(module, positions)
    for number, kept in enumerate(DynamicCache(config=config).layers):
        ours = masks.visible_keys(positions, layer_types[number] if layer_types else None)
        if isinstance(kept, DynamicSlidingWindowLayer):
            forgotten = torch.arange(last + 1) <= positions[:, None] - kept.sliding_window
            if (ours & forgotten).any():
                return False
        if number not in theirs or not torch.equal(theirs[number], ours):
            return False
    return True


def keeps_only_keys_and_values(config: Any) -> bool:
    """Whether each layer of a model keeps its own keys and values and nothing else."""
    layers = DynamicCache(config=config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
