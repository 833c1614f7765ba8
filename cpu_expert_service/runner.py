"""Computes one layer's message at a time. Knows experts and rows; messages and statuses are service.py's."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import torch

from cpu_expert_service.kernel import Activation, Assignments, ExpertWeights, Kernel, activation_function
from fiddler.checkpoint import Checkpoint


class ExpiredError(Exception):
    """The caller's time ran out before the computation began."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one message came to."""

    output: torch.Tensor
    """[rows, hidden] in the dtype of the hidden rows."""
    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True, slots=True)
class _Layer:
    experts: tuple[ExpertWeights, ...]
    activation: Activation


class Runner:
    """The checkpoint's experts and the kernel that computes them.

    A message is computed in the thread that brings it, since handing it to another costs more than a small expert
    does; a lock lets one through at a time, because one message already uses every thread of the kernel.
    """

    def __init__(self, checkpoint: Checkpoint, kernel: Kernel) -> None:
        """Views the weights where they lie; reads none.

        Raises:
            UnknownActivationError: No kernel has the model's activation.
        """
        self.kernel = kernel
        self._lock = threading.Lock()
        self._layers = tuple(
            _Layer(
                tuple(
                    ExpertWeights(
                        gate=checkpoint.tensor(expert.gate) if expert.gate else None,
                        up=checkpoint.tensor(expert.up),
                        down=checkpoint.tensor(expert.down),
                    )
                    for expert in layer.experts
                ),
                activation_function(layer.activation),
            )
            for layer in checkpoint.layers
        )

    def run(
        self,
        layer: int,
        hidden: torch.Tensor,
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
            deadline: time.monotonic() after which the answer is of no use.

        Raises:
            ExpiredError: The deadline passed while others were computed.
        """
        arrived = time.monotonic()
        with self._lock:
            started = time.monotonic()
            if deadline is not None and started >= deadline:
                raise ExpiredError
            weights = self._layers[layer]
            output = self.kernel.run(weights.experts, weights.activation, hidden, assign(expert_ids, routing_weights))
            return Result(output, started - arrived, time.monotonic() - started)


def assign(expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> Assignments:
    """Groups rows by expert.

    Args:
        expert_ids: [rows, k] int32; -1 is left out.
        routing_weights: [rows, k] float32.
    """
    # numpy, whose operations cost a third of torch's on a handful of numbers
    flat = expert_ids.numpy().reshape(-1)
    order = flat.argsort(kind="stable")
    order = order[np.searchsorted(flat, 0, sorter=order) :]
    experts, starts = np.unique(flat[order], return_index=True)
    weights = routing_weights.numpy().reshape(-1)[order]
    return Assignments(
        experts.tolist(),
        [*starts.tolist(), len(order)],
        torch.from_numpy(order // expert_ids.shape[1]),
        torch.from_numpy(weights),
    )
