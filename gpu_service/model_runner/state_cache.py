"""The states of sequences whose layers keep more than keys and values: a cache of transformers' own for each row.

Recurrent and convolutional layers, compressed attention and indexers keep states that only the model's code knows.
What they hold of a sequence cannot be cut to its beginning, and rows cannot be computed together; copied and moved they
can be. It is what row_table.py calls storage, as slot_cache.py is for keys and values.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache


class StateCache:
    """A row is a number and whatever cache it has come to hold."""

    is_divisible = False

    def __init__(self, config: Any, num_slots: int, max_length: int, is_made_by_model: bool = False) -> None:
        """Holds nothing yet.

        Args:
            config: The model's configuration, which says what its layers keep.
            num_slots: How many rows there may be.
            max_length: Positions in the longest.
            is_made_by_model: Whether the model has a class of its own for its cache.
        """
        self.num_slots = num_slots
        self.max_length = max_length
        self._config = config
        self._is_made_by_model = is_made_by_model
        self._rows: dict[int, Any] = {}
        self._num_tokens = num_slots * max_length
        self._row_bytes = self._token_bytes = 0

    def row(self, row: int, start: int) -> Any:
        """The cache to go on with at position `start`, an empty one at 0; None where the model makes its own."""
        if row >= self.num_slots:
            raise ValueError(f"row {row} exceeds the cache of {self.num_slots}")
        if start == 0 or row not in self._rows:
            self._rows[row] = None if self._is_made_by_model else DynamicCache(config=self._config)
        return self._rows[row]

    def keep(self, row: int, cache: Any) -> None:
        """Has a row hold what the model gave back."""
        self._rows[row] = cache

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Makes a row hold all that another does, whatever the positions."""
        self._rows[target] = copy.deepcopy(self._rows[source])

    def swap(self, one: int, other: int, stop: int) -> None:
        """Exchanges two rows."""
        held = {other: self._rows.pop(one, None), one: self._rows.pop(other, None)}
        self._rows |= {row: cache for row, cache in held.items() if cache is not None}

    def clear(self, row: int, stop: int) -> None:
        """Forgets a row."""
        self._rows.pop(row, None)

    def reshape(self, num_slots: int, length: int, kept: Sequence[tuple[int, int, int]]) -> None:
        """Has so many rows from now on.

        Args:
            num_slots: How many.
            length: Positions in the longest.
            kept: (old row, new row, positions) of what rows must still hold.
        """
        self.num_slots, self.max_length = num_slots, length
        self._rows = {target: self._rows[source] for source, target, _ in kept if source in self._rows}

    def set_capacity(self, num_tokens: int) -> None:
        """Forgets everything."""
        self._num_tokens = num_tokens
        self.num_slots, self.max_length = 1, num_tokens
        self._rows.clear()

    def measure(self, row: int) -> None:
        """Notes what a row holds and how much that is more than it was; called after its first and second token."""
        held = sum(tensor.nbytes for tensor in _tensors(self._rows[row]))
        self._token_bytes, self._row_bytes = max(0, held - self._row_bytes), held

    @property
    def token_bytes(self) -> int:
        """Bytes that a token adds to a row."""
        return max(1, self._token_bytes)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row that do not grow with its tokens, and of its first ones."""
        return self._row_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes that are held now."""
        return sum(tensor.nbytes for cache in self._rows.values() for tensor in _tensors(cache))


def _tensors(holder: Any) -> Iterator[torch.Tensor]:
    """All tensors in a cache, its layers, and their lists and dictionaries."""
    if isinstance(holder, torch.Tensor):
        yield holder
    elif isinstance(holder, dict):
        for value in holder.values():
            yield from _tensors(value)
    elif isinstance(holder, list | tuple):
        for value in holder:
            yield from _tensors(value)
    elif isinstance(holder, Cache) or (
        type(holder).__module__.startswith("transformers.") and hasattr(holder, "__dict__")
    ):
        yield from _tensors(vars(holder))
