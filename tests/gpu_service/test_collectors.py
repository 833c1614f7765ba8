"""How experts that become resident are counted."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY

from fiddler.checkpoint import Checkpoint
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.moe.orchestrated import Orchestrated
from gpu_service.moe.prefetch import Prefetcher
from gpu_service.placement.policy import Swap
from gpu_service.planning.latency_model import LatencyModel

CPU = torch.device("cpu")


class _Scripted:
    """A policy that lets expert 4 take the place of expert 0, and brings expert 5 in place of expert 1, once."""

    capacity = 2

    def __init__(self) -> None:
        self._swaps = [Swap((0, 5), (0, 1))]

    def observe(self, layer: int, counts: Sequence[int]) -> None:
        pass

    def victim(self, key: ExpertKey, resident: Collection[ExpertKey]) -> ExpertKey | None:
        return (0, 0) if key == (0, 4) else None

    def swaps(self, resident: Collection[ExpertKey], limit: int) -> list[Swap]:
        swaps, self._swaps = self._swaps, []
        return swaps


@pytest.fixture
def slots(tiny: Path) -> Iterator[ExpertSlots]:
    slots = ExpertSlots(Checkpoint.open(tiny), CPU, 2)
    slots.load([(0, 0), (0, 1)])
    yield slots
    slots.close()


def _counted() -> dict[str, float]:
    name = "fiddler_placement_swaps_total"
    return {reason: REGISTRY.get_sample_value(name, {"reason": reason}) or 0.0 for reason in ("demand", "swap")}


def test_what_comes_to_stay_is_counted_by_who_had_it_copied(slots: ExpertSlots) -> None:
    latency: Any = LatencyModel.__new__(LatencyModel)  # nothing here asks for costs
    policy: Any = _Scripted()
    orchestration = Orchestrated(
        latency=latency,
        slots=slots,
        placement=policy,
        prefetcher=Prefetcher({}, slots, always=False),
        timeout_cap_seconds=60.0,
    )
    before = _counted()
    for _, copy in orchestration.stream(0, [4, 6]):
        copy.wait()
        copy.release()
    assert set(slots.resident(0)) == {1, 4}
    assert _counted() == {"demand": before["demand"] + 1, "swap": before["swap"]}
    for _ in range(2):
        orchestration.end_of_step(1, 0.01)
    assert _counted() == {"demand": before["demand"] + 1, "swap": before["swap"] + 1}
