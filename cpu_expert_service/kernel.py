"""What computes experts, and PyTorch's way of it. A kernel sees one layer's weights and rows, no messages or queues."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from cpu_expert_service.layer import ExpertWeights, LayerFunction, LayerWeights

Activation = Callable[[torch.Tensor], torch.Tensor]
_Combination = Callable[[torch.Tensor | None, torch.Tensor], torch.Tensor]


class UnknownActivationError(ValueError):
    """No kernel computes the model's activation."""


@dataclass(frozen=True, slots=True)
class Assignments:
    """Which rows go to which experts: the rows of experts[i] are rows[starts[i]:starts[i + 1]]."""

    experts: Sequence[int]
    """Distinct expert ids, ascending."""
    starts: Sequence[int]
    """len(experts) + 1 offsets into rows and weights, ascending from 0."""
    rows: torch.Tensor
    """[assignments] int64: indices into the hidden rows."""
    weights: torch.Tensor
    """[assignments] float32: the routing weight of each row in that expert."""


class Kernel(Protocol):
    """Computes layers. Not safe to be called from two threads at a time, whichever the layers."""

    name: str
    num_threads: int

    def prepare(self, layer: LayerWeights) -> LayerFunction:
        """Whatever can be done once for a layer, before its first message.

        Raises:
            UnknownActivationError: This kernel does not have the layer's activation.
        """
        ...


class PyTorchKernel:
    """PyTorch's matrix products. Runs on every CPU."""

    name = "pytorch"

    def __init__(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.num_threads = num_threads

    def prepare(self, layer: LayerWeights) -> LayerFunction:
        """See Kernel.prepare."""
        combine = _combination(layer)

        def compute(hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> torch.Tensor:
            total = torch.zeros(hidden.shape, dtype=torch.float32)
            assignments = assign(expert_ids, routing_weights)
            starts = assignments.starts
            for position, expert in enumerate(assignments.experts):
                part = slice(starts[position], starts[position + 1])
                rows = assignments.rows[part]
                output = _expert_forward(layer.experts[expert], combine, hidden.index_select(0, rows))
                total.index_add_(0, rows, output.to(torch.float32) * assignments.weights[part, None])
            return total.to(hidden.dtype)

        return compute


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


def _expert_forward(expert: ExpertWeights, combine: _Combination, rows: torch.Tensor) -> torch.Tensor:
    """[rows, hidden] -> [rows, hidden]. Rows and weights of different dtypes meet in float32."""

    def project(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if rows.dtype == weight.dtype and (bias is None or bias.dtype == rows.dtype):
            return functional.linear(rows, weight, bias)
        bias = None if bias is None else bias.to(torch.float32)
        return functional.linear(rows.to(torch.float32), weight.to(torch.float32), bias).to(rows.dtype)

    up = project(rows, expert.up, expert.up_bias)
    gate = None if expert.gate is None else project(rows, expert.gate, expert.gate_bias)
    return project(combine(gate, up), expert.down, expert.down_bias)


def _combination(layer: LayerWeights) -> _Combination:
    """What comes between the projections: of (gate or None, up)."""
    if layer.activation == "clamped_swiglu":
        return partial(_clamped_swiglu, alpha=layer.alpha, limit=layer.limit)
    activation = activation_function(layer.activation)
    return lambda gate, up: activation(up) if gate is None else activation(gate) * up


def _clamped_swiglu(gate: torch.Tensor | None, up: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """gpt-oss's activation."""
    assert gate is not None
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * (gate * torch.sigmoid(alpha * gate))


def _relu_squared(values: torch.Tensor) -> torch.Tensor:
    return functional.relu(values).square()


_GELU_TANH = partial(functional.gelu, approximate="tanh")
_ACTIVATIONS: dict[str, Activation] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
    "relu": functional.relu,
    "relu2": _relu_squared,
}


def activation_function(name: str) -> Activation:
    """The activation that transformers calls by this name.

    Raises:
        UnknownActivationError: No kernel has it.
    """
    if name not in _ACTIVATIONS:
        raise UnknownActivationError(f"activation {name!r} is not supported; known: {', '.join(sorted(_ACTIVATIONS))}")
    return _ACTIVATIONS[name]
