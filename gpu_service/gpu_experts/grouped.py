"""Computes all resident experts of a few rows at once, in as many kernels as one expert takes.

A launch costs a GPU's host some microseconds, which is longer than a small expert takes to compute: an expert after the
other leaves the GPU idle most of the time. So the experts' slots are copied next to each other, in one kernel, and each
projection is one batched product of every row with every expert that any of the rows uses. A product reads its weights
once, however many rows there are, so the rows that an expert was not chosen for cost nothing; they are not added up.

A large expert stays where it is, since copying it would take longer than the launches that this saves. Each has
products of its own, which write next to each other, so that what lies between them is computed for all at once.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fiddler.coding import CodedTensor, dequantize
from fiddler.expert_math import Combination, ExpertWeights, Matrix
from gpu_service.gpu_experts.slots import Holding
from gpu_service.gpu_experts.uploads import Uploads

MAX_ROWS = 16
"""Rows for which a product takes about as long as for one."""
MAX_EXPERT_BYTES = 16 * 2**20
"""Of an expert that is copied: a copy of so much takes about as long as the launches that it saves."""
MAX_BYTES = 512 * 2**20
"""Of the copies at one time."""
_WORD = torch.int64


def group_bytes(weights: ExpertWeights, dtype: torch.dtype) -> int:
    """Bytes that an expert takes while it is computed in a group: its copy, and its matrices as they are multiplied."""
    decoded = sum(math.prod(matrix.shape) * dtype.itemsize for matrix in _coded(weights))
    return weights.nbytes + decoded


class GroupedExperts:
    """Adds up the outputs of resident experts."""

    def __init__(self, combine: Combination, uploads: Uploads) -> None:
        """Computes nothing yet.

        Args:
            combine: What the experts compute between their projections.
            uploads: Copies to the device.
        """
        self._combine = combine
        self._uploads = uploads

    def sums(
        self,
        hidden: torch.Tensor,
        experts: dict[int, Holding],
        *,
        expert_ids: npt.NDArray[np.int32],
        routing_weights: npt.NDArray[np.float32],
    ) -> torch.Tensor:
        """Sums routing weight x expert(row) over each row's experts among those that are given.

        Args:
            hidden: [rows, hidden] on the device.
            experts: By expert id; at least one.
            expert_ids: [rows, k] on the CPU; the others in it are left out.
            routing_weights: [rows, k] on the CPU.

        Returns:
            [rows, hidden] float32 on the device.
        """
        total: torch.Tensor | None = None
        for group, is_apart in _groups(experts, hidden.dtype):
            held = [experts[each] for each in group]
            stacks = [_side_by_side([each]) for each in held] if is_apart else [_side_by_side(held)]
            outputs = _outputs(hidden, stacks, self._combine)
            entries = _entries(np.array(group), expert_ids, routing_weights)
            indices, starts, weights = self._uploads.to_device(*(torch.from_numpy(each) for each in entries))
            # reads only what was routed: in float16 an output that nobody asked for may be infinite
            part = functional.embedding_bag(
                indices, outputs.flatten(0, 1), starts, mode="sum", per_sample_weights=weights
            )
            total = part if total is None else total.add_(part)
        assert total is not None, "there is no expert to compute"
        return total


def _groups(experts: dict[int, Holding], dtype: torch.dtype) -> Iterator[tuple[list[int], bool]]:
    """Experts that are computed at once, in ascending order, and whether each of them stays where it is."""
    sizes = {expert: group_bytes(held.weights, dtype) for expert, held in sorted(experts.items())}
    if large := [expert for expert, own in sizes.items() if own > MAX_EXPERT_BYTES]:
        yield large, True
    group: list[int] = []
    num_bytes = 0
    for expert, own in sizes.items():
        if expert in large:
            continue
        alike = not group or _can_join(experts[group[0]].weights, experts[expert].weights)
        if group and (not alike or num_bytes + own > MAX_BYTES):
            yield group, False
            group, num_bytes = [], 0
        group.append(expert)
        num_bytes += own
    if group:
        yield group, False


def _can_join(first: ExpertWeights, other: ExpertWeights) -> bool:
    """Whether the codes of two experts can be decoded as if they were one matrix."""
    return all(
        one.multiplier == two.multiplier and one.shape[0] % one.coding.group_outputs == 0 and not one.first_output
        for one, two in zip(_coded(first), _coded(other), strict=True)
    )


def _coded(weights: ExpertWeights) -> Iterator[CodedTensor]:
    for matrix in (weights.gate, weights.up, weights.down, weights.factor):
        if isinstance(matrix, CodedTensor):
            yield matrix


def _side_by_side(held: Sequence[Holding]) -> ExpertWeights:
    """The experts next to each other, with all tensors in one copy; one expert alone stays where it is.

    Every tensor has one dimension more, [experts, ...]: of a coded matrix, codes and scales do, and its shape is still
    one expert's.
    """
    first = held[0]
    num_bytes = first.end
    if len(held) == 1:
        memory = first.slot.memory[None, :num_bytes]
    else:
        words = [each.slot.memory[:num_bytes].view(_WORD) for each in held]
        memory = torch.cat(words).view(len(held), -1).view(torch.uint8)
    tensors = {}
    for name, start, tensor in first.places():
        part = memory[:, start : start + tensor.nbytes].view(tensor.dtype)
        tensors[name] = part.view(len(held), *tensor.shape)
    return first.weights.with_tensors(tensors)


def _outputs(hidden: torch.Tensor, stacks: Sequence[ExpertWeights], combine: Combination) -> torch.Tensor:
    """[rows, hidden] and the weights of experts -> [experts, rows, hidden] float32.

    Args:
        hidden: [rows, hidden].
        stacks: What `_side_by_side` returns: all experts in one, or each in one of its own.
        combine: What is computed between the projections.
    """
    rows, one = hidden[None], stacks[0]
    joined = [_joined(weights) for weights in stacks]
    gate: torch.Tensor | None
    if joined[0] is not None:
        gate, up = _products(rows, joined).chunk(2, dim=-1)
    else:
        gate = None
        if one.gate is not None:
            gate = _products(rows, [each.gate for each in stacks], [each.gate_bias for each in stacks])
        up = _products(rows, [each.up for each in stacks], [each.up_bias for each in stacks])
    if one.factor is not None:
        up = up * _products(rows, [each.factor for each in stacks])
    downs = [each.down for each in stacks]
    return _products(combine(gate, up), downs, [each.down_bias for each in stacks], is_last=True)


def _products(
    rows: torch.Tensor,
    matrices: Sequence[Matrix | None],
    biases: Sequence[torch.Tensor | None] = (),
    *,
    is_last: bool = False,
) -> torch.Tensor:
    """One product for each matrix, next to each other: [experts, rows, outputs], in float32 if they are the last.

    Args:
        rows: [experts, rows, inputs], or [1, rows, inputs] for all experts.
        matrices: Of `ExpertWeights` in a stack: [its experts, outputs, inputs]; none of them is None.
        biases: One for each matrix; empty: there are none.
        is_last: Whether they are the experts' last products.
    """
    results: torch.Tensor | None = None
    for number, matrix in enumerate(matrices):
        assert matrix is not None, "the experts of a layer have the same matrices"
        stacked = _stacked(matrix, rows.dtype)  # one at a time: memory holds one decoded matrix of a large expert
        bias = biases[number] if biases else None
        if len(matrices) == 1:
            return _product(rows.expand(len(stacked), -1, -1), stacked, bias, is_last=is_last)
        own = rows if len(rows) == 1 else rows[number : number + 1]
        if results is None:
            shape = len(matrices), rows.shape[1], stacked.shape[1]
            results = torch.empty(shape, dtype=torch.float32 if is_last else rows.dtype, device=rows.device)
        _product(own, stacked, bias, is_last=is_last, out=results[number : number + 1])
    assert results is not None, "there is no matrix"
    return results


def _joined(weights: ExpertWeights) -> torch.Tensor | None:
    """Both as one matrix [experts, 2 x intermediate, hidden] if they are adjacent in memory, without biases."""
    gate, up = weights.gate, weights.up
    if not isinstance(gate, torch.Tensor) or not isinstance(up, torch.Tensor) or weights.gate_bias is not None:
        return None
    experts, outputs, inputs = gate.shape
    is_adjacent = up.storage_offset() == gate.storage_offset() + outputs * inputs
    if up.shape != gate.shape or not is_adjacent or weights.up_bias is not None:
        return None
    return gate.as_strided((experts, 2 * outputs, inputs), gate.stride())


def _stacked(matrix: Matrix, dtype: torch.dtype) -> torch.Tensor:
    """[experts, outputs, inputs]. Coded ones are decoded as one matrix of so many times the outputs."""
    if isinstance(matrix, torch.Tensor):
        return matrix
    num = len(matrix.codes)
    outputs, inputs = matrix.shape
    planes = {name: plane.flatten(0, 1) for name, plane in matrix.planes().items()}
    whole = CodedTensor(
        matrix.coding,
        (num * outputs, inputs),
        planes["codes"],
        planes["scales"],
        planes.get("zeros"),
        multiplier=matrix.multiplier,
        first_output=matrix.first_output,
    )
    return dequantize(whole, dtype).view(num, outputs, inputs)


def _product(
    rows: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    is_last: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """[experts, rows, inputs] x [experts, outputs, inputs] -> [experts, rows, outputs], in float32 if it is the last.

    If rows and weights differ in dtype, both are converted to float32. The result is written to `out` if there is one.
    """
    wanted = torch.float32 if is_last else rows.dtype
    if rows.dtype != matrix.dtype:
        rows, matrix = rows.to(torch.float32), matrix.to(torch.float32)
    turned = matrix.transpose(1, 2)
    own_dtype = torch.float32 if is_last else rows.dtype
    target = out if bias is None and own_dtype is wanted else None
    if own_dtype is not rows.dtype:
        output = torch.bmm(rows, turned, out_dtype=own_dtype, out=target)
    else:
        output = torch.bmm(rows, turned, out=target)
    if target is not None:
        return target
    output = (output if bias is None else output + bias[:, None]).to(wanted)
    return output if out is None else out.copy_(output)


def _entries(
    group: npt.NDArray[np.int64], expert_ids: npt.NDArray[np.int32], routing_weights: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """What each row adds up: indices into [experts x rows], where each row's begin, and their routing weights."""
    num_rows = len(expert_ids)
    place = np.searchsorted(group, expert_ids).clip(max=len(group) - 1)
    is_chosen = group[place] == expert_ids
    rows, _ = np.nonzero(is_chosen)
    starts = np.concatenate(([0], is_chosen.sum(axis=1).cumsum()[:-1]))
    return place[is_chosen] * num_rows + rows, starts, routing_weights[is_chosen]
