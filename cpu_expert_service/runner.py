"""Computes one layer's message at a time. Knows experts and rows; service.py knows messages and statuses."""

import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from cpu_expert_service import metrics
from cpu_expert_service.kernel import Kernel
from cpu_expert_service.kernel_choice import calibrate, native_computation, native_kernel_of
from cpu_expert_service.ram import NotEnoughMemoryError, Progress, copy_layers
from fiddler import host_memory
from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import LayerWeights, layer_weights
from fiddler.kernels.segments.service import Native


class ExpiredError(Exception):
    """The caller's deadline passed before the computation began."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one message."""

    output: torch.Tensor
    """[rows, hidden] in the dtype of the hidden rows."""
    queue_seconds: float
    compute_seconds: float


class Runner:
    """The checkpoint's experts and the kernel that computes them.

    A message is computed in the thread that calls, since handing it to another costs more than a small expert does. A
    lock admits one at a time, because one message already uses every thread of the kernel.
    """

    def __init__(self, checkpoint: Checkpoint, kernel: Kernel, progress: Progress = lambda done, total: None) -> None:
        """Takes views of the weights in the checkpoint's memory map, and reads none but those that are repacked.

        Args:
            checkpoint: The checkpoint.
            kernel: What computes.
            progress: Called after every layer that was repacked.

        Raises:
            UnknownActivationError: The kernel does not have the model's activation.
            NotEnoughMemoryError: Experts are repacked, and the copies do not fit.
            UnsupportedDtypeError: Experts are repacked, and have contents that are not supported.
        """
        self.kernel = kernel
        self._lock = threading.Lock()
        native = native_kernel_of(kernel)
        self._turn = native.pool.turn if native else nullcontext
        """Segments compute beside this, on the same threads."""
        self._weights = _read(checkpoint, progress)
        self._layers = tuple(kernel.prepare(weights) for weights in self._weights)
        self.expert_bytes = tuple(weights.experts[0].nbytes for weights in self._weights)
        """By layer: bytes of one expert."""
        self._made_at = time.monotonic()
        self._busy: tuple[float, float | None] = 0.0, None  # seconds of messages that ended; when this one began

    @property
    def weights(self) -> tuple[LayerWeights, ...]:
        """By layer, as they are computed from."""
        return self._weights

    @property
    def idle_seconds(self) -> float:
        """Seconds since it was created in which it computed no message. Any thread may read it."""
        now, (busy_seconds, began) = time.monotonic(), self._busy
        return now - self._made_at - busy_seconds - (0.0 if began is None else max(0.0, now - began))

    def native(self) -> Native | None:
        """What the library computes without Python, once the weights are where they stay; None if that is nothing."""
        return native_computation(self.kernel, self._layers)

    def copy_to_ram(self, progress: Progress) -> None:
        """Copies the weights into this process's own memory and computes from the copies from now on.

        Raises:
            NotEnoughMemoryError: They do not fit.
        """
        with self._lock:
            native = native_kernel_of(self.kernel)
            self._weights = tuple(copy_layers(self._weights, native.pool if native else None, progress))
            self._layers = tuple(self.kernel.prepare(weights) for weights in self._weights)

    def calibrate(self, dtype: torch.dtype) -> None:
        """Measures the kernel on these weights. To be called before the first message."""
        with self._lock:
            calibrate(self.kernel, self._weights, dtype)

    def run(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        deadline: float | None = None,
    ) -> Result:
        """Computes one layer's partial sums.

        Args:
            layer: Index into the checkpoint's MoE layers.
            hidden: [rows, hidden].
            expert_ids: [rows, k] int32; -1 for an expert that is computed elsewhere.
            routing_weights: [rows, k] float32.
            deadline: time.monotonic() after which the answer is useless; None for no deadline.

        Raises:
            ExpiredError: The deadline passed before the computation began.
        """
        arrived = time.monotonic()
        with self._lock, self._turn():
            started = time.monotonic()
            if deadline is not None and started >= deadline:
                raise ExpiredError
            busy_seconds, _ = self._busy
            self._busy = busy_seconds, started
            try:
                output = self._layers[layer](hidden, expert_ids, routing_weights)
            finally:
                seconds = time.monotonic() - started
                self._busy = busy_seconds + seconds, None
            return Result(output, started - arrived, seconds)


def _read(checkpoint: Checkpoint, progress: Progress) -> tuple[LayerWeights, ...]:
    total_bytes = checkpoint.repacked_bytes
    if total_bytes and (shortage := host_memory.shortage(total_bytes)):
        raise NotEnoughMemoryError(
            f"{checkpoint.directory}: experts in {checkpoint.weight_format} are not stored as they are computed and "
            f"must be repacked into memory: the copies {shortage}; use a checkpoint in a format that docs/formats.md "
            "lists as computed in place"
        )
    layers: list[LayerWeights] = []
    for number, layer in enumerate(checkpoint.layers, start=1):
        layers.append(layer_weights(checkpoint, layer))
        if total_bytes:
            progress(total_bytes * number // len(checkpoint.layers), total_bytes)
    metrics.REPACKED_BYTES.set(total_bytes)
    return tuple(layers)
