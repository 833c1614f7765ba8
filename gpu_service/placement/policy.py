"""What a placement policy is: its words, its interface, and what policies share. placement.py has the policies.

Pure Python; torch is not imported here, and no weight is moved.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from gpu_service.gpu_experts.keys import ExpertKey, all_keys
from gpu_service.placement.popularity import Popularity
from gpu_service.planning.latency_model import Costs


@dataclass(frozen=True, slots=True)
class Swap:
    """One expert to copy to the GPU, and the one whose slot it takes."""

    load: ExpertKey
    evict: ExpertKey | None
    """None: a slot is free."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a policy may know."""

    num_experts: Sequence[int]
    """By layer."""
    capacity: int
    """Slots on the GPU."""
    popularity: Popularity | None
    costs: Callable[[], Costs]
    """The costs as they are known now."""


class Placement(Protocol):
    """A policy. It keeps no record of what is resident and is told at each question.

    `resident` is what holds a slot, experts whose copy is under way included. Nothing in it is ever loaded, nothing
    else is ever evicted. The same questions get the same answers: there is no chance in it.
    """

    capacity: int
    """Slots on the GPU. Whoever gives slots up lowers it."""

    def initial(self) -> list[ExpertKey]:
        """What to load at the start: at most `capacity`, the most wanted first."""
        ...

    def observe(self, layer: int, counts: Sequence[int]) -> None:
        """Takes note of one layer's batch: rows by expert. Comes before anything is asked about that batch.

        The policy may keep the counts; they must not change.
        """
        ...

    def victim(self, key: ExpertKey, resident: Collection[ExpertKey]) -> ExpertKey | None:
        """Whose slot an expert takes that is copied for the batch at hand: never one that the batch uses in its layer.

        None: it does not stay.
        """
        ...

    def swaps(self, resident: Collection[ExpertKey], limit: int) -> list[Swap]:
        """At most `limit` swaps that pay now, best first. Asked between two batches."""
        ...


class StaticPolicy:
    """Nothing changes after the start: the part of Placement that policies without memory of batches share."""

    def __init__(self, inputs: Inputs) -> None:
        self.capacity = inputs.capacity
        self._inputs = inputs

    def observe(self, layer: int, counts: Sequence[int]) -> None:
        """See Placement."""

    def victim(self, key: ExpertKey, resident: Collection[ExpertKey]) -> ExpertKey | None:
        """See Placement."""
        return None

    def swaps(self, resident: Collection[ExpertKey], limit: int) -> list[Swap]:
        """See Placement."""
        return []


def most_popular(num_experts: Sequence[int], popularity: Popularity, capacity: int) -> list[ExpertKey]:
    """Those that are counted most often, whichever layers they are in; ties in the order of layers and experts."""
    return sorted(all_keys(num_experts), key=lambda key: -popularity.counts[key[0]][key[1]])[:capacity]


def even_spread(num_experts: Sequence[int], popularity: Popularity | None, capacity: int) -> list[ExpertKey]:
    """One expert of every layer, then a second of every layer, and so on; a layer's most popular first, if known."""
    ranked: list[tuple[int, ExpertKey]] = []
    for layer, count in enumerate(num_experts):
        counts = popularity.counts[layer] if popularity else [0] * count
        by_rank = sorted(range(count), key=lambda expert: -counts[expert])
        ranked += [(rank, (layer, expert)) for rank, expert in enumerate(by_rank)]
    return [key for _, key in sorted(ranked)][:capacity]
