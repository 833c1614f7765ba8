"""What computes experts. A kernel sees one layer's weights and rows; it knows nothing of messages or queues."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch.nn import functional

Activation = Callable[[torch.Tensor], torch.Tensor]


class UnknownActivationError(ValueError):
    """No kernel computes the model's activation."""


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One expert's matrices, views of the checkpoint's memory map."""

    gate: torch.Tensor | None
    """[intermediate, hidden]; None where the expert is not gated."""
    up: torch.Tensor
    """[intermediate, hidden]"""
    down: torch.Tensor
    """[hidden, intermediate]"""


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
    """Computes one layer. Not safe to be called from two threads at a time."""

    name: str
    num_threads: int

    def run(
        self,
        experts: Sequence[ExpertWeights],
        activation: Activation,
        hidden: torch.Tensor,
        assignments: Assignments,
    ) -> torch.Tensor:
        """Sums routing weight x expert(row) over each row's experts.

        Args:
            experts: The layer's experts, by id.
            activation: The function between an expert's projections.
            hidden: [rows, hidden] in bfloat16 or float32.
            assignments: Which rows go where.

        Returns:
            [rows, hidden] in hidden's dtype, summed in float32; 0 where a row has no expert here.
        """
        ...


class PyTorchKernel:
    """PyTorch's matrix products. Runs on every CPU."""

    name = "pytorch"

    def __init__(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.num_threads = num_threads

    def run(
        self,
        experts: Sequence[ExpertWeights],
        activation: Activation,
        hidden: torch.Tensor,
        assignments: Assignments,
    ) -> torch.Tensor:
        """See Kernel.run."""
        total = torch.zeros(hidden.shape, dtype=torch.float32)
        starts = assignments.starts
        for position, expert in enumerate(assignments.experts):
            part = slice(starts[position], starts[position + 1])
            rows = assignments.rows[part]
            output = _expert_forward(experts[expert], activation, hidden.index_select(0, rows))
            total.index_add_(0, rows, output.to(torch.float32) * assignments.weights[part, None])
        return total.to(hidden.dtype)


def _expert_forward(expert: ExpertWeights, activation: Activation, rows: torch.Tensor) -> torch.Tensor:
    """[rows, hidden] -> [rows, hidden]. Rows and weights of different dtypes meet in float32."""

    def project(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if rows.dtype == weight.dtype:
            return functional.linear(rows, weight)
        return functional.linear(rows.to(torch.float32), weight.to(torch.float32)).to(rows.dtype)

    inner = project(rows, expert.up)
    inner = activation(inner) if expert.gate is None else activation(project(rows, expert.gate)) * inner
    return project(inner, expert.down)


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
