"""What is planned and predicted before costs are known, with known costs, and with experts on the device."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.moe.orchestrated import Orchestrated
from gpu_service.moe.orchestration import EverythingRemote, MeasuredRemote, Orchestration
from gpu_service.moe.prefetch import Prefetcher
from gpu_service.placement import policies
from gpu_service.planning.latency_model import LatencyModel, Measurements

COUNTS = [0, 2, 1, 0, 0, 0, 0, 3]
MEASURED = Measurements(1, cpu=((1, 0.5),), hop=((1, 0.25),), gpu=((1, 0.001),), transfer=(100.0,))
CAP_SECONDS = 60.0


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return Checkpoint.open(tiny)


@pytest.fixture
def latency(checkpoint: Checkpoint) -> LatencyModel:
    return LatencyModel(MEASURED, [1] * len(checkpoint.layers), max_rows=8)


@pytest.fixture
def orchestrated(checkpoint: Checkpoint, latency: LatencyModel) -> Iterator[Orchestrated]:
    """With room for experts 0 and 1 of the first layer."""
    slots = ExpertSlots(checkpoint, torch.device("cpu"), 2)
    num_experts = [layer.num_experts for layer in checkpoint.layers]
    policy = policies.build(
        "layers", policies.Inputs(num_experts=num_experts, capacity=2, popularity=None, costs=lambda: latency.costs(0))
    )
    slots.load(policy.initial())
    orchestrated = Orchestrated(
        latency=latency,
        slots=slots,
        placement=policy,
        prefetcher=Prefetcher({}, slots, always=False),
        timeout_cap_seconds=CAP_SECONDS,
    )
    yield orchestrated
    orchestrated.close()


def test_before_costs_are_known_everything_is_remote_and_nothing_is_predicted() -> None:
    orchestration = EverythingRemote()
    plan = orchestration.plan(0, COUNTS, remote_available=True)
    assert (plan.resident, plan.streamed, plan.remote) == ((), (), (1, 2, 7))
    assert plan.remote_seconds == float("inf")
    assert orchestration.timeout_seconds(plan.remote_seconds) is None
    assert orchestration.latency is None


def test_with_known_costs_everything_is_remote_and_has_a_timeout(latency: LatencyModel) -> None:
    orchestration = MeasuredRemote(latency, CAP_SECONDS)
    plan = orchestration.plan(0, COUNTS, remote_available=True)
    assert (plan.resident, plan.streamed, plan.remote) == ((), (), (1, 2, 7))
    assert plan.remote_seconds == pytest.approx(0.25 + 3 * 0.5)
    assert orchestration.timeout_seconds(plan.remote_seconds) == pytest.approx(20 * 1.75)
    assert orchestration.timeout_seconds(1000.0) == CAP_SECONDS


@pytest.mark.parametrize("form", [EverythingRemote(), "measured"])
def test_without_slots_there_is_nothing_to_copy_to_count_or_to_give_up(
    form: Orchestration | str, latency: LatencyModel
) -> None:
    orchestration = MeasuredRemote(latency, CAP_SECONDS) if isinstance(form, str) else form
    plan = orchestration.plan(0, COUNTS, remote_available=False)
    assert plan.remote == (1, 2, 7), "what cannot be computed here stays remote, for the dispatcher to refuse"
    assert list(orchestration.start_copies(0, np.array(COUNTS), plan)) == []
    assert orchestration.guess(0, torch.zeros(1, 64)) is None
    assert (orchestration.num_slots, dict(orchestration.copied_bytes), set(orchestration.resident(0))) == (0, {}, set())
    orchestration.end_of_step(1, 1.0)
    orchestration.cancel_batch()
    assert not orchestration.make_room()
    orchestration.close()


def test_with_slots_experts_are_resident_remote_or_without_the_service_streamed(orchestrated: Orchestrated) -> None:
    plan = orchestrated.plan(0, COUNTS, remote_available=True)
    assert (plan.resident, plan.streamed, plan.remote) == ((1,), (), (2, 7))
    assert set(orchestrated.resident_weights(0, plan.resident)) == {1}
    lost = orchestrated.plan(0, COUNTS, remote_available=False)
    assert (lost.resident, set(lost.streamed), lost.remote) == ((1,), {2, 7}, ())
    assert orchestrated.make_room()
    assert orchestrated.num_slots == 1
