"""Keys and values of the sequences under way: a row of memory for each, the rows in use next to each other.

transformers' attention uses it as its cache, one forward at a time: `begin` sets the rows and positions of the forward,
`update` stores a layer's new keys and values and returns views of all of them. engine/kv_rows.py decides which sequence
has which row.
"""

from collections.abc import Sequence
from typing import Any

import torch


class _Block:
    """The memory of one layer's keys, or of its values."""

    def __init__(self, like: torch.Tensor) -> None:
        """Takes no memory yet; tokens will be stored as those in `like`, [sequences, heads, tokens, dim]."""
        _, self.heads, _, self.dim = like.shape
        self._memory = torch.zeros(0, dtype=like.dtype, device=like.device)
        self.token_bytes = self.heads * self.dim * like.itemsize

    def allocate(self, num_tokens: int) -> None:
        """Takes memory for so many tokens in place of what it had."""
        # given back first, so that old and new memory are never held together; a slice would hold all of it
        self._memory = self.rows = self._memory.new_empty(0)
        # zeros, since a masked position is multiplied by 0, and uninitialised memory may hold NaN
        self._memory = self._memory.new_zeros(num_tokens * self.heads * self.dim)

    def divide(self, num_rows: int, length: int) -> None:
        """Divides the memory into rows; what they held is lost."""
        shape = num_rows, self.heads, length, self.dim
        self.rows = self._memory[: torch.Size(shape).numel()].view(shape)


class KvCache:
    """Keys and values [rows, heads, length, dim] for each layer; rows may differ in how much of `length` they use.

    Memory is taken at a layer's first tokens, since only the attention itself knows what it stores (heads x head_dim,
    or a latent that is wider for keys than for values). It is one block for each layer's keys and one for its values,
    which `reshape` divides into more or longer rows.
    """

    is_compileable = False

    def __init__(self, num_rows: int, max_length: int, *, is_divisible: bool = True) -> None:
        """Takes no memory yet.

        Args:
            num_rows: Rows.
            max_length: Positions in each.
            is_divisible: Whether the beginning of a row can be used without the rest; False if what is computed of a
                token depends on those after it.
        """
        self.is_divisible = is_divisible
        self.num_rows = num_rows
        self.max_length = max_length
        self._num_tokens = num_rows * max_length
        self._blocks: dict[int, tuple[_Block, _Block]] = {}
        self._rows = slice(0, 0)
        self._row_index = torch.empty(0, dtype=torch.int64)
        self._positions = torch.empty(0, 0, dtype=torch.int64)
        self._start: int | torch.Tensor = 0
        self._length = 0
        self.memory_version = 0
        """Changes whenever keys and values get other memory."""

    def begin(self, first_row: int, positions: torch.Tensor, on_device: torch.Tensor | None = None) -> None:
        """Sets the rows and positions of the next forward.

        Args:
            first_row: The row of the batch's first sequence.
            positions: [sequences, tokens] int64 on the CPU: ascending runs. More than one token only for one sequence.
            on_device: The same where the keys and values will be; None: on the CPU.
        """
        on_device = positions if on_device is None else on_device
        sequences, tokens = positions.shape
        if sequences > 1 and tokens > 1:
            raise ValueError(f"a batch of {sequences} sequences has one token each, got {tokens}")
        self._rows = slice(first_row, first_row + sequences)
        self._row_index = torch.arange(first_row, first_row + sequences, device=on_device.device)
        self._positions = on_device[:, 0]
        self._start = int(positions[0, 0])
        self._length = int(positions.max()) + 1
        if self._length > self.max_length or self._rows.stop > self.num_rows:
            raise ValueError(f"rows {self._rows} up to position {self._length} exceed the cache")

    def begin_captured(self, positions: torch.Tensor, length: int, *, start_is_read: bool = False) -> None:
        """Does what `begin` does for a step that is captured: decoding rows from row 0 on, at positions that change.

        Args:
            positions: [sequences, 1] int64 on the device, which are read anew in each replay.
            length: Positions that the attention sees.
            start_is_read: Whether `get_seq_length` returns the first row's position, as a tensor on the device. The
                model may compute with it, and may not ask what number it is.
        """
        self._rows = slice(0, len(positions))
        self._row_index = torch.arange(len(positions), device=positions.device)
        self._positions = positions[:, 0]
        self._start, self._length = positions[0, 0] if start_is_read else 0, length

    @property
    def length(self) -> int:
        """Positions that this forward's attention sees."""
        return self._length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores a layer's new keys and values. transformers' attention calls it.

        Args:
            key_states: [sequences, heads, tokens, key_dim].
            value_states: [sequences, heads, tokens, value_dim].
            layer_idx: The decoder layer.

        Returns:
            Views [sequences, heads, length, dim] of all keys and all values. The attention masks what is beyond a row's
            own positions.
        """
        keys, values = self.memory_of(layer_idx, key_states, value_states)
        self._store(keys, key_states)
        self._store(values, value_states)
        return keys[self._rows, :, : self._length], values[self._rows, :, : self._length]

    @property
    def decoding(self) -> tuple[int, torch.Tensor]:
        """This forward's first row, and the position of each sequence's first token, [sequences]."""
        return self._rows.start, self._positions

    def memory(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """All of a layer's keys and values as memory that may be written; None if it has none yet.

        Both are [rows, heads, positions, dim], and the same tensors until rows are divided anew.

        Args:
            layer_idx: The decoder layer.
        """
        if layer_idx not in self._blocks:
            return None
        keys, values = self._blocks[layer_idx]
        return keys.rows, values.rows

    def memory_of(
        self, layer_idx: int, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All of a layer's keys and values, [rows, heads, length, dim], as memory that may be written.

        Args:
            layer_idx: The decoder layer.
            key_states: Some keys of it, [..., heads, tokens, key_dim]: memory is taken for such at its first ones.
            value_states: Some values of it.
        """
        if layer_idx not in self._blocks:
            self._blocks[layer_idx] = self._allocate(key_states), self._allocate(value_states)
        keys, values = self._blocks[layer_idx]
        return keys.rows, values.rows

    def copy(self, source: int, target: int, *, start: int, stop: int) -> None:
        """Copies positions start to stop - 1 of one row over another's."""
        for block in self._all_blocks():
            block.rows[target, :, start:stop] = block.rows[source, :, start:stop]

    def swap(self, one: int, other: int, stop: int) -> None:
        """Exchanges the first `stop` positions of two rows."""
        for block in self._all_blocks():
            held = block.rows[one, :, :stop].clone()
            block.rows[one, :, :stop] = block.rows[other, :, :stop]
            block.rows[other, :, :stop] = held

    def clear(self, row: int, stop: int) -> None:
        """Makes the first `stop` positions of a row zeros."""
        for block in self._all_blocks():
            block.rows[row, :, :stop] = 0

    def reshape(self, num_rows: int, length: int, kept: Sequence[tuple[int, int, int]]) -> None:
        """Divides the memory into other rows.

        Args:
            num_rows: How many.
            length: Positions in each.
            kept: (old row, new row, positions) of what is moved to the new rows.
        """
        if num_rows * length > self._num_tokens:
            raise ValueError(f"{num_rows} rows of {length} positions exceed the cache of {self._num_tokens}")
        self.num_rows, self.max_length = num_rows, length
        for block in self._all_blocks():
            held = [(target, block.rows[source, :, :stop].clone()) for source, target, stop in kept]
            block.divide(num_rows, length)
            for target, states in held:
                block.rows[target, :, : states.shape[1]] = states

    def set_capacity(self, num_tokens: int) -> None:
        """Forgets everything and takes memory for so many tokens, as one row until `reshape` divides it."""
        self._num_tokens = num_tokens
        self.memory_version += 1
        self.num_rows, self.max_length = 1, num_tokens
        for block in self._all_blocks():
            block.allocate(num_tokens)
            block.divide(1, num_tokens)

    def measure(self, row: int) -> None:
        """Does nothing: the size of a token is known from what was stored."""

    def get_seq_length(self, layer_idx: int = 0) -> int | torch.Tensor:
        """Positions before this forward; transformers asks if it is given no positions."""
        return self._start

    @property
    def allocated_bytes(self) -> int:
        """Bytes taken for all layers that have stored something."""
        return self.token_bytes * self._num_tokens

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one row in all layers that have stored something."""
        return sum(block.token_bytes for block in self._all_blocks())

    @property
    def row_bytes(self) -> int:
        """Bytes of a row that do not grow with its tokens: none."""
        return 0

    def _all_blocks(self) -> list[_Block]:
        return [block for layer in self._blocks.values() for block in layer]

    def _allocate(self, states: torch.Tensor) -> _Block:
        block = _Block(states)
        block.allocate(self._num_tokens)
        block.divide(self.num_rows, self.max_length)
        return block

    def _store(self, storage: torch.Tensor, states: torch.Tensor) -> None:
        if states.shape[2] == 1:
            storage[self._row_index, :, self._positions] = states[:, :, 0]
        else:
            storage[self._rows, :, self._start : self._start + states.shape[2]] = states
