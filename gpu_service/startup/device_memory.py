"""Measures the memory of the device: what there is, what is free, and what a step takes while it runs."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fiddler import host_memory
from fiddler.checkpoint import Checkpoint, CheckpointLayer
from gpu_service.errors import FlagError
from gpu_service.gpu_experts.memory_budget import DeviceMemory
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model


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
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> _Zeros:
        return _Zeros(torch.zeros_like(hidden))


def measure(model: Model, checkpoint: Checkpoint, max_tokens: int) -> DeviceMemory:
    """The device's memory once the dense weights, and keys and values, are in place.

    Args:
        model: Has computed a token, so that the memory of keys and values is taken.
        checkpoint: Its experts.
        max_tokens: The most tokens of a step.
    """
    if model.device.type == "cpu":
        memory = host_memory.measure()
        # what a step takes on the CPU is small beside it
        return DeviceMemory(memory.total_bytes, memory.free_bytes, 0, is_host=True)
    workspace_bytes = _workspace_bytes(model, max_tokens)
    workspace_bytes += experts_workspace_bytes(
        checkpoint.layers, model.num_experts_per_token, max_tokens, model.dtype.itemsize
    )
    torch.cuda.empty_cache()
    free_bytes, total_bytes = torch.cuda.mem_get_info(model.device)
    return DeviceMemory(total_bytes, free_bytes, workspace_bytes)


def experts_workspace_bytes(
    layers: Sequence[CheckpointLayer], experts_per_token: int, num_tokens: int, value_bytes: int
) -> int:
    """What computing the experts of so many tokens on the device takes beside their weights: see device_experts.py.

    One expert is computed at a time, and is taken to have twice its even share of the rows. Where it has more, the
    reserve holds them, and if that does not, slots are given up for them.
    """
    most = 0
    for layer in layers:
        share = 2 * num_tokens * max(1, experts_per_token) / layer.num_experts
        rows = min(num_tokens, math.ceil(share))
        # up, gate, the activated gate and their product; the row, the expert's output, and that in float32, twice
        expert = rows * (4 * layer.intermediate_size * value_bytes + layer.hidden_size * (2 * value_bytes + 8))
        most = max(most, expert + num_tokens * layer.hidden_size * 4)  # the float32 sums
    return most


def _workspace_bytes(model: Model, max_tokens: int) -> int:
    """What the largest step takes at its peak, experts aside: a whole chunk at the end of the longest context."""
    length = min(model.max_context, model.cache.max_length)
    tokens = min(max_tokens, length) if model.cache.is_divisible else length
    positions = torch.arange(length - tokens, length)[None]
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    with model.dispatcher.with_backend(_NoExperts()), torch.inference_mode():
        model.forward(torch.zeros(1, tokens, dtype=torch.int64), positions, first_row=0, wants=Logits.LAST)
    torch.cuda.synchronize(model.device)
    return torch.cuda.max_memory_allocated(model.device) - before


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, where keys and values are held."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_memory.measure().free_bytes


@contextmanager
def out_of_memory_reported(device: torch.device, purpose: str) -> Iterator[None]:
    """Turns PyTorch's error of a device whose memory is exhausted into the user's.

    Args:
        device: Whose memory is taken.
        purpose: What for, such as "the model".

    Raises:
        FlagError: The device has too little memory.
    """
    try:
        yield
    except RuntimeError as error:
        # for the host's memory PyTorch raises no error of its own type
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise FlagError(f"--device: {device.type} has too little memory for {purpose}: {error}") from error


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one.

    Raises:
        FlagError: CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise FlagError("--device: cuda was asked for, and PyTorch finds no CUDA device")
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
