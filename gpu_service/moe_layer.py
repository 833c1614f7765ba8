"""What stands in a model where its experts were: sends rows where the plan says and joins what comes back."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gpu_service import planner


class PendingOutput(Protocol):
    """Rows that are being computed elsewhere."""

    def join(self) -> torch.Tensor:
        """Waits for the weighted partial sums, [rows, hidden] on the CPU, in the dtype of the rows that were sent."""
        ...


class RemoteExperts(Protocol):
    """What computes experts that are not on the GPU."""

    def submit(
        self, layer: int, hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> PendingOutput:
        """Sends one layer's rows and returns at once.

        Args:
            layer: Index into the checkpoint's MoE layers.
            hidden: [rows, hidden] on the CPU.
            expert_ids: [rows, k] int32 on the CPU; -1 where the expert is computed here.
            routing_weights: [rows, k] float32 on the CPU.
        """
        ...


class SelectionCounts:
    """How often each expert of each layer was chosen, counted in arrays and read at scrape time."""

    def __init__(self, num_experts: Sequence[int]) -> None:
        self._counts = [np.zeros(count, dtype=np.int64) for count in num_experts]

    def add(self, layer: int, counts: npt.NDArray[np.int64]) -> None:
        """Adds one batch's [experts] counts."""
        self._counts[layer] += counts

    def clear(self) -> None:
        """Forgets everything."""
        for counts in self._counts:
            counts.fill(0)

    def read(self) -> list[list[int]]:
        """Totals by layer and expert."""
        return [counts.tolist() for counts in self._counts]


class HostStaging:
    """Brings a layer's tensors to the CPU with one wait.

    On CUDA they are copied into pinned memory without waiting for each, and the stream is waited for once: the one
    device-to-host synchronisation of a MoE layer. On the CPU they are there already.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned: dict[str, torch.Tensor] = {}

    def to_host(self, **tensors: torch.Tensor) -> list[torch.Tensor]:
        """Copies tensors to the CPU. What is returned is valid until the next call."""
        if self._device.type == "cpu":
            return list(tensors.values())
        copies = [self._buffer(name, tensor).copy_(tensor, non_blocking=True) for name, tensor in tensors.items()]
        torch.cuda.current_stream(self._device).synchronize()
        return copies

    def _buffer(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Pinned memory of the tensor's shape, kept between calls since pinning is slow."""
        buffer = self._pinned.get(name)
        if buffer is None or buffer.numel() < tensor.numel() or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=True)
            self._pinned[name] = buffer
        return buffer[: tensor.numel()].view(tensor.shape)


class MoeLayer(nn.Module):
    """Has the signature of transformers' experts classes and no parameters, so that loading reads no expert.

    `connect` gives it what it needs once the model is built; transformers builds it from the model's configuration.
    """

    def __init__(self, config: Any, *_: Any, **__: Any) -> None:
        super().__init__()
        self._layer = -1
        self._num_experts = 0
        self._remote: RemoteExperts | None = None
        self._counts: SelectionCounts | None = None
        self._staging: HostStaging | None = None

    def connect(
        self, layer: int, num_experts: int, remote: RemoteExperts, counts: SelectionCounts, staging: HostStaging
    ) -> None:
        """Says which MoE layer this is and who computes for it."""
        self._layer = layer
        self._num_experts = num_experts
        self._remote = remote
        self._counts = counts
        self._staging = staging

    def forward(self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """Sums routing weight x expert(row) over each row's experts.

        Args:
            hidden: [..., hidden].
            top_k_index: [rows, k] expert ids.
            top_k_weights: [rows, k] routing weights.
        """
        assert self._remote is not None, "connect() comes before forward()"
        assert self._counts is not None
        assert self._staging is not None
        rows, ids, weights = self._staging.to_host(
            rows=hidden.reshape(-1, hidden.shape[-1]),
            ids=top_k_index.to(torch.int32),
            weights=top_k_weights.to(torch.float32),
        )
        # on the CPU, since counting on a GPU waits for it once more
        counts = np.bincount(ids.numpy().reshape(-1), minlength=self._num_experts)
        plan = planner.plan(counts.tolist())
        # The slowest side first. What the plan keeps on the GPU is computed between submit and join.
        pending = self._remote.submit(self._layer, rows, ids, weights)
        self._counts.add(self._layer, counts)
        assert not plan.resident, "no expert is on the GPU"
        assert not plan.streamed, "no expert can be copied to the GPU"
        return pending.join().to(hidden.device).view(hidden.shape)
