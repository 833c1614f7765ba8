"""Which experts are resident on the GPU: the policies, each of them one class and one row of POLICIES.

A policy decides what to load at the start, learns what every batch used, and proposes changes: that an expert which was
streamed for one batch stays, or a swap in the background. moe/orchestrated.py carries them out. docs/placement.md
compares the policies.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from typing_extensions import override

from gpu_service.errors import PlacementError
from gpu_service.gpu_experts.keys import ExpertKey, all_keys
from gpu_service.placement.adaptive import AdaptivePlacement
from gpu_service.placement.policy import (
    Inputs,
    Placement,
    StaticPolicy,
    Swap,
    even_spread,
    most_popular,
)
from gpu_service.placement.popularity import Popularity

__all__ = ["POLICIES", "Inputs", "Placement", "Swap", "build"]


class NonePlacement(StaticPolicy):
    """Keeps nothing resident; what the GPU computes is streamed."""

    @override
    def initial(self) -> list[ExpertKey]:
        return []


class LayersPlacement(StaticPolicy):
    """Keeps the first layers whole, and the first experts of the next layer, so that no slot stays empty."""

    @override
    def initial(self) -> list[ExpertKey]:
        return all_keys(self._inputs.num_experts)[: self.capacity]


class PopularityPlacement(StaticPolicy):
    """Keeps the experts that the popularity file counts most often, and never others."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        self._popularity = required_popularity(inputs.popularity)

    @override
    def initial(self) -> list[ExpertKey]:
        return most_popular(self._inputs.num_experts, self._popularity, self.capacity)


def required_popularity(popularity: Popularity | None) -> Popularity:
    """The counts, for the policy that cannot do without.

    Raises:
        PlacementError: There are none.
    """
    if popularity is None:
        raise PlacementError(
            "--popularity: must name a file for the placement policy popularity; "
            "python -m gpu_service.profile makes one"
        )
    return popularity


class LruPlacement(StaticPolicy):
    """Keeps what was streamed, in the slot of its layer's least recently used expert.

    It evicts within a layer, as mixtral-offloading does, because layers run in turn: the least recently used of all
    experts belong to the next layer and are about to be used. So the even spread over layers, with which it starts,
    never changes.
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        # by layer, experts as keys of a dict, from the least to the most recently used
        self._order = [dict.fromkeys(range(count)) for count in inputs.num_experts]
        self._in_use: list[frozenset[int]] = [frozenset()] * len(inputs.num_experts)

    @override
    def initial(self) -> list[ExpertKey]:
        return even_spread(self._inputs.num_experts, self._inputs.popularity, self.capacity)

    @override
    def observe(self, layer: int, counts: Sequence[int]) -> None:
        order = self._order[layer]
        in_use = [expert for expert, count in enumerate(counts) if count]
        self._in_use[layer] = frozenset(in_use)
        for expert in in_use:
            del order[expert]
            order[expert] = None

    @override
    def victim(self, key: ExpertKey, resident: Collection[ExpertKey]) -> ExpertKey | None:
        layer = key[0]
        oldest = next((expert for expert in self._order[layer] if (layer, expert) in resident), None)
        return None if oldest is None or oldest in self._in_use[layer] else (layer, oldest)


POLICIES: Final[Mapping[str, Callable[[Inputs], Placement]]] = {
    "adaptive": AdaptivePlacement,
    "popularity": PopularityPlacement,
    "lru": LruPlacement,
    "layers": LayersPlacement,
    "none": NonePlacement,
}


def build(policy: str, inputs: Inputs) -> Placement:
    """Creates the policy of a name.

    Raises:
        PlacementError: There is no policy of that name, or it needs a file that was not given.
    """
    if policy not in POLICIES:
        raise PlacementError(f"--placement: no policy is called {policy!r}; known: {', '.join(POLICIES)}")
    return POLICIES[policy](inputs)
