"""The placement policy that follows the load: the likeliest experts are resident, as far as their copies pay.

usage.py estimates how likely an expert is; this module turns that into seconds.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from typing_extensions import override

from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.placement.policy import Inputs, StaticPolicy, Swap, even_spread, most_popular
from gpu_service.placement.usage import HALF_LIFE_STEPS, LayerUsage
from gpu_service.planning.latency_model import Costs

HORIZON_STEPS = HALF_LIFE_STEPS
"""The number of steps within which a swap must pay: as far ahead as the estimate looks back."""

PAYBACK = 3.0
"""A swap must save so many times the duration of its own copy. The copy delays copies that the engine waits for, takes
memory bandwidth from the experts on the CPU, and two almost equally likely experts must not replace each other in turn.
"""

MIN_STEPS = 16
"""Steps of evidence that are needed before a layer's experts are ranked."""

_SCANNED_EXPERTS = 32
"""At least so many experts, in whole layers, are ranked again at each step."""
_CANDIDATES_PER_LAYER = 4
"""Experts of each kind that a ranking keeps."""


class _Candidate(NamedTuple):
    """An expert and the probability that a step uses it. Candidates sort by the probability."""

    probability: float
    key: ExpertKey


class AdaptivePlacement(StaticPolicy):
    """Starts from the popularity file, or from an even spread over layers, and swaps in the background.

    In each step that uses it, a resident expert saves the difference between its cost elsewhere and its cost on the
    GPU. A swap therefore gains the difference of the two experts' probabilities times that saving, over HORIZON_STEPS
    steps, and costs a copy.
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        self._usage = [LayerUsage(count) for count in inputs.num_experts]
        if inputs.popularity:
            for usage, counts in zip(self._usage, inputs.popularity.counts, strict=True):
                usage.seed([count / inputs.popularity.tokens for count in counts])
        self._latest: list[Sequence[int]] = [()] * len(self._usage)
        # by layer, at its latest scan: the likeliest experts that are not resident, and the least likely that are;
        # each list ends with its first choice
        self._wanted: list[list[_Candidate]] = [[] for _ in self._usage]
        self._spare: list[list[_Candidate]] = [[] for _ in self._usage]
        self._next_scan = 0

    @override
    def initial(self) -> list[ExpertKey]:
        inputs = self._inputs
        if inputs.popularity:
            return most_popular(inputs.num_experts, inputs.popularity, self.capacity)
        return even_spread(inputs.num_experts, None, self.capacity)

    @override
    def observe(self, layer: int, counts: Sequence[int]) -> None:
        self._usage[layer].observe(counts)
        self._latest[layer] = counts

    @override
    def victim(self, key: ExpertKey, resident: Collection[ExpertKey]) -> ExpertKey | None:
        # the copy is made in any case, so that it need not pay
        layer, expert = key
        spare = self._first_spare(resident)
        if spare is None or self._usage[layer].estimate()(expert) <= spare.probability:
            return None
        if spare.key[0] == layer and self._latest[layer][spare.key[1]]:
            return None
        return spare.key

    @override
    def swaps(self, resident: Collection[ExpertKey], limit: int) -> list[Swap]:
        needed = _needed_gain(self._inputs.costs())
        if needed >= 1:
            return []
        self._scan_some(resident)
        num_free = self.capacity - len(resident)
        swaps: list[Swap] = []
        while len(swaps) < limit:
            wanted = self._first_wanted(resident)
            spare = None if num_free > 0 else self._first_spare(resident)
            if wanted is None or (spare is None and num_free <= 0):
                break
            if wanted.probability - (spare.probability if spare else 0.0) <= needed:
                break
            swaps.append(Swap(wanted.key, spare.key if spare else None))
            num_free -= 1
            self._wanted[wanted.key[0]].pop()
            if spare:
                self._spare[spare.key[0]].pop()
        return swaps

    def _first_wanted(self, resident: Collection[ExpertKey]) -> _Candidate | None:
        while heads := [candidates[-1] for candidates in self._wanted if candidates]:
            head = max(heads)
            if head.key not in resident:
                return head
            self._wanted[head.key[0]].pop()  # it was loaded after its layer's scan
        return None

    def _first_spare(self, resident: Collection[ExpertKey]) -> _Candidate | None:
        while heads := [candidates[-1] for candidates in self._spare if candidates]:
            head = min(heads)
            if head.key in resident:
                return head
            self._spare[head.key[0]].pop()
        return None

    def _scan_some(self, resident: Collection[ExpertKey]) -> None:
        """Scans some layers in turn, so that a call takes as long with many layers as with few."""
        num_scanned = 0
        for _ in self._usage:
            layer = self._next_scan
            self._scan(layer, resident)
            self._next_scan = (layer + 1) % len(self._usage)
            num_scanned += len(self._usage[layer].used)
            if num_scanned >= _SCANNED_EXPERTS:
                break

    def _scan(self, layer: int, resident: Collection[ExpertKey]) -> None:
        usage = self._usage[layer]
        if usage.num_steps < MIN_STEPS:
            return
        probability = usage.estimate()
        ascending = sorted(range(len(usage.used)), key=usage.used.__getitem__)

        def first(experts: Iterable[int], is_resident: bool) -> list[_Candidate]:
            keys = ((layer, expert) for expert in experts if ((layer, expert) in resident) is is_resident)
            return [_Candidate(probability(key[1]), key) for key in islice(keys, _CANDIDATES_PER_LAYER)][::-1]

        self._spare[layer] = first(ascending, True)
        self._wanted[layer] = first(reversed(ascending), False)


def _needed_gain(costs: Costs) -> float:
    """Returns by how much likelier an expert must be than the one it replaces for a swap to pay; 1 or more: never."""
    # without a CPU expert service the round trip is infinite, and everything that is not resident is streamed
    elsewhere = costs.transfer if math.isinf(costs.round_trip) else min(costs.cpu[1], costs.transfer)
    saved = HORIZON_STEPS * (elsewhere - costs.gpu[1])
    return PAYBACK * costs.transfer / saved if saved > 0 and not math.isinf(costs.transfer) else math.inf
