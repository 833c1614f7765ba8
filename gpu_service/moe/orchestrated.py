"""The orchestration with experts on the device: measured costs, slots, a placement policy and a prefetcher."""

from collections.abc import Mapping, Sequence, Set

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from gpu_service import metrics
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.slots import Holding
from gpu_service.gpu_experts.streaming import ExpertCopy
from gpu_service.moe.orchestration import MeasuredRemote
from gpu_service.moe.prefetch import Prefetcher
from gpu_service.placement.policies import Placement
from gpu_service.planning import planner
from gpu_service.planning.latency_model import LatencyModel
from gpu_service.planning.planner import Plan

_SWAPS_PER_STEP = 1
_ON_DEMAND, _IN_BACKGROUND = (metrics.PLACEMENT_SWAPS.labels(reason) for reason in ("demand", "swap"))


class Orchestrated(MeasuredRemote):
    """Divides each layer's experts between the device and the CPU expert service. For the engine's thread."""

    def __init__(
        self,
        *,
        latency: LatencyModel,
        slots: ExpertSlots,
        placement: Placement,
        prefetcher: Prefetcher,
        timeout_cap_seconds: float,
    ) -> None:
        """Holds the parts together.

        Args:
            latency: What each side costs.
            slots: Weights on the device.
            placement: Which experts the slots hold.
            prefetcher: Copies experts ahead of their layer. One without routers copies none.
            timeout_cap_seconds: The longest that an answer of the CPU expert service may take.
        """
        super().__init__(latency, timeout_cap_seconds)
        self._slots = slots
        self._placement = placement
        self._prefetcher = prefetcher

    @override
    def plan(self, layer: int, counts: Sequence[int], remote_available: bool) -> Plan:
        self._slots.poll()
        costs = self._latency.costs(layer)
        if not remote_available:
            costs = costs.without_cpu()
        return planner.plan(counts, self._slots.resident(layer), costs, pending=self._slots.pending(layer))

    @property
    @override
    def is_all_remote(self) -> bool:
        return False

    @override
    def start_copies(self, layer: int, counts: npt.NDArray[np.int64], plan: Plan) -> Sequence[tuple[int, ExpertCopy]]:
        self._placement.observe(layer, counts.tolist())
        self._prefetcher.judge(layer, counts, plan.streamed)
        return self.stream(layer, plan.streamed)

    @override
    def stream(self, layer: int, experts: Sequence[int]) -> Sequence[tuple[int, ExpertCopy]]:
        if not experts:
            return ()
        resident = self._slots.resident_keys()
        copies = []
        for expert in experts:
            key = (layer, expert)
            victim = self._placement.victim(key, resident)
            copies.append((expert, self._slots.stream(key, victim)))
            if victim is not None:
                _ON_DEMAND.inc()
        return copies

    @override
    def resident_weights(self, layer: int, experts: Sequence[int]) -> dict[int, Holding]:
        return {expert: self._slots.holding((layer, expert)) for expert in experts}

    @property
    @override
    def num_slots(self) -> int:
        return self._slots.capacity

    @property
    @override
    def copied_bytes(self) -> Mapping[str, int]:
        return self._slots.copied_bytes

    @override
    def resident(self, layer: int) -> Set[int]:
        return self._slots.resident(layer)

    @override
    def guess(self, layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
        return self._prefetcher.guess(layer, hidden)

    @override
    def prefetch(self, layer: int, guessed: npt.NDArray[np.int32]) -> None:
        self._prefetcher.start(layer + 1, guessed, self._slots.resident(layer + 1))

    @override
    def observe_copies(self, layer: int, copies: Sequence[tuple[int, ExpertCopy]]) -> tuple[float, float]:
        predicted = actual = 0.0
        for _, copy in copies:
            if copy.seconds is not None:
                transfer_seconds = self._latency.costs(layer).transfer
                self._latency.observe_transfer(transfer_seconds, copy.seconds)
                predicted, actual = predicted + transfer_seconds, actual + copy.seconds
        return predicted, actual

    @override
    def end_of_step(self, num_rows: int, seconds: float) -> None:
        self._slots.poll()
        for swap in self._placement.swaps(self._slots.resident_keys(), _SWAPS_PER_STEP):
            if self._slots.swap(swap.evict, swap.load):
                _IN_BACKGROUND.inc()
        self._prefetcher.end_of_step(num_rows, seconds)

    @override
    def make_room(self) -> bool:
        given_up = self._slots.shrink()
        self._placement.capacity = self._slots.capacity
        return given_up

    @override
    def cancel_batch(self) -> None:
        self._slots.release_all()

    @override
    def close(self) -> None:
        self._slots.close()
