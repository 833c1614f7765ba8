"""The device's memory: how much is taken, what it holds before it is written, and running out of it on demand."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tests.support.imitated_cuda.machine import Machine

_GRANULE_BYTES = 512
_NOT_A_NUMBER, _OUT_OF_RANGE = 0xFF, 0xA5
"""Bytes of poisoned memory: a float of the first is NaN, an integer of the second is far below zero."""


class Block:
    """Memory of one tensor and its views. It is given back when the last of them is gone."""

    def __init__(self, memory: "Memory", numbers: torch.Tensor) -> None:
        self._memory = memory
        self._numbers = numbers
        self._stream = memory.machine.current_stream()
        self.num_bytes = -(-numbers.untyped_storage().nbytes() // _GRANULE_BYTES) * _GRANULE_BYTES

    def __del__(self) -> None:
        self._memory.give_back(self.num_bytes)
        if self._memory.is_current and not self._memory.machine.is_eager:
            # the allocator may give the memory to what comes next on this stream: whoever still reads it then is wrong
            numbers = self._numbers
            self._stream.enqueue(lambda: poison(numbers), goes_on=False)  # what fails may not fail in here


class Memory:
    """Counts bytes, as PyTorch's allocator would if it lost none between blocks."""

    def __init__(self, machine: "Machine", total_bytes: int) -> None:
        self.machine = machine
        self.total_bytes = total_bytes
        self.taken_bytes = 0
        self.peak_bytes = 0
        self.num_allocations = 0
        self.fails_at: int | None = None
        """The allocation, counted like `num_allocations`, that fails; None: only those beyond the total fail."""
        self._pinned: set[int] = set()

    @property
    def is_current(self) -> bool:
        """Whether this is still the device's; not if the device was reset in the meantime."""
        return self.machine.memory is self

    def block_of(self, numbers: torch.Tensor) -> Block:
        """Takes memory for a tensor.

        Raises:
            torch.OutOfMemoryError: There is not enough, or a test wants so.
        """
        self.num_allocations += 1
        block = Block(self, numbers)
        self.taken_bytes += block.num_bytes
        if self.taken_bytes > self.total_bytes or self.num_allocations == self.fails_at:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {block.num_bytes} bytes")
        self.peak_bytes = max(self.peak_bytes, self.taken_bytes)
        return block

    def give_back(self, num_bytes: int) -> None:
        """Called by a block that is gone."""
        self.taken_bytes -= num_bytes

    def fail_after(self, num_allocations: int) -> None:
        """Makes the allocation fail that follows so many others."""
        self.fails_at = self.num_allocations + num_allocations + 1

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Notes that a tensor of the host is pinned, and poisons it."""
        poison(tensor)
        self._pinned.add(tensor.untyped_storage().data_ptr())
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether the device may read and write it by itself."""
        return tensor.untyped_storage().data_ptr() in self._pinned

    def info(self, device: Any = None) -> tuple[int, int]:
        """Free and total bytes."""
        return self.total_bytes - self.taken_bytes, self.total_bytes

    def reset_peak(self, device: Any = None) -> None:
        """Starts to look for the peak anew."""
        self.peak_bytes = self.taken_bytes


def uninitialised(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
    """Memory on the CPU that holds what nobody should read."""
    made = torch.empty_strided(size, stride, dtype=dtype)
    poison(made)
    return made


def poison(tensor: torch.Tensor) -> None:
    """Overwrites a tensor's whole storage."""
    holds_floats = tensor.dtype.is_floating_point or tensor.dtype is torch.uint8  # bytes may stand for anything
    storage = tensor.untyped_storage()
    value = 1 if tensor.dtype is torch.bool else _NOT_A_NUMBER if holds_floats else _OUT_OF_RANGE
    torch.empty(0, dtype=torch.uint8).set_(storage).fill_(value)
