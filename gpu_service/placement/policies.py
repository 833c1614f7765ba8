"""Which experts lie on the GPU: the policies, each one class and a row of POLICIES. Pure Python; no torch.

A policy says what to load at the start, sees what every batch asked for, and proposes: a slot for an expert whose
weights were just brought for one batch, or a swap in the background. Whoever holds the slots carries it out, or not.
docs/placement.md says which policy is for whom.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

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

__all__ = ["POLICIES", "Inputs", "Placement", "Swap", "build"]


class NonePlacement(StaticPolicy):
    """Nothing is resident; what the GPU computes is streamed."""

    def initial(self) -> list[ExpertKey]:
        """See Placement."""
        return []


class LayersPlacement(StaticPolicy):
    """The first layers whole, and the first experts of the next one: a slot left empty would save nothing."""

    def initial(self) -> list[ExpertKey]:
        """See Placement."""
        return all_keys(self._inputs.num_experts)[: self.capacity]


class PopularityPlacement(StaticPolicy):
    """The experts that the popularity file counts most often, and never others."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        if inputs.popularity is None:
            raise PlacementError(
                "--popularity: must name a file for the placement policy popularity; "
                "python -m gpu_service.profile makes one"
            )
        self._popularity = inputs.popularity

    def initial(self) -> list[ExpertKey]:
        """See Placement."""
        return most_popular(self._inputs.num_experts, self._popularity, self.capacity)


class LruPlacement(StaticPolicy):
    """What was streamed stays, in the slot of its layer's least recently used expert.

    Of its own layer, as in mixtral-offloading, since layers come in turn: the least recently used of all experts are
    the next layer's, which are about to be used. The even spread over layers that it starts with never changes.
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        # by layer, experts as a dict's keys, from the least to the most recently used
        self._order = [dict.fromkeys(range(count)) for count in inputs.num_experts]
        self._in_use: list[frozenset[int]] = [frozenset()] * len(inputs.num_experts)

    def initial(self) -> list[ExpertKey]:
        """See Placement."""
        return even_spread(self._inputs.num_experts, self._inputs.popularity, self.capacity)

    def observe(self, layer: int, counts: Sequence[int]) -> None:
        """See Placement."""
        order = self._order[layer]
        in_use = [expert for expert, count in enumerate(counts) if count]
        self._in_use[layer] = frozenset(in_use)
        for expert in in_use:
            del order[expert]
            order[expert] = None

    def victim(self, key: ExpertKey, resident: Collection[ExpertKey]) -> ExpertKey | None:
        """See Placement."""
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
    """The policy of a name.

    Raises:
        PlacementError: There is none of that name, or it lacks its file.
    """
    if policy not in POLICIES:
        raise PlacementError(f"--placement: no policy is called {policy!r}; known: {', '.join(POLICIES)}")
    return POLICIES[policy](inputs)
