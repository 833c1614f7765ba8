"""Decides, for one MoE layer and batch, where each expert is computed. Pure Python; no torch.

An expert whose weights lie on the GPU is computed there. Any other is either remote, computed by the CPU expert
service, or streamed: its weights are copied to the GPU for this batch. Both sides work at the same time, and on the
GPU's the copies run beside the computing, so that a layer takes

    max(remote, copies, compute)
    remote   round trip + rows of the message + CPU seconds of each remote expert; 0 where none is
    copies   transfer seconds of each streamed expert, less for one whose copy is under way
    compute  GPU seconds of each resident and each streamed expert

(Fiddler, ICLR 2025, section 3.2, minimises the sum of the sides.) partition.py finds which experts to stream.

The rows of one expert are never split between the sides: on each, a few rows take about as long as one, since reading
the weights is what takes the time, and a split reads them twice. Where rows are so many that it is not, the GPU is so
much the faster that there is little to give away.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from gpu_service.planning.latency_model import Costs
from gpu_service.planning.partition import Cut, Sides, Split, best_split, cut_by_copies

_LEAST_CHUNK_ROWS = 32
_WORTH_CHUNKS = 1.02  # what is gained must exceed what the prediction is good for
_NOTHING: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the experts that a batch needs are computed. Each is in exactly one list."""

    resident: tuple[int, ...]
    """On the GPU, from weights that lie there. Ascending."""
    streamed: tuple[int, ...]
    """On the GPU, from weights that are copied there for this batch, in the order of copying."""
    remote: tuple[int, ...]
    """By the CPU expert service. Ascending."""
    remote_seconds: float
    """Predicted for the CPU's side. Infinite where nothing is known."""
    gpu_seconds: float
    """Predicted for the GPU's side: the longer of copies and compute."""


def plan(
    counts: Sequence[int], resident: Container[int], costs: Costs, pending: Mapping[int, float] = _NOTHING
) -> Plan:
    """Plans one layer.

    Args:
        counts: How many rows each expert of the layer has, by expert id.
        resident: Experts whose weights lie on the GPU.
        costs: Seconds of everything. An infinite round trip makes everything streamed that is not resident; where it is
            finite, an infinite transfer makes that remote.
        pending: By expert whose copy to the GPU is under way: the fraction that is still to do, above 0 and at most 1.
    """
    here: list[int] = []
    rest: list[int] = []
    for expert, count in enumerate(counts):
        if count:
            (here if expert in resident else rest).append(expert)
    gpu = costs.gpu
    resident_seconds = sum([gpu[counts[expert]] for expert in here])
    if not rest:
        return Plan(tuple(here), (), (), 0.0, resident_seconds)
    rest.sort(key=counts.__getitem__, reverse=True)
    copies = [costs.transfer * pending.get(expert, 1.0) for expert in rest] if pending else None
    split = _split([counts[expert] for expert in rest], costs, resident_seconds, copies)
    ranked = rest if split.order is None else [rest[i] for i in split.order]
    streamed, remote = ranked[: split.num_streamed], ranked[split.num_streamed :]
    if pending:  # what is under way first, and what is nearly there before it, so that the GPU can begin
        streamed.sort(key=lambda expert: pending.get(expert, 2.0))
    remote.sort()
    return Plan(tuple(here), tuple(streamed), tuple(remote), split.remote_seconds, split.gpu_seconds)


def all_remote(counts: Sequence[int], costs: Costs | None = None) -> Plan:
    """The plan where the GPU holds no expert and none can be brought there; without costs it predicts nothing."""
    remote = tuple([expert for expert, count in enumerate(counts) if count])
    if costs is None or not remote:
        return Plan((), (), remote, math.inf if remote else 0.0, 0.0)
    return Plan((), (), remote, costs.round_trip + sum(costs.remote[counts[expert]] for expert in remote), 0.0)


def chunks(expert_ids: npt.NDArray[np.int32], costs: Costs, most: int = 8) -> int:
    """In how many messages a layer's rows are sent, so that the way there and back overlaps with computing.

    Messages are a pipeline of three stages: there, computing, back. Each reads the weights of all its experts anew, so
    that few rows are never worth a second message.

    Args:
        expert_ids: [rows, k]; -1 for an expert that is computed elsewhere.
        costs: Seconds of everything.
        most: The most messages.
    """
    num_rows = len(expert_ids)
    most = min(most, num_rows // _LEAST_CHUNK_ROWS)
    if most < 2:
        return 1
    counts: list[int] = [count for count in np.bincount(expert_ids[expert_ids >= 0]).tolist() if count]

    def seconds(messages: int) -> float:
        one_way = (costs.round_trip + costs.row * num_rows / messages) / 2
        computing = sum([costs.cpu[-(-count // messages)] for count in counts])
        return 2 * one_way + computing + (messages - 1) * max(one_way, computing)

    best = min(range(1, most + 1), key=seconds)
    return best if seconds(1) > _WORTH_CHUNKS * seconds(best) else 1


def _split(rows: list[int], costs: Costs, resident_seconds: float, copies: list[float] | None) -> Cut | Split:
    """Which experts to stream.

    Args:
        rows: Of each expert, the most first.
        costs: Seconds of everything.
        resident_seconds: What the GPU computes in any case.
        copies: Seconds of each copy; None: they are all the same.
    """
    remote, gpu = costs.remote, costs.gpu
    sent = [remote[count] for count in rows]
    if copies is None and costs.round_trip < math.inf:
        cut = cut_by_copies(sent, costs.round_trip, costs.transfer, resident_seconds, gpu[rows[0]])
        if cut is not None:
            return cut
    sides = Sides(
        remote=sent,
        copy=copies or [costs.transfer] * len(rows),
        compute=[gpu[count] for count in rows],
        round_trip=costs.round_trip,
        resident=resident_seconds,
    )
    # whatever a copy costs, it is what remains where nobody answers
    return Split(sides, num_streamed=len(rows)) if costs.round_trip == math.inf else best_split(sides)
