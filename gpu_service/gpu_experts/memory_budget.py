"""How much of the device's memory resident experts may take: what the user asks for, compared with what is free.

Only arithmetic: the caller measures the memory and allocates it.
"""

import math
import re
from dataclasses import dataclass

from gpu_service.errors import FlagError

RESERVE_BYTES = 512 * 2**20
"""Left free by every budget: for what libraries allocate late, and what the allocator loses between blocks."""
_FLAG = "--gpu-expert-memory"
_GIB = 2**30
_NUMBER = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(%?)", re.ASCII)

# PyTorch's allocator on CUDA: a tensor of at least _LARGE gets memory of its own, in multiples of _GRANULE; a smaller
# one shares blocks of _SHARED; one of at most _SMALL shares small blocks, in multiples of _QUANTUM
_SMALL_BYTES, _QUANTUM_BYTES = 2**20, 512
_LARGE_BYTES, _GRANULE_BYTES, _SHARED_BYTES = 10 * 2**20, 2 * 2**20, 20 * 2**20


@dataclass(frozen=True, slots=True)
class Budget:
    """What the user asks for. At most one of `gib` and `percent` is set; neither: as much as there is room for."""

    gib: float | None = None
    percent: float | None = None
    """Of the device's total memory."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The device's memory in bytes, once the dense weights and the KV cache are in place."""

    total_bytes: int
    free_bytes: int
    workspace_bytes: int
    """What a step allocates while it runs, measured."""
    is_host: bool = False
    """Whether this is the CPU's memory, from which experts are computed without slots: `auto` takes none of it."""


@dataclass(frozen=True, slots=True)
class SlotNeeds:
    """The sizes that slots need."""

    slot_bytes: int
    num_streaming: int
    """The number of streaming slots, which the budget does not include."""

    @property
    def allocated_bytes(self) -> int:
        """The bytes of one slot as the allocator rounds them up."""
        return _allocated(self.slot_bytes)


def parse_budget(text: str) -> Budget:
    """Reads `auto`, a number of GiB such as `8` or `8.5`, or a share of the device's memory such as `30%`.

    Raises:
        ValueError: It is none of these, or a share above 100%.
    """
    if text == "auto":
        return Budget()
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is neither auto, nor GiB such as 8.5, nor a share of the device's memory as in 30%")
    number = float(match[1])
    if not match[2]:
        return Budget(gib=number)
    if number > 100:
        raise ValueError(f"{text!r} is more than the device's memory")
    return Budget(percent=number)


def budget_bytes(budget: Budget, memory: DeviceMemory, needs: SlotNeeds) -> int:
    """Returns the bytes that resident slots may take.

    Raises:
        FlagError: The budget is more than there is room for, or above 0 and less than one expert.
    """
    room = room_bytes(memory, needs)
    if budget.gib is None and budget.percent is None:
        return 0 if memory.is_host else room
    if budget.percent is None:
        assert budget.gib is not None
        wanted, asked = round(budget.gib * _GIB), f"{budget.gib:g}"
    else:
        wanted, asked = round(memory.total_bytes * budget.percent / 100), f"{budget.percent:g}%"
    if wanted > memory.total_bytes:
        raise FlagError(f"{_FLAG} {asked}: the device has {_gib(memory.total_bytes)}")
    if wanted > room:
        left = f"{_gib(room)} of the device's {_gib(memory.total_bytes)} are left for resident experts"
        raise FlagError(f"{_FLAG} {asked}: asks for {_gib(wanted)}, and {left}; ask for less, or for auto")
    if 0 < wanted < needs.allocated_bytes:
        least = _gib(needs.allocated_bytes)
        raise FlagError(f"{_FLAG} {asked}: one expert takes {least}; ask for more, or for 0 to keep none resident")
    return wanted


def room_bytes(memory: DeviceMemory, needs: SlotNeeds) -> int:
    """Returns what is free after a step's workspace, the streaming slots and the reserve; at least 0."""
    taken = memory.workspace_bytes + needs.num_streaming * needs.allocated_bytes + RESERVE_BYTES
    return max(0, memory.free_bytes - taken)


def slots_for(budget_bytes: int, needs: SlotNeeds, num_experts: int) -> int:
    """Returns how many resident slots fit a budget; at most one for each expert."""
    return min(num_experts, budget_bytes // needs.allocated_bytes)


def _allocated(num_bytes: int) -> int:
    if num_bytes <= _SMALL_BYTES:
        return _round_up(num_bytes, _QUANTUM_BYTES)
    if num_bytes < _LARGE_BYTES:
        return _SHARED_BYTES // (_SHARED_BYTES // num_bytes)
    return _round_up(num_bytes, _GRANULE_BYTES)


def _round_up(number: int, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB / 100 else f"{num_bytes / 2**20:.2f} MiB"
