"""Measures the memory of the device: what there is, what is free, and what a step takes while it runs."""

from dataclasses import dataclass
from pathlib import Path

import torch

from gpu_service.batch import Logits
from gpu_service.memory_budget import DeviceMemory
from gpu_service.model import Model

_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class _Zeros:
    """An answer of the right shape."""

    output: torch.Tensor
    compute_seconds: float | None = None

    def join(self) -> torch.Tensor:
        return self.output


class _NoExperts:
    """RemoteExperts that compute nothing, so that measuring a long prompt takes no longer than its dense part."""

    available = True

    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> _Zeros:
        return _Zeros(torch.zeros_like(hidden))


def measure(model: Model, prefill_chunk: int) -> DeviceMemory:
    """The device's memory once the dense weights, and keys and values, are in place.

    Args:
        model: Has computed a token, so that the memory of keys and values is taken.
        prefill_chunk: The most tokens of a step.
    """
    if model.device.type == "cpu":
        return host_memory()
    workspace_bytes = _workspace_bytes(model, prefill_chunk)
    torch.cuda.empty_cache()
    free_bytes, total_bytes = torch.cuda.mem_get_info(model.device)
    return DeviceMemory(total_bytes, free_bytes, workspace_bytes)


def host_memory(meminfo: Path = _MEMINFO) -> DeviceMemory:
    """This machine's memory, as the kernel tells it. What a step takes on the CPU is small beside it."""
    lines = (line.split() for line in meminfo.read_text().splitlines())
    kibibytes = {fields[0].rstrip(":"): int(fields[1]) for fields in lines if len(fields) > 1}
    return DeviceMemory(kibibytes["MemTotal"] * 1024, kibibytes["MemAvailable"] * 1024, 0, is_host=True)


def _workspace_bytes(model: Model, prefill_chunk: int) -> int:
    """What the largest step takes at its peak: a whole chunk at the end of the longest context."""
    length = min(model.max_context, model.cache.max_length)
    tokens = min(prefill_chunk, length) if model.cache.is_divisible else length
    positions = torch.arange(length - tokens, length)[None]
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    with model.dispatcher.instead(_NoExperts()), torch.inference_mode():
        model.forward(torch.zeros(1, tokens, dtype=torch.int64), positions, 0, Logits.LAST)
    torch.cuda.synchronize(model.device)
    return torch.cuda.max_memory_allocated(model.device) - before
