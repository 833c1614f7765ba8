"""Decides, for one MoE layer and batch, where each expert is computed.

An expert whose weights are resident on the GPU is computed there. Any other is either remote, computed by the CPU
expert service, or streamed: its weights are copied to the GPU for this batch. Both sides work at the same time, and the
GPU computes while experts are copied to it, so that a layer takes

    max(remote, copies, compute)
    remote   round trip + rows of the message + CPU seconds of each remote expert; 0 without remote experts
    copies   transfer seconds of each streamed expert, less for one whose copy is under way
    compute  GPU seconds of each resident and each streamed expert

(Fiddler, ICLR 2025, section 3.2, minimises the sum of the sides.) partition.py finds which experts to stream.

The rows of one expert are never divided between the sides. A few rows take about as long as one, because reading the
weights takes the time, and dividing the rows would read them twice. With so many rows that computing dominates, the GPU
is so much faster that the CPU could take over very few of them.
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
_WORTH_CHUNKS = 1.02
"""By which factor several messages must be predicted to be faster than one: predictions are no more exact than that."""
_NOTHING: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the experts that a batch needs are computed. Each expert is in exactly one of the three."""

    resident: tuple[int, ...]
    """On the GPU, from resident weights. Ascending."""
    streamed: tuple[int, ...]
    """On the GPU, from weights that are copied there for this batch, in the order of copying."""
    remote: tuple[int, ...]
    """By the CPU expert service. Ascending."""
    remote_seconds: float
    """Predicted for the CPU's side. Infinite without measured costs."""
    gpu_seconds: float
    """Predicted for the GPU's side: the longer of copies and compute."""


def plan(
    counts: Sequence[int], resident: Container[int], costs: Costs, *, pending: Mapping[int, float] = _NOTHING
) -> Plan:
    """Plans one layer.

    Args:
        counts: Rows of each expert of the layer, by expert id.
        resident: Experts whose weights are resident on the GPU.
        costs: The layer's costs. With an infinite round trip, every expert that is not resident is streamed; otherwise,
            with an infinite transfer, it is remote.
        pending: For experts whose copy to the GPU is under way: the fraction still to copy, above 0 and at most 1.
    """
    here: list[int] = []
    rest: list[int] = []
    for expert, count in enumerate(counts):
        if count:
            (here if expert in resident else rest).append(expert)
    gpu = costs.gpu
    resident_seconds = sum([gpu[counts[expert]] for expert in here])
    if not rest:
        return Plan(resident=tuple(here), streamed=(), remote=(), remote_seconds=0.0, gpu_seconds=resident_seconds)
    rest.sort(key=counts.__getitem__, reverse=True)
    copies = [costs.transfer * pending.get(expert, 1.0) for expert in rest] if pending else None
    split = _split([counts[expert] for expert in rest], costs, resident_seconds=resident_seconds, copies=copies)
    ranked = rest if split.order is None else [rest[i] for i in split.order]
    streamed, remote = ranked[: split.num_streamed], ranked[split.num_streamed :]
    if pending:  # copies under way first, those with least left at the front, so that the GPU can start early
        streamed.sort(key=lambda expert: pending.get(expert, 2.0))
    remote.sort()
    return Plan(
        resident=tuple(here),
        streamed=tuple(streamed),
        remote=tuple(remote),
        remote_seconds=split.remote_seconds,
        gpu_seconds=split.gpu_seconds,
    )


def rows_by_expert(expert_ids: npt.NDArray[np.int32], num_experts: int = 0) -> npt.NDArray[np.int64]:
    """Rows of each expert, by expert id.

    Args:
        expert_ids: [rows, k]; -1 for none. A row that names one expert twice is one of its rows: a table of routes may
            do so, and costs are known for as many rows as there are.
        num_experts: The least length of the result.
    """
    selections = np.bincount(expert_ids.reshape(-1) + 1, minlength=num_experts + 1)[1:]
    return np.minimum(selections, len(expert_ids))


def all_remote(counts: Sequence[int], costs: Costs | None = None) -> Plan:
    """Plans a layer without any expert on the GPU. Without costs, it predicts infinite seconds."""
    remote = tuple([expert for expert, count in enumerate(counts) if count])
    if not remote:
        seconds = 0.0
    elif costs is None:
        seconds = math.inf
    else:
        seconds = costs.round_trip + sum(costs.remote[counts[expert]] for expert in remote)
    return Plan(resident=(), streamed=(), remote=remote, remote_seconds=seconds, gpu_seconds=0.0)


def chunks(expert_ids: npt.NDArray[np.int32], costs: Costs, most: int = 8) -> int:
    """Returns in how many messages to send a layer's rows, so that transport overlaps with computing.

    Messages form a pipeline of three stages: there, computing, back. Each message reads the weights of all its experts
    again, so that few rows are never worth a second message.

    Args:
        expert_ids: [rows, k]; -1 for an expert that is computed elsewhere.
        costs: The layer's costs.
        most: The most messages.
    """
    num_rows = len(expert_ids)
    most = min(most, num_rows // _LEAST_CHUNK_ROWS)
    if most < 2:
        return 1
    counts: list[int] = [count for count in rows_by_expert(expert_ids).tolist() if count]

    def seconds(messages: int) -> float:
        one_way = (costs.round_trip + costs.row * num_rows / messages) / 2
        computing = sum([costs.cpu[-(-count // messages)] for count in counts])
        return 2 * one_way + computing + (messages - 1) * max(one_way, computing)

    best = min(range(1, most + 1), key=seconds)
    return best if seconds(1) > _WORTH_CHUNKS * seconds(best) else 1


def _split(rows: list[int], costs: Costs, *, resident_seconds: float, copies: list[float] | None) -> Cut | Split:
    """Decides which experts to stream.

    Args:
        rows: Rows of each expert, most first.
        costs: The layer's costs.
        resident_seconds: What the GPU computes without any streamed expert.
        copies: Seconds of each copy; None: all take costs.transfer.
    """
    remote, gpu = costs.remote, costs.gpu
    sent = [remote[count] for count in rows]
    if copies is None and costs.round_trip < math.inf:
        cut = cut_by_copies(
            sent,
            round_trip=costs.round_trip,
            transfer=costs.transfer,
            resident=resident_seconds,
            most_compute=gpu[rows[0]],
        )
        if cut is not None:
            return cut
    sides = Sides(
        remote=sent,
        copy=copies or [costs.transfer] * len(rows),
        compute=[gpu[count] for count in rows],
        round_trip=costs.round_trip,
        resident=resident_seconds,
    )
    # without a CPU expert service everything is streamed, whatever a copy costs
    return Split(sides, num_streamed=len(rows)) if costs.round_trip == math.inf else best_split(sides)
