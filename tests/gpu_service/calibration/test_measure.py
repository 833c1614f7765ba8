from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.calibration import measure
from gpu_service.calibration.measure import calibrate, expert_bytes, measure_by_rows, measured_layers
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.gpu_experts.streaming import ExpertCopy
from gpu_service.planning.latency_model import LatencyModel
from tests.support import checkpoints, processes

CPU = torch.device("cpu")
SECONDS_OF_AN_EXPERT = 0.25


class _Machine:
    """A clock that only measuring moves."""

    def __init__(self, seconds_by_row: float, fixed_seconds: float) -> None:
        self.now = 100.0
        self.asked: list[int] = []
        self._seconds_by_row = seconds_by_row
        self._fixed_seconds = fixed_seconds

    def clock(self) -> float:
        return self.now

    def seconds_of(self, rows: int) -> float:
        self.asked.append(rows)
        seconds = self._fixed_seconds + self._seconds_by_row * rows
        self.now += seconds
        return seconds


@dataclass
class _Call:
    output: torch.Tensor
    compute_seconds: float | None

    def join(self) -> torch.Tensor:
        return self.output


@dataclass
class _Service:
    """Records messages, and reports a fixed time for each expert of a message."""

    messages: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    available: bool = True

    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> _Call:
        assert hidden.shape[0] == expert_ids.shape[0] == routing_weights.shape[0]
        self.messages.append((layer, expert_ids))
        num_experts = len(set(expert_ids.flatten().tolist()) - {-1})
        return _Call(hidden, num_experts * SECONDS_OF_AN_EXPERT)


class _Slots(ExpertSlots):
    """Records its copies, and reports a fixed time of a copy."""

    def __init__(self, checkpoint: Checkpoint, transfer_seconds: float = 0.5) -> None:
        super().__init__(checkpoint, CPU, capacity=0)
        self.copies: list[ExpertCopy] = []
        self._transfer_seconds = transfer_seconds

    def stream(self, key: ExpertKey, into: ExpertKey | None = None) -> ExpertCopy:
        self.copies.append(super().stream(key, into))
        return self.copies[-1]

    def time_transfer(self) -> float:
        return self._transfer_seconds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("mixtral", tmp_path_factory.mktemp("mixtral"))


@pytest.fixture
def checkpoint(model: Path) -> Iterator[Checkpoint]:
    checkpoint = Checkpoint.open(model)
    yield checkpoint
    checkpoint.close()


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough time even on a busy machine; tiny experts are measured quickly."""
    monkeypatch.setattr(measure, "_BUDGET_SECONDS", 60.0)


def test_every_power_of_two_is_measured_several_times_where_there_is_time() -> None:
    machine = _Machine(0.0001, 0.001)
    samples = measure_by_rows(machine.seconds_of, 100, 10.0, clock=machine.clock)
    assert sorted({rows for rows, _ in samples}) == [1, 2, 4, 8, 16, 32, 64]
    assert all(machine.asked.count(rows) == 5 for rows, _ in samples)
    assert samples[0] == pytest.approx((1, 0.0011))


def test_a_slow_machine_is_measured_as_far_as_time_allows_and_coarsely() -> None:
    machine = _Machine(0.02, 0.02)
    samples = measure_by_rows(machine.seconds_of, 512, 1.0, clock=machine.clock)
    assert machine.now - 100 <= 1.0
    rows = {rows for rows, _ in samples}
    assert {1, 4, 16} <= rows
    assert max(rows) <= 32
    assert machine.asked.index(16) < machine.asked.index(2)


def test_one_row_is_measured_several_times_where_time_allows() -> None:
    machine = _Machine(0.0, 0.3)
    samples = measure_by_rows(machine.seconds_of, 512, 1.0, clock=machine.clock)
    assert [rows for rows, _ in samples] == [1, 1, 1]


def test_one_row_is_measured_whatever_it_takes() -> None:
    machine = _Machine(0.0, 30.0)
    assert measure_by_rows(machine.seconds_of, 512, 1.0, clock=machine.clock) == ((1, 30.0),)


def test_an_expert_costs_its_share_of_a_message_to_several(checkpoint: Checkpoint) -> None:
    service = _Service()
    measured = calibrate(checkpoint, service, dtype=torch.float32, max_rows=8, experts_per_row=3)
    assert {seconds for _, seconds in measured.cpu} == {SECONDS_OF_AN_EXPERT}
    assert {rows for rows, _ in measured.cpu} == {1, 2, 4, 8}
    assert (measured.gpu, measured.transfer) == ((), ())
    computed = [ids for _, ids in service.messages if ids.max() >= 0]
    assert all(len(set(ids.flatten().tolist())) == 3 for ids in computed)
    assert all((ids == ids[0]).all() for ids in computed)  # every expert has every row


def test_messages_that_compute_nothing_tell_what_the_hop_takes(checkpoint: Checkpoint) -> None:
    service = _Service()
    measured = calibrate(checkpoint, service, dtype=torch.float32, max_rows=8, experts_per_row=2)
    idle = [ids.shape[0] for _, ids in service.messages if ids.max() < 0]
    assert idle == [rows for rows, _ in measured.hop]
    assert set(idle) == {1, 8}
    assert all(0 < seconds < SECONDS_OF_AN_EXPERT for _, seconds in measured.hop)


def test_no_two_messages_in_a_row_are_for_the_same_experts(checkpoint: Checkpoint) -> None:
    service = _Service()
    calibrate(checkpoint, service, dtype=torch.float32, max_rows=8, experts_per_row=2)
    asked = [(layer, frozenset(ids.flatten().tolist())) for layer, ids in service.messages if ids.max() >= 0]
    assert all(before != after for before, after in pairwise(asked))
    assert {layer for layer, _ in asked} == {0, 1, 2}
    assert set().union(*(experts for _, experts in asked)) == set(range(8))


def test_the_device_is_measured_where_experts_are_brought_to_it(checkpoint: Checkpoint) -> None:
    with closing(_Slots(checkpoint)) as slots:
        measured = calibrate(
            checkpoint, _Service(), dtype=torch.float32, max_rows=8, experts_per_row=2, slots=slots, device=CPU
        )
        assert measured.transfer == (0.5,)
        assert 1 in {rows for rows, _ in measured.gpu}
        assert all(seconds > 0 for _, seconds in measured.gpu)
        (copy,) = slots.copies
        with pytest.raises(RuntimeError, match="was released"):
            copy.wait()


def test_the_device_is_not_measured_where_no_slot_is_free(checkpoint: Checkpoint) -> None:
    with closing(_Slots(checkpoint, transfer_seconds=float("inf"))) as slots:
        measured = calibrate(
            checkpoint, _Service(), dtype=torch.float32, max_rows=8, experts_per_row=2, slots=slots, device=CPU
        )
        assert (measured.gpu, measured.transfer, slots.copies) == ((), (), [])


def test_the_usual_size_of_expert_stands_for_all(checkpoint: Checkpoint) -> None:
    assert measured_layers(checkpoint) == [0, 1, 2]
    assert expert_bytes(checkpoint.layers[0]) == 3 * 64 * 96 * 4


def test_a_real_service_is_measured_through_its_socket(model: Path, tmp_path: Path, checkpoint: Checkpoint) -> None:
    max_rows = 64
    with processes.start(model, f"unix:{tmp_path}/experts.sock") as service:
        service.wait_until_serving()
        client = ExpertClient(service.address, torch.float32, timeout_seconds=20, max_message_bytes=2**20)
        client.connect(checkpoint.fingerprint)
        try:
            measured = calibrate(checkpoint, client, dtype=torch.float32, max_rows=max_rows, experts_per_row=2)
        finally:
            client.close()
    assert {rows for rows, _ in measured.hop} == {1, max_rows}
    costs = LatencyModel(
        measured, [expert_bytes(layer) for layer in checkpoint.layers], max_rows, experts_per_row=2
    ).costs(0)
    assert 0 < costs.cpu[1] <= costs.cpu[max_rows] < 1
    assert 0 < costs.round_trip < 1
