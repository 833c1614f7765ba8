"""Keys and values of the requests under way: one row of memory each, the rows in use side by side.

It is what transformers' attention calls its cache, for one forward at a time: `begin` says which rows and positions
the forward is about, `update` stores a layer's new keys and values and returns views of all of them.
"""

from typing import Any

import torch


class SlotCache:
    """K/V of shape [slots, heads, length, dim] for each layer; rows may differ in how much of `length` they use.

    Memory is taken when a layer is first seen, since only the attention itself knows what it stores (heads x head_dim,
    or one latent of another width for keys than for values).
    """

    is_compileable = False

    def __init__(self, num_slots: int, max_length: int) -> None:
        self.num_slots = num_slots
        self.max_length = max_length
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rows = slice(0, 0)
        self._row_index = torch.empty(0, dtype=torch.int64)
        self._positions = torch.empty(0, 0, dtype=torch.int64)
        self._start = 0
        self._length = 0

    def begin(self, first_row: int, positions: torch.Tensor, device: torch.device | None = None) -> None:
        """Says what the next forward is about.

        Args:
            first_row: The row of the batch's first request.
            positions: [requests, tokens] int64 on the CPU: ascending runs. More than one token only for one request.
            device: Where the keys and values will come from; None is the CPU.
        """
        requests, tokens = positions.shape
        if requests > 1 and tokens > 1:
            raise ValueError(f"a batch of {requests} requests has one token each, got {tokens}")
        self._rows = slice(first_row, first_row + requests)
        # moved once here rather than in every layer
        self._row_index = torch.arange(first_row, first_row + requests, device=device)
        self._positions = positions[:, 0].to(device)
        self._start = int(positions[0, 0])
        self._length = int(positions.max()) + 1
        if self._length > self.max_length or self._rows.stop > self.num_slots:
            raise ValueError(f"rows {self._rows} up to position {self._length} exceed the cache")

    @property
    def length(self) -> int:
        """Positions that this forward's attention sees."""
        return self._length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores a layer's new keys and values. transformers' attention calls it.

        Args:
            key_states: [requests, heads, tokens, key_dim].
            value_states: [requests, heads, tokens, value_dim].
            layer_idx: The decoder layer.

        Returns:
            Views [requests, heads, length, dim] of all keys and all values; what lies beyond a row's own positions is
            to be masked.
        """
        if layer_idx not in self._layers:
            self._layers[layer_idx] = self._allocate(key_states), self._allocate(value_states)
        keys, values = self._layers[layer_idx]
        self._store(keys, key_states)
        self._store(values, value_states)
        return keys[self._rows, :, : self._length], values[self._rows, :, : self._length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of one row over another."""
        for layer in self._layers.values():
            for tensor in layer:
                tensor[target, :, :length] = tensor[source, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before this forward; transformers asks where it is given none."""
        return self._start

    @property
    def allocated_bytes(self) -> int:
        """Bytes taken for all layers seen so far."""
        return sum(tensor.nbytes for layer in self._layers.values() for tensor in layer)

    def _allocate(self, states: torch.Tensor) -> torch.Tensor:
        _, heads, _, dim = states.shape
        # zeros, since a masked position is multiplied by 0 and what was in the memory before may be NaN
        return torch.zeros(self.num_slots, heads, self.max_length, dim, dtype=states.dtype, device=states.device)

    def _store(self, storage: torch.Tensor, states: torch.Tensor) -> None:
        if states.shape[2] == 1:
            storage[self._row_index, :, self._positions] = states[:, :, 0]
        else:
            storage[self._rows, :, self._start : self._start + states.shape[2]] = states


def attention_mask(positions: torch.Tensor, length: int, window: int | None = None) -> torch.Tensor:
    """Which keys each query sees.

    Args:
        positions: [requests, tokens] int64.
        length: Positions that the attention is given.
        window: A query sees itself and the window - 1 positions before it; None: all before it.

    Returns:
        [requests, 1, tokens, length] bool, True where it sees.
    """
    keys = torch.arange(length, device=positions.device)
    queries = positions[:, None, :, None]
    mask = keys <= queries
    return mask if window is None else mask & (keys > queries - window)
