"""The interface of a placement policy, its inputs, and what policies share.

A policy only decides; it moves no weight.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from typing_extensions import override

from gpu_service.gpu_experts.keys import ExpertKey, all_keys
from gpu_service.placement.popularity import Popularity
from gpu_service.planning.latency_model import Costs


@dataclass(frozen=True, slots=True)
class Swap:
    """An expert to copy to the GPU, and the expert whose slot it takes."""

    load: ExpertKey
    evict: ExpertKey | None
    """None: a free slot is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a policy is given."""

    num_experts: Sequence[int]
    """Experts of each layer."""
    capacity: int
    """Resident slots on the GPU."""
    popularity: Popularity | None
    costs: Callable[[], Costs]
    """Returns the present costs."""


class Placement(Protocol):
    """A policy. It keeps no record of what is resident; each call passes that.

    `resident` is every expert that holds a slot, including those being copied. A policy never loads an expert that is
    in it, and never evicts one that is not. It is deterministic: the same calls give the same answers.
    """

    capacity: int
    """Resident slots on the GPU. It is lowered when slots are given up."""

    def initial(self) -> list[ExpertKey]:
        """Returns what to load at the start: at most `capacity` experts, the most valuable first."""
        ...

    def observe(self, layer: int, counts: Sequence[int]) -> None:
        """Learns from one layer's batch: rows by expert. Called before any other call about that batch.

        The policy may keep `counts`; the caller must not change them.
        """
        ...

    def victim(self, key: ExpertKey, resident: Collection[ExpertKey]) -> ExpertKey | None:
        """Returns the expert whose slot a streamed expert takes over; None if the streamed expert does not stay.

        It is never an expert that the current batch uses in that layer.
        """
        ...

    def swaps(self, resident: Collection[ExpertKey], limit: int) -> list[Swap]:
        """Returns at most `limit` swaps that pay now, best first. Called between two batches."""
        ...


class StaticPolicy(Placement):
    """Changes nothing after the start: the base of policies, which override what they do otherwise."""

    def __init__(self, inputs: Inputs) -> None:
        self.capacity = inputs.capacity
        self._inputs = inputs

    @override
    def observe(self, layer: int, counts: Sequence[int]) -> None:
        pass

    @override
    def victim(self, key: ExpertKey, resident: Collection[ExpertKey]) -> ExpertKey | None:
        return None

    @override
    def swaps(self, resident: Collection[ExpertKey], limit: int) -> list[Swap]:
        return []


def most_popular(num_experts: Sequence[int], popularity: Popularity, capacity: int) -> list[ExpertKey]:
    """Returns the experts with the highest counts of all layers; ties in the order of layers and experts."""
    return sorted(all_keys(num_experts), key=lambda key: -popularity.counts[key[0]][key[1]])[:capacity]


def even_spread(num_experts: Sequence[int], popularity: Popularity | None, capacity: int) -> list[ExpertKey]:
    """Returns one expert of every layer, then a second of every layer, and so on; each layer's most popular first."""
    ranked: list[tuple[int, ExpertKey]] = []
    for layer, count in enumerate(num_experts):
        counts = popularity.counts[layer] if popularity else [0] * count
        by_rank = sorted(range(count), key=lambda expert: -counts[expert])
        ranked += [(rank, (layer, expert)) for rank, expert in enumerate(by_rank)]
    return [key for _, key in sorted(ranked)][:capacity]
