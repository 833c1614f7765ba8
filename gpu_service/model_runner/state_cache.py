"""The states of sequences whose layers keep more than keys and values: one of transformers' own caches for each row.

Recurrent and convolutional layers, compressed attention and indexers keep states that only the model's code knows. Such
a state can be copied and moved, but it cannot be cut to the beginning of its sequence, and rows cannot be computed
together. kv_cache.py has the same methods for keys and values.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache


class StateCache:
    """A cache for each row."""

    is_divisible = False

    def __init__(self, config: Any, num_rows: int, max_length: int, *, is_made_by_model: bool = False) -> None:
        """Holds nothing yet.

        Args:
            config: The model's configuration, which says what its layers keep.
            num_rows: How many rows there may be.
            max_length: Positions in the longest.
            is_made_by_model: Whether the model's code makes its cache, of a class of its own.
        """
        self.num_rows = num_rows
        self.max_length = max_length
        self._config = config
        self._is_made_by_model = is_made_by_model
        self._rows: dict[int, Any] = {}
        self._num_tokens = num_rows * max_length
        self._row_bytes = self._token_bytes = 0

    def row(self, row: int, start: int) -> Any:
        """The cache of a row before position `start`, an empty one at 0; None if the model is to make one."""
        if row >= self.num_rows:
            raise ValueError(f"row {row} exceeds the cache of {self.num_rows}")
        if start == 0 or row not in self._rows:
            self._rows[row] = None if self._is_made_by_model else DynamicCache(config=self._config)
        return self._rows[row]

    def keep(self, row: int, cache: Any) -> None:
        """Stores the cache that the model returned for a row."""
        self._rows[row] = cache

    def copy(self, source: int, target: int, *, start: int, stop: int) -> None:
        """Makes a row hold all that another holds, whatever the positions."""
        self._rows[target] = copy.deepcopy(self._rows[source])

    def swap(self, one: int, other: int, stop: int) -> None:
        """Exchanges two rows."""
        held = {other: self._rows.pop(one, None), one: self._rows.pop(other, None)}
        self._rows |= {row: cache for row, cache in held.items() if cache is not None}

    def clear(self, row: int, stop: int) -> None:
        """Forgets a row."""
        self._rows.pop(row, None)

    def reshape(self, num_rows: int, length: int, kept: Sequence[tuple[int, int, int]]) -> None:
        """Changes the number of rows.

        Args:
            num_rows: How many.
            length: Positions in the longest.
            kept: (old row, new row, positions) of what is moved to the new rows.
        """
        self.num_rows, self.max_length = num_rows, length
        self._rows = {target: self._rows[source] for source, target, _ in kept if source in self._rows}

    def set_capacity(self, num_tokens: int) -> None:
        """Forgets everything."""
        self._num_tokens = num_tokens
        self.num_rows, self.max_length = 1, num_tokens
        self._rows.clear()

    def measure(self, row: int) -> None:
        """Notes how much a row holds, and how much it has grown; called after its first and its second token."""
        held = sum(tensor.nbytes for tensor in tensors_of(self._rows[row]))
        self._token_bytes, self._row_bytes = max(0, held - self._row_bytes), held

    @property
    def token_bytes(self) -> int:
        """Bytes that a token adds to a row."""
        return max(1, self._token_bytes)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row that do not grow with its tokens, and those of its first tokens."""
        return self._row_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes held now."""
        return sum(tensor.nbytes for cache in self._rows.values() for tensor in tensors_of(cache))


def tensors_of(holder: Any) -> Iterator[torch.Tensor]:
    """All tensors in a cache, in its layers, and in their lists and dictionaries."""
    if isinstance(holder, torch.Tensor):
        yield holder
    elif isinstance(holder, dict):
        for value in holder.values():
            yield from tensors_of(value)
    elif isinstance(holder, list | tuple):
        for value in holder:
            yield from tensors_of(value)
    elif isinstance(holder, Cache) or (
        type(holder).__module__.startswith("transformers.") and hasattr(holder, "__dict__")
    ):
        yield from tensors_of(vars(holder))
