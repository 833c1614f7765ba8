"""Measures the memory of the device: in total, free, and at the peak of a step."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fiddler import host_memory
from fiddler.checkpoint import Checkpoint, CheckpointLayer
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.checkpoint.views import MatrixView, WeightView
from fiddler.coding import dequantize_bytes
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.errors import FlagError
from gpu_service.gpu_experts.grouped import MAX_BYTES, MAX_EXPERT_BYTES, MAX_ROWS
from gpu_service.gpu_experts.memory_budget import DeviceMemory
from gpu_service.model_runner.dense.formats import PLAIN, DensePlan
from gpu_service.model_runner.dense.sizes import kept_bytes
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.moe.no_experts import NoExperts

_SCORES_SHARE = 8
"""Scores of a step may take one part in so many of the device's memory."""


def measure(model: Model, checkpoint: Checkpoint, max_tokens: int) -> DeviceMemory:
    """The device's memory once the dense weights and the KV cache are allocated.

    Args:
        model: Has computed a token, so that the KV cache is allocated.
        checkpoint: Its experts.
        max_tokens: The most tokens of a step.
    """
    if model.device.type == "cpu":
        memory = host_memory.measure()
        # a step on the CPU needs little memory in comparison
        return DeviceMemory(memory.total_bytes, memory.free_bytes, 0, is_host=True)
    k, dtype = model.num_experts_per_token, model.dtype
    workspace_bytes = _workspace_bytes(model, max_tokens) + max(
        experts_workspace_bytes(checkpoint.layers, experts_per_token=k, num_tokens=max_tokens, dtype=dtype),
        grouped_workspace_bytes(checkpoint.layers, experts_per_token=k, num_rows=MAX_ROWS, dtype=dtype),
    )
    torch.cuda.empty_cache()
    free_bytes, total_bytes = torch.cuda.mem_get_info(model.device)
    return DeviceMemory(total_bytes, free_bytes, workspace_bytes)


def check_dense_weights(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, plan: DensePlan = PLAIN
) -> None:
    """Checks that the host's memory holds dense weights that are converted; others stay in the checkpoint's pages.

    Args:
        checkpoint: The checkpoint.
        device: What is computed on.
        dtype: What plain weights are converted to.
        plan: Which are kept in codes.

    Raises:
        FlagError: It does not.
    """
    stored = checkpoint.expert_dtype  # stands for the plain dense weights', as elsewhere
    converted = [
        tensor
        for tensor in checkpoint.dense_tensors
        if plan.codes_in or dtype is not stored or not isinstance(tensor, StoredTensor)
    ]
    num_bytes = sum(kept_bytes(tensor, dtype, plan) for tensor in converted)  # all may be weights of linear layers
    if device.type == "cpu" and (shortage := host_memory.shortage(num_bytes)):
        coded = sorted({tensor.dtype for tensor in converted if not isinstance(tensor, StoredTensor)})
        source = " and ".join(coded) or str(stored).removeprefix("torch.")
        name = str(dtype).removeprefix("torch.")
        raise FlagError(f"--dtype: dense weights in {name}, converted from {source}, {shortage}; raise the limit")


def check_kv_cache(budget: KvBudget, device: torch.device) -> None:
    """Checks that the host's memory holds the KV cache, which the system gives out before it is there.

    Raises:
        FlagError: It does not.
    """
    if device.type == "cpu" and (shortage := host_memory.shortage(budget.num_bytes)):
        raise FlagError(f"--kv-memory: keys and values {shortage}; ask for less, or for auto")


def experts_workspace_bytes(
    layers: Sequence[CheckpointLayer], *, experts_per_token: int, num_tokens: int, dtype: torch.dtype
) -> int:
    """Bytes that gpu_experts/compute.py needs, in addition to the weights, for the experts of one layer.

    Many rows are computed by one expert at a time, and one matrix of it is decoded or converted at a time. It is
    assumed to have at most twice its even share of the rows; more are held by the reserve, and if that is too small,
    slots are evicted for them.

    Args:
        layers: The MoE layers; the largest counts.
        experts_per_token: How many experts a token is routed to; 0 if unknown.
        num_tokens: The tokens of a step.
        dtype: Of the hidden rows.
    """
    most = 0
    value_bytes = dtype.itemsize
    for layer in layers:
        share = 2 * num_tokens * max(1, experts_per_token) / layer.num_experts
        rows = min(num_tokens, math.ceil(share))
        # up, gate, the activated gate and their product; the row, the expert's output, and that in float32, twice
        expert = rows * (4 * layer.intermediate_size * value_bytes + layer.hidden_size * (2 * value_bytes + 8))
        sums = num_tokens * layer.hidden_size * 4  # in float32
        most = max(most, expert + sums + _largest_scratch(layer, dtype))
    return most


def grouped_workspace_bytes(
    layers: Sequence[CheckpointLayer], *, experts_per_token: int, num_rows: int, dtype: torch.dtype
) -> int:
    """Bytes that gpu_experts/grouped.py needs for the resident experts of one layer, all of which may be chosen.

    Args:
        layers: The MoE layers; the largest counts.
        experts_per_token: How many experts a token is routed to; 0 if unknown.
        num_rows: The most rows of a decode step.
        dtype: Of the hidden rows.
    """
    most = 0
    for layer in layers:
        views = layer.experts[0].views.values()
        own = sum(sum(view.plane_bytes) + _scratch(view, dtype) for view in views)
        chosen = min(layer.num_experts, min(num_rows, MAX_ROWS) * max(1, experts_per_token))
        most = max(most, own if own > MAX_EXPERT_BYTES else min(MAX_BYTES, chosen * own))
    return most


def _largest_scratch(layer: CheckpointLayer, dtype: torch.dtype) -> int:
    """Bytes of the largest matrix in the form that it is computed in, if it is stored in another."""
    # all experts of a layer are of one shape
    return max(_scratch(view, dtype) for view in layer.experts[0].views.values())


def _scratch(view: MatrixView, dtype: torch.dtype) -> int:
    if not isinstance(view, WeightView):
        return dequantize_bytes(view.shape, dtype)
    return 0 if view.dtype is dtype else math.prod(view.shape) * torch.float32.itemsize


def _workspace_bytes(model: Model, max_tokens: int) -> int:
    """The peak of the largest step without experts: a whole chunk at the end of the longest context."""
    length = min(model.max_context, model.cache.max_length)
    tokens = min(max_tokens, length) if model.cache.is_divisible else length
    positions = torch.arange(length - tokens, length)[None]
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    with model.dispatcher.with_backend(NoExperts()), torch.inference_mode():
        model.forward(torch.zeros(1, tokens, dtype=torch.int64), positions, first_row=0, wants=Logits.LAST)
    torch.cuda.synchronize(model.device)
    return torch.cuda.max_memory_allocated(model.device) - before


def free_bytes(device: torch.device) -> int:
    """Free memory of a device, for the KV cache."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_memory.measure().free_bytes


def most_scored_tokens(model: Model) -> int | None:
    """Tokens whose attention scores take an eighth of the GPU's memory at most; None: no scores are held there."""
    if model.device.type == "cpu" or not model.score_bytes:
        return None
    _, total_bytes = torch.cuda.mem_get_info(model.device)
    return total_bytes // _SCORES_SHARE // model.score_bytes


@contextmanager
def out_of_memory_reported(device: torch.device, purpose: str) -> Iterator[None]:
    """Turns PyTorch's error for exhausted memory into a user's error.

    Args:
        device: The device whose memory is used.
        purpose: What the memory is for, such as "the model".

    Raises:
        FlagError: The device has too little memory.
    """
    try:
        yield
    except RuntimeError as error:
        # for the host's memory PyTorch raises a plain RuntimeError
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise FlagError(f"--device: {device.type} has too little memory for {purpose}: {error}") from error
