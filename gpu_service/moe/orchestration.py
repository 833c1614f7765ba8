"""What the dispatcher plans with: the interface, and its two forms while no expert is on the device.

`EverythingRemote` holds until costs are measured, `MeasuredRemote` if the device never holds an expert. orchestrated.py
has the form with experts on the device. startup/experts.py makes them.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from gpu_service.gpu_experts.slots import Holding
from gpu_service.gpu_experts.streaming import ExpertCopy
from gpu_service.planning import planner
from gpu_service.planning.latency_model import LatencyModel, timeout_seconds
from gpu_service.planning.planner import Plan


@dataclass(frozen=True, slots=True)
class PredictedMessage:
    """What the costs predicted for a message to the CPU expert service."""

    compute_seconds: float
    hop_seconds: float


class Orchestration(Protocol):
    """Plans a layer's experts and carries out what the plan asks of the device. For the engine's thread."""

    def plan(self, layer: int, counts: Sequence[int], remote_available: bool) -> Plan:
        """Decides where each expert of a batch is computed.

        Args:
            layer: Index into the checkpoint's MoE layers.
            counts: Rows by expert.
            remote_available: Whether anything computes experts that are not on the device.
        """
        ...

    @property
    def is_all_remote(self) -> bool:
        """Whether every plan has all experts computed remotely, so that few rows need none."""
        ...

    def start_copies(self, layer: int, counts: npt.NDArray[np.int64], plan: Plan) -> Sequence[tuple[int, ExpertCopy]]:
        """Starts the copies of what a plan streams. Returns experts and copies in the order in which to wait for them.

        Called once for each planned layer; the placement policy and the prefetcher learn from `counts`, rows by expert.
        """
        ...

    def stream(self, layer: int, experts: Sequence[int]) -> Sequence[tuple[int, ExpertCopy]]:
        """Starts copies of experts for the current batch."""
        ...

    def resident_weights(self, layer: int, experts: Sequence[int]) -> dict[int, Holding]:
        """Returns the slots of experts that are resident on the device, with their weights."""
        ...

    @property
    def latency(self) -> LatencyModel | None:
        """What each side costs; None until it is measured. For any thread that only reads."""
        ...

    @property
    def num_slots(self) -> int:
        """How many resident experts the device has room for. For any thread."""
        ...

    @property
    def copied_bytes(self) -> Mapping[str, int]:
        """Bytes copied to the device since the start, by reason. For any thread."""
        ...

    def resident(self, layer: int) -> Set[int]:
        """Returns the layer's resident experts: a live view, which other threads ask about one expert at a time."""
        ...

    def guess(self, layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
        """Guesses what the next layer will use: expert ids [rows, k] int32 on the device; None without a guess."""
        ...

    def prefetch(self, layer: int, guessed: npt.NDArray[np.int32]) -> None:
        """Copies what was guessed, [rows, k] expert ids, for the layer after this one."""
        ...

    def num_messages(self, layer: int, ids: npt.NDArray[np.int32]) -> int:
        """Returns in how many messages to send the rows of [rows, k] expert ids; -1 marks what is not sent."""
        ...

    def timeout_seconds(self, predicted_seconds: float) -> float | None:
        """Returns how long an answer may take; None: as long as the backend is configured for."""
        ...

    def observe_remote(
        self, layer: int, ids: npt.NDArray[np.int32], compute_seconds: float | None
    ) -> PredictedMessage | None:
        """Learns from what the CPU took for [rows, k] expert ids, -1 left out; None if that is not known.

        Returns:
            What was predicted; None if nothing was, or if it is not known what the CPU took.
        """
        ...

    def observe_copies(self, layer: int, copies: Sequence[tuple[int, ExpertCopy]]) -> tuple[float, float]:
        """Learns from what copies took. Returns (predicted, actual) seconds of those that had to be waited for."""
        ...

    def end_of_step(self, num_rows: int, seconds: float) -> None:
        """Changes residency between two batches, the last of which had so many rows and took so many seconds."""
        ...

    def make_room(self) -> bool:
        """Gives slots back to a device that ran out of memory. Returns whether there were any."""
        ...

    def cancel_batch(self) -> None:
        """Releases what a failed batch left under way."""
        ...

    def close(self) -> None:
        """Ends the copying thread, if there is one."""
        ...


class EverythingRemote(Orchestration):
    """Has every expert computed remotely, in one message a layer, and predicts nothing."""

    @override
    def plan(self, layer: int, counts: Sequence[int], remote_available: bool) -> Plan:
        return planner.all_remote(counts)

    @property
    @override
    def is_all_remote(self) -> bool:
        return True

    @override
    def start_copies(self, layer: int, counts: npt.NDArray[np.int64], plan: Plan) -> Sequence[tuple[int, ExpertCopy]]:
        return ()

    @override
    def stream(self, layer: int, experts: Sequence[int]) -> Sequence[tuple[int, ExpertCopy]]:
        return ()

    @override
    def resident_weights(self, layer: int, experts: Sequence[int]) -> dict[int, Holding]:
        return {}

    @property
    @override
    def latency(self) -> LatencyModel | None:
        return None

    @property
    @override
    def num_slots(self) -> int:
        return 0

    @property
    @override
    def copied_bytes(self) -> Mapping[str, int]:
        return {}

    @override
    def resident(self, layer: int) -> Set[int]:
        return frozenset()

    @override
    def guess(self, layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
        return None

    @override
    def prefetch(self, layer: int, guessed: npt.NDArray[np.int32]) -> None:
        raise AssertionError("nothing was guessed")

    @override
    def num_messages(self, layer: int, ids: npt.NDArray[np.int32]) -> int:
        return 1

    @override
    def timeout_seconds(self, predicted_seconds: float) -> float | None:
        return None

    @override
    def observe_remote(
        self, layer: int, ids: npt.NDArray[np.int32], compute_seconds: float | None
    ) -> PredictedMessage | None:
        return None

    @override
    def observe_copies(self, layer: int, copies: Sequence[tuple[int, ExpertCopy]]) -> tuple[float, float]:
        return 0.0, 0.0

    @override
    def end_of_step(self, num_rows: int, seconds: float) -> None:
        pass

    @override
    def make_room(self) -> bool:
        return False

    @override
    def cancel_batch(self) -> None:
        pass

    @override
    def close(self) -> None:
        pass


class MeasuredRemote(EverythingRemote):
    """Has every expert computed remotely, and predicts what that takes."""

    def __init__(self, latency: LatencyModel, timeout_cap_seconds: float) -> None:
        """Starts from measured costs.

        Args:
            latency: What each side costs.
            timeout_cap_seconds: The longest that an answer of the CPU expert service may take.
        """
        self._latency = latency
        self._timeout_cap_seconds = timeout_cap_seconds

    @override
    def plan(self, layer: int, counts: Sequence[int], remote_available: bool) -> Plan:
        return planner.all_remote(counts, self._latency.costs(layer))

    @property
    @override
    def latency(self) -> LatencyModel:
        return self._latency

    @override
    def num_messages(self, layer: int, ids: npt.NDArray[np.int32]) -> int:
        return planner.chunks(ids, self._latency.costs(layer))

    @override
    def timeout_seconds(self, predicted_seconds: float) -> float | None:
        return timeout_seconds(predicted_seconds, self._timeout_cap_seconds)

    @override
    def observe_remote(
        self, layer: int, ids: npt.NDArray[np.int32], compute_seconds: float | None
    ) -> PredictedMessage | None:
        if compute_seconds is None:
            return None
        costs = self._latency.costs(layer)
        predicted = sum(costs.cpu[count] for count in planner.rows_by_expert(ids).tolist())
        self._latency.observe_cpu(predicted, compute_seconds)
        return PredictedMessage(predicted, costs.round_trip + costs.row * len(ids))
