"""What sizes alone tell of a model on a machine: memory, resident experts, and the speed that reading allows.

The dry run asks it about a checkpoint on this machine, and tools/will_it_run.py about published models on others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from gpu_service.engine.kv_budget import AUTO_SHARE, GIB
from gpu_service.gpu_experts.memory_budget import Budget, DeviceMemory, SlotNeeds, budget_bytes, slots_for

EXPERT_SERVICE_GIB = 2
"""What the CPU expert service takes beside the experts, with room for its messages."""
GPU_SERVICE_GIB = 4
"""What the GPU service takes beside dense weights: libraries, requests, and keys and values on the CPU."""

BYTES_PER_WEIGHT: Final = {"int8": 1.0, "int4": 0.5625}
"""Of the formats that fiddler.convert writes: int8 has a scale for each output, int4 one of two bytes for 32 inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of a model, in bytes."""

    dense_bytes: int
    """In the dtype of the computation."""
    expert_bytes: int
    """As stored."""
    bytes_per_token: int
    """Of the experts that one token is routed to."""
    num_experts: int
    """In all layers."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """How fast weights are read, in bytes per second."""

    host: float
    device: float | None = None
    """None without a GPU."""


def limits_gib(sizes: Sizes, *, on_cpu: bool) -> tuple[int, int]:
    """Memory that is enough for the CPU expert service and the GPU service, in GiB."""
    dense = math.ceil(sizes.dense_bytes / GIB) if on_cpu else 0
    return math.ceil(sizes.expert_bytes / GIB) + EXPERT_SERVICE_GIB, dense + GPU_SERVICE_GIB


def free_after_cache(free_bytes: int, dense_bytes: int, kv_memory: float | str) -> int:
    """A device's free memory once the dense weights and as many keys and values as may be are there."""
    free_bytes -= dense_bytes
    kept = AUTO_SHARE * free_bytes if kv_memory == "auto" else float(kv_memory) * GIB
    return max(0, free_bytes - int(kept))


def num_resident(sizes: Sizes, memory: DeviceMemory, needs: SlotNeeds, budget: Budget) -> int:
    """How many experts are resident on the device at least.

    Raises:
        FlagError: The budget asks for more than there is.
    """
    return slots_for(budget_bytes(budget, memory, needs), needs, sizes.num_experts)


def remote_bytes(sizes: Sizes, resident: int) -> float:
    """Bytes of experts that a token needs from the host's memory, if all experts are chosen equally often."""
    return sizes.bytes_per_token * (1 - resident / sizes.num_experts)


def seconds_per_token(sizes: Sizes, speeds: Speeds, resident: int = 0) -> float:
    """The shortest time for one token of one sequence: that of reading its weights."""
    if speeds.device is None:
        return (sizes.bytes_per_token + sizes.dense_bytes) / speeds.host
    remote = remote_bytes(sizes, resident)
    # both sides read at the same time, except for the dense weights
    return sizes.dense_bytes / speeds.device + max(
        (sizes.bytes_per_token - remote) / speeds.device, remote / speeds.host
    )


def rate_text(seconds: float, why: str) -> str:
    """The bound that so many seconds for a token set, for people."""
    rate = 1 / seconds
    text = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    return f"at most {text} tokens/s for one sequence: for each token {why}; the bandwidth was just measured"


def span_text(values: Sequence[int], text: Callable[[int], str]) -> str:
    """Ascending numbers as "A to B", or as "A" if there is one."""
    return text(values[0]) if len(values) == 1 else f"{text(values[0])} to {text(values[-1])}"
