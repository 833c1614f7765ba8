"""The keys and values of a packed forward: new ones go to the rows of their sequences, and each span sees its row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from gpu_service.model_runner.forward_input import Span
from gpu_service.model_runner.kv_cache import KvCache


class NotPackedError(RuntimeError):
    """The model's code does not do what packed spans need."""


@dataclass(frozen=True, slots=True)
class Group:
    """Spans whose attention is computed at once: one span, or several of one token each in adjacent rows."""

    rows: slice
    """Of the cache."""
    tokens: slice
    """Of the packed tokens."""
    positions: slice
    """Of its first row's tokens."""
    stop: int
    """The position after the last that one of its tokens sees."""

    @property
    def is_decode(self) -> bool:
        """Whether it is one token of each of its rows."""
        num_rows: int = self.rows.stop - self.rows.start
        num_tokens: int = self.tokens.stop - self.tokens.start
        return num_tokens == num_rows


def groups_of(spans: Sequence[Span]) -> list[Group]:
    """Divides spans into groups, in their order."""
    groups: list[Group] = []
    begin = 0
    for span in spans:
        end = begin + len(span.token_ids)
        last = groups[-1] if groups else None
        if last and last.is_decode and end == begin + 1 and span.row == last.rows.stop:
            groups[-1] = Group(
                rows=slice(last.rows.start, span.row + 1),
                tokens=slice(last.tokens.start, end),
                positions=last.positions,
                stop=max(last.stop, span.stop),
            )
        else:
            groups.append(
                Group(slice(span.row, span.row + 1), slice(begin, end), slice(span.start, span.stop), span.stop)
            )
        begin = end
    return groups


class PackedCache:
    """Stands for a KvCache in one packed forward. The attention of each layer calls `update`, then `visible`."""

    is_compileable = False

    def __init__(self, cache: KvCache, groups: Sequence[Group], positions: torch.Tensor) -> None:
        """Stores nothing yet.

        Args:
            cache: Holds keys and values by row.
            groups: The spans.
            positions: [tokens] int64 where the keys and values are.

        Raises:
            ValueError: A row or a position is beyond the cache.
        """
        for group in groups:
            if group.rows.stop > cache.num_rows or group.stop > cache.max_length:
                raise ValueError(f"rows {group.rows} up to position {group.stop} exceed the cache")
        self._cache = cache
        self._groups = groups
        self._positions = positions
        self._row_indices = [
            torch.arange(group.rows.start, group.rows.stop, device=positions.device) if group.is_decode else None
            for group in groups
        ]
        self._given: tuple[torch.Tensor, torch.Tensor] | None = None
        self._memory: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores a layer's new keys and values, each in the row of its sequence.

        Args:
            key_states: [1, heads, tokens, key_dim].
            value_states: [1, heads, tokens, value_dim].
            layer_idx: The decoder layer.

        Returns:
            What was given. It stands for all keys and values, which the attention function gets from `visible`.

        Raises:
            NotPackedError: The layer before did not call the attention function.
        """
        self.check_seen()
        self._memory = self._cache.memory_of(layer_idx, key_states, value_states)
        for storage, states in zip(self._memory, (key_states[0], value_states[0]), strict=True):
            for group, row_index in zip(self._groups, self._row_indices, strict=True):
                if row_index is None:
                    storage[group.rows.start, :, group.positions] = states[:, group.tokens]
                else:
                    storage[row_index, :, self._positions[group.tokens]] = states[:, group.tokens].transpose(0, 1)
        self._given = key_states, value_states
        return self._given

    def visible(self, key: torch.Tensor, value: torch.Tensor) -> Iterator[tuple[Group, torch.Tensor, torch.Tensor]]:
        """Yields each group with its rows' keys and values, [rows, heads, stop, dim].

        Args:
            key: What `update` returned for the layer, unchanged.
            value: Likewise.

        Raises:
            NotPackedError: They are something else.
        """
        if self._memory is None or not self.gave(key, value):
            raise NotPackedError("its attention changes the keys and values that it gets from the cache")
        self._given = None
        keys, values = self._memory
        for group in self._groups:
            yield group, keys[group.rows, :, : group.stop], values[group.rows, :, : group.stop]

    def gave(self, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Whether `update` returned these for the layer that is computed."""
        return self._given is not None and key is self._given[0] and value is self._given[1]

    def check_seen(self) -> None:
        """Raises NotPackedError if keys were stored that no attention function has asked for."""
        if self._given is not None:
            raise NotPackedError("its attention is not one of transformers' attention functions")

    def get_seq_length(self, layer_idx: int = 0) -> NoReturn:
        """Raises NotPackedError: there is no one position at which all spans begin."""
        raise NotPackedError("it takes positions from the length of the cache")
