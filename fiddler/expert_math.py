"""What an expert computes, in PyTorch on any device: its weights, a layer's weights, and which rows go to which expert.

Both services use it: the CPU expert service if it has no faster kernel, the GPU service for the experts resident on its
device. It reads no file and does not decide where an expert is computed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.moe_config import Activation
from fiddler.checkpoint.views import CheckpointLayer, Expert
from fiddler.coding import CodedTensor, dequantize
from fiddler.errors import UserError

Function = Callable[[torch.Tensor], torch.Tensor]
Combination = Callable[[torch.Tensor | None, torch.Tensor], torch.Tensor]
"""What an expert computes between its projections, from gate (or None) and up, both [rows, intermediate]."""


Matrix = torch.Tensor | CodedTensor
"""A weight matrix [outputs, inputs], plain or coded."""


class UnknownActivationError(UserError):
    """The model's activation is not supported."""


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One expert's matrices, on any device, and its biases if it has any."""

    gate: Matrix | None
    """[intermediate, hidden]; None if the expert is not gated."""
    up: Matrix
    """[intermediate, hidden]"""
    down: Matrix
    """[hidden, intermediate]"""
    gate_bias: torch.Tensor | None = None
    """[intermediate]"""
    up_bias: torch.Tensor | None = None
    """[intermediate]"""
    down_bias: torch.Tensor | None = None
    """[hidden]"""
    factor: Matrix | None = None
    """[intermediate, hidden]; its output is multiplied by that of up. OpenMoE's experts have one."""

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors that this expert has, each with its name above. Use it instead of listing the names again.

        A coded matrix has several: its codes have the matrix's name, the others names such as "gate.scales".
        """
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, CodedTensor):
                planes = value.planes()
                yield name, planes.pop("codes")
                yield from ((f"{name}.{plane}", tensor) for plane, tensor in planes.items())
            elif value is not None:
                yield name, value

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> "ExpertWeights":
        """The same expert with some of its tensors elsewhere, by the names that `tensors` gives."""
        changes: dict[str, Matrix] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, CodedTensor):
                planes = {plane: tensors.get(f"{name}.{plane}", kept) for plane, kept in value.planes().items()}
                changes[name] = value.with_planes({**planes, "codes": tensors.get(name, value.codes)})
            elif name in tensors:
                changes[name] = tensors[name]
        return replace(self, **changes)  # type: ignore[arg-type] # biases are plain

    def matrices(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The same without the biases."""
        return ((name, tensor) for name, tensor in self.tensors() if tensor.dim() == 2)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, biases included."""
        return sum(tensor.nbytes for _, tensor in self.tensors())


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The experts of one layer, by id. All are of one shape, dtype and layout."""

    experts: tuple[ExpertWeights, ...]
    activation: str
    """What transformers calls the function between an expert's projections, or the name of a clamped one."""
    alpha: float = 1.702
    """Of the activation clamped_swiglu."""
    limit: float = 7.0
    """Of the clamped activations."""


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


def layer_weights(checkpoint: Checkpoint, layer: CheckpointLayer) -> LayerWeights:
    """Views of a layer's matrices in the checkpoint's memory map."""
    experts = tuple(expert_weights(checkpoint, expert) for expert in layer.experts)
    return LayerWeights(experts, layer.activation.name, alpha=layer.activation.alpha, limit=layer.activation.limit)


def expert_weights(checkpoint: Checkpoint, expert: Expert) -> ExpertWeights:
    """One expert's matrices: views of the checkpoint's memory map, or repacked copies if its format demands it."""
    tensors: dict[str, Any] = {}
    for name, view in expert.views.items():
        tensors[name] = checkpoint.tensor(view)[0] if name.endswith("_bias") else checkpoint.matrix(view)
    return ExpertWeights(gate=tensors.pop("gate", None), **tensors)


def assign(expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> Assignments:
    """Groups rows by expert, on the CPU.

    Args:
        expert_ids: [rows, k] int32; -1 is left out.
        routing_weights: [rows, k] float32.
    """
    # numpy, whose operations take a third of the time of torch's on a handful of numbers
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


def expert_forward(expert: ExpertWeights, combine: Combination, rows: torch.Tensor) -> torch.Tensor:
    """[rows, hidden] -> [rows, hidden]. If rows and weights differ in dtype, both are converted to float32."""

    def project(rows: torch.Tensor, weight: Matrix, bias: torch.Tensor | None) -> torch.Tensor:
        if isinstance(weight, CodedTensor):  # one at a time: the GPU service's memory holds one decoded matrix
            weight = dequantize(weight, rows.dtype if bias is None else torch.promote_types(rows.dtype, bias.dtype))
        if rows.dtype == weight.dtype and (bias is None or bias.dtype == rows.dtype):
            return functional.linear(rows, weight, bias)
        bias = None if bias is None else bias.to(torch.float32)
        return functional.linear(rows.to(torch.float32), weight.to(torch.float32), bias).to(rows.dtype)

    up = project(rows, expert.up, expert.up_bias)
    if expert.factor is not None:
        up = up * project(rows, expert.factor, None)
    gate = None if expert.gate is None else project(rows, expert.gate, expert.gate_bias)
    return project(combine(gate, up), expert.down, expert.down_bias)


def layer_forward(
    layer: LayerWeights,
    combine: Combination,
    hidden: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
) -> torch.Tensor:
    """[rows, hidden] -> [rows, hidden], the sum of routing weight x expert(row), taken in float32. On the CPU.

    Args:
        layer: The experts.
        combine: The combination of the layer's activation.
        hidden: [rows, hidden].
        expert_ids: [rows, k] int32; -1 is left out.
        routing_weights: [rows, k] float32.
    """
    total = torch.zeros(hidden.shape, dtype=torch.float32)
    assignments = assign(expert_ids, routing_weights)
    starts = assignments.starts
    for position, expert in enumerate(assignments.experts):
        part = slice(starts[position], starts[position + 1])
        rows = assignments.rows[part]
        output = expert_forward(layer.experts[expert], combine, hidden.index_select(0, rows))
        total.index_add_(0, rows, output.to(torch.float32) * assignments.weights[part, None])
    return total.to(hidden.dtype)


def combination(activation: str, alpha: float = 1.702, limit: float = 7.0) -> Combination:
    """What experts with this activation compute between their projections.

    Args:
        activation: What transformers calls it, or one of `CLAMPED`.
        alpha: Of clamped_swiglu.
        limit: Of the clamped ones.

    Raises:
        UnknownActivationError: The activation is not supported.
    """
    if activation == "clamped_swiglu":
        return partial(_clamped_swiglu, alpha=alpha, limit=limit)
    if activation == "clamped_silu":
        return partial(_clamped_silu, limit=limit)
    activate = activation_function(activation)
    return lambda gate, up: activate(up) if gate is None else activate(gate) * up


def _clamped_swiglu(gate: torch.Tensor | None, up: torch.Tensor, *, alpha: float, limit: float) -> torch.Tensor:
    """gpt-oss's activation."""
    assert gate is not None
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * (gate * torch.sigmoid(alpha * gate))


def _clamped_silu(gate: torch.Tensor | None, up: torch.Tensor, limit: float) -> torch.Tensor:
    """DeepSeek-V4's activation."""
    assert gate is not None
    return functional.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)


def _relu_squared(values: torch.Tensor) -> torch.Tensor:
    return functional.relu(values).square()


CLAMPED = ("clamped_silu", "clamped_swiglu")
"""Activations that are functions of gate and up together."""

_GELU_TANH = partial(functional.gelu, approximate="tanh")
_ACTIVATIONS: dict[str, Function] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
    "relu": functional.relu,
    "relu2": _relu_squared,
}


def layer_combination(activation: Activation) -> Combination:
    """The combination of a checkpoint's activation."""
    return combination(activation.name, activation.alpha, activation.limit)


def activation_function(name: str) -> Function:
    """The activation that transformers calls by this name.

    Raises:
        UnknownActivationError: The activation is not supported.
    """
    if name not in _ACTIVATIONS:
        known = ", ".join(sorted([*_ACTIVATIONS, *CLAMPED]))
        raise UnknownActivationError(f"activation {name!r} is not supported; known: {known}")
    return _ACTIVATIONS[name]
