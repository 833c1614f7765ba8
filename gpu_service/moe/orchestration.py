"""What a layer's plan is made from: measured costs, the experts on the device, the placement policy, the prefetcher.

It holds these parts together for the dispatcher. What they are made from at start-up is preparation.py's.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fiddler.expert_math import ExpertWeights
from gpu_service import metrics
from gpu_service.cpu_experts.backend import PendingOutput
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.streaming import ExpertCopy
from gpu_service.moe.prefetch import Prefetcher
from gpu_service.placement.policies import Placement
from gpu_service.planning import planner
from gpu_service.planning.latency_model import LatencyModel, timeout_seconds
from gpu_service.planning.planner import Plan

_SWAPS_PER_STEP = 1
_ON_DEMAND, _IN_BACKGROUND = (metrics.PLACEMENT_SWAPS.labels(reason) for reason in ("demand", "swap"))


@dataclass(frozen=True, slots=True)
class PredictedMessage:
    """What the costs said of a message to the CPU."""

    compute_seconds: float
    hop_seconds: float


class Orchestration:
    """Plans and their means. For the engine's thread."""

    def __init__(
        self,
        latency: LatencyModel | None = None,
        slots: ExpertSlots | None = None,
        placement: Placement | None = None,
        prefetcher: Prefetcher | None = None,
        timeout_cap_seconds: float | None = None,
    ) -> None:
        """Without any of it everything is computed remotely.

        Args:
            latency: What each side costs.
            slots: Weights on the device; None where none can be brought there.
            placement: Which experts the slots hold. Goes with slots.
            prefetcher: Copies ahead of their layer.
            timeout_cap_seconds: The longest that an answer of the CPU expert service may take; None: as configured.
        """
        self._latency = latency
        self._slots = slots
        self._placement = placement
        self._prefetcher = prefetcher
        self._timeout_cap_seconds = timeout_cap_seconds

    def plan(self, layer: int, counts: Sequence[int], remote_available: bool) -> Plan:
        """Where each expert of a batch is computed.

        Args:
            layer: Index into the checkpoint's MoE layers.
            counts: Rows by expert.
            remote_available: Whether anything computes experts that are not on the device.
        """
        if self._slots is None or self._latency is None:
            return planner.all_remote(counts, None if self._latency is None else self._latency.costs(layer))
        self._slots.poll()
        costs = self._latency.costs(layer)
        if not remote_available:
            costs = costs.without_cpu()
        return planner.plan(counts, self._slots.resident(layer), costs, self._slots.pending(layer))

    def start_copies(self, layer: int, counts: npt.NDArray[np.int64], plan: Plan) -> Sequence[tuple[int, ExpertCopy]]:
        """Starts the copies of what a plan streams, in the order in which they are waited for."""
        if self._slots is None or self._placement is None:
            return []
        self._placement.observe(layer, counts.tolist())
        if self._prefetcher:
            self._prefetcher.judge(layer, counts, plan.streamed)
        return self.stream(layer, plan.streamed)

    def stream(self, layer: int, experts: Sequence[int]) -> Sequence[tuple[int, ExpertCopy]]:
        """Starts copies of experts for the batch at hand."""
        if not experts:
            return []
        assert self._slots is not None, "a plan streams only where there are slots"
        assert self._placement is not None
        resident = self._slots.resident_keys()
        copies = []
        for expert in experts:
            key = (layer, expert)
            victim = self._placement.victim(key, resident)
            copies.append((expert, self._slots.stream(key, victim)))
            if victim is not None:
                _ON_DEMAND.inc()
        return copies

    def resident_weights(self, layer: int, experts: Sequence[int]) -> dict[int, ExpertWeights]:
        """The weights of experts that are on the device."""
        if not experts:
            return {}
        assert self._slots is not None
        return {expert: self._slots.weights((layer, expert)) for expert in experts}

    @property
    def latency(self) -> LatencyModel | None:
        """What each side costs; None where it was not measured. For any thread that only reads."""
        return self._latency

    @property
    def num_slots(self) -> int:
        """Experts that the device has room for, to stay. For any thread."""
        return 0 if self._slots is None else self._slots.capacity

    @property
    def copied_bytes(self) -> Mapping[str, int]:
        """Bytes copied to the device since the start, by why. For any thread."""
        return {} if self._slots is None else self._slots.copied_bytes

    def resident(self, layer: int) -> Set[int]:
        """The layer's experts that are on the device to stay: a live view, of which other threads ask one by one."""
        return frozenset() if self._slots is None else self._slots.resident(layer)

    def guess(self, layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
        """See Prefetcher.guess."""
        return self._prefetcher.guess(layer, hidden) if self._prefetcher else None

    def prefetch(self, layer: int, guessed: npt.NDArray[np.int32]) -> None:
        """Copies what the layer after this one may want: [rows, k] expert ids."""
        assert self._prefetcher is not None
        assert self._slots is not None
        self._prefetcher.start(layer + 1, guessed, self._slots.resident(layer + 1))

    def num_messages(self, layer: int, ids: npt.NDArray[np.int32]) -> int:
        """In how many messages the rows of [rows, k] expert ids, -1 left out, are sent."""
        if self._latency is None:
            return 1
        return planner.chunks(ids, self._latency.costs(layer))

    def timeout_seconds(self, predicted_seconds: float) -> float | None:
        """How long an answer may take."""
        if self._latency is None or self._timeout_cap_seconds is None:
            return self._timeout_cap_seconds
        return timeout_seconds(predicted_seconds, self._timeout_cap_seconds)

    def observe_remote(self, layer: int, ids: npt.NDArray[np.int32], pending: PendingOutput) -> PredictedMessage | None:
        """Learns from what the CPU took to compute [rows, k] expert ids, -1 left out. Returns what was expected."""
        seconds = pending.compute_seconds
        if self._latency is None or seconds is None:
            return None
        costs = self._latency.costs(layer)
        predicted = sum(costs.cpu[count] for count in np.bincount(ids[ids >= 0]).tolist())
        self._latency.observe_cpu(predicted, seconds)
        return PredictedMessage(predicted, costs.round_trip + costs.row * len(ids))

    def observe_copies(self, layer: int, copies: Sequence[tuple[int, ExpertCopy]]) -> tuple[float, float]:
        """Learns from what copies took that were waited for. Returns what was expected and what it was, in seconds."""
        expected = actual = 0.0
        if self._latency is not None:
            for _, copy in copies:
                if copy.seconds is not None:
                    transfer_seconds = self._latency.costs(layer).transfer
                    self._latency.observe_transfer(transfer_seconds, copy.seconds)
                    expected, actual = expected + transfer_seconds, actual + copy.seconds
        return expected, actual

    def end_of_step(self, num_rows: int, seconds: float) -> None:
        """Between two batches, after one of so many rows: residency may change."""
        if self._slots is None or self._placement is None:
            return
        self._slots.poll()
        for swap in self._placement.swaps(self._slots.resident_keys(), _SWAPS_PER_STEP):
            if self._slots.swap(swap.evict, swap.load):
                _IN_BACKGROUND.inc()
        if self._prefetcher:
            self._prefetcher.end_of_step(num_rows, seconds)

    def make_room(self) -> bool:
        """The device ran out of memory: gives up slots. Returns whether there were any."""
        if self._slots is None or self._placement is None:
            return False
        given_up = self._slots.shrink()
        self._placement.capacity = self._slots.capacity
        return given_up

    def cancel_batch(self) -> None:
        """A batch failed: what it left under way is given up."""
        if self._slots is not None:
            self._slots.release_all()

    def close(self) -> None:
        """Ends the copying thread."""
        if self._slots is not None:
            self._slots.close()
