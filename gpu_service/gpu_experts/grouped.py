"""Computes all resident experts of a few rows at once, in as many kernels as one expert takes.

A launch costs a GPU's host some microseconds, which is longer than a small expert takes to compute: an expert after the
other leaves the GPU idle most of the time. So the experts' slots are copied next to each other, in one kernel, and each
projection is one batched product of every row with every expert that any of the rows uses. A product reads its weights
once, however many rows there are, so the rows that an expert was not chosen for cost nothing; they are not added up.

A large expert stays where it is, since copying it would take longer than the launches that this saves. A kernel finds
each by its address (`in_place.py`), so that these, too, take as many kernels as one does. Where that kernel cannot be
used, each has products of its own, which write next to each other, so that what lies between them is computed for all
at once. The kernel's sums are compared with theirs when experts of a form are computed for the first time.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fiddler.coding import CodedTensor, dequantize
from fiddler.expert_math import Combination, ExpertWeights, Matrix
from gpu_service.gpu_experts import in_place
from gpu_service.gpu_experts.in_place import InPlace
from gpu_service.gpu_experts.projections import GATE_UP, are_adjacent, joined
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

    def __init__(self, combine: Combination, uploads: Uploads, kernel: InPlace | None = None) -> None:
        """Computes nothing yet.

        Args:
            combine: What the experts compute between their projections.
            uploads: Copies to the device.
            kernel: Computes large experts where they are; None: PyTorch does, one after the other.
        """
        self._combine = combine
        self._uploads = uploads
        self._kernel = kernel

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
            arrays = [torch.from_numpy(each) for each in _entries(np.array(group), expert_ids, routing_weights)]
            if is_apart and self._kernel is not None and self._kernel.is_used:
                part = self._part_in_place(self._kernel, hidden, held, arrays)
            else:
                part = self._part(hidden, held, self._uploads.to_device(*arrays), is_apart=is_apart)
            total = part if total is None else total.add_(part)
        assert total is not None, "there is no expert to compute"
        return total

    def _part(
        self, hidden: torch.Tensor, held: Sequence[Holding], entries: Sequence[torch.Tensor], *, is_apart: bool
    ) -> torch.Tensor:
        """The sums over some experts: [rows, hidden] float32."""
        stacks = [_side_by_side([each]) for each in held] if is_apart else [_side_by_side(held)]

        def project(rows: torch.Tensor, name: str, *, is_last: bool = False) -> torch.Tensor:
            matrices = [joined(each) if name == GATE_UP else getattr(each, name) for each in stacks]
            biases = [getattr(each, f"{name}_bias", None) for each in stacks]
            return _products(rows, matrices, biases, is_last=is_last)

        return _added_up(_outputs(hidden, stacks[0], self._combine, project), entries)

    def _part_in_place(
        self, kernel: InPlace, hidden: torch.Tensor, held: Sequence[Holding], arrays: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The same by the kernel, or without it where it fails or gives other sums."""
        names, weights = list(held[0].facts), held[0].weights
        facts, *entries = self._uploads.to_device(torch.from_numpy(in_place.facts_of(held)), *arrays)

        def project(rows: torch.Tensor, name: str, *, is_last: bool = False) -> torch.Tensor:
            return in_place.products(rows, facts[names.index(name)], weights, name, is_last=is_last)

        form = in_place.form_of(held[0], hidden)
        part = kernel.tried(lambda: _added_up(_outputs(hidden, weights, self._combine, project), entries))
        if part is not None and kernel.is_checked(form):
            return part
        expected = self._part(hidden, held, entries, is_apart=True)
        if part is not None:
            kernel.check(form, part, expected, hidden.dtype)
        return expected


def _added_up(outputs: torch.Tensor, entries: Sequence[torch.Tensor]) -> torch.Tensor:
    """[experts, rows, hidden] -> [rows, hidden], by what `_entries` returns."""
    indices, starts, weights = entries
    # reads only what was routed: in float16 an output that nobody asked for may be infinite
    return functional.embedding_bag(indices, outputs.flatten(0, 1), starts, mode="sum", per_sample_weights=weights)


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


class _Project(Protocol):
    """A projection of all experts: [experts or 1, rows, inputs] -> [experts, rows, outputs]."""

    def __call__(self, rows: torch.Tensor, name: str, *, is_last: bool = False) -> torch.Tensor: ...


def _outputs(hidden: torch.Tensor, one: ExpertWeights, combine: Combination, project: _Project) -> torch.Tensor:
    """[rows, hidden] -> [experts, rows, hidden] float32.

    Args:
        hidden: [rows, hidden].
        one: What the experts have; see `are_adjacent`.
        combine: What is computed between the projections.
        project: Computes a projection.
    """
    rows = hidden[None]
    gate: torch.Tensor | None
    if are_adjacent(one):
        gate, up = project(rows, GATE_UP).chunk(2, dim=-1)
    else:
        gate = None if one.gate is None else project(rows, "gate")
        up = project(rows, "up")
    if one.factor is not None:
        up = up * project(rows, "factor")
    return project(combine(gate, up), "down", is_last=True)


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
