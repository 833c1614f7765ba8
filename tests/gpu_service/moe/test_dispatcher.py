"""The order of a layer's events, what is sent, and what happens if the CPU's side fails or answers nonsense."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.backend import PendingOutput
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.errors import ExpertServiceError
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.slots import Holding
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.orchestration import MeasuredRemote
from gpu_service.planning.latency_model import LatencyModel, Measurements
from tests.support.routes import Route, use_route

CPU = torch.device("cpu")
K = 2


class _Pending:
    def __init__(self, service: "_Service", output: torch.Tensor) -> None:
        self._service = service
        self._output = output
        self.compute_seconds = 1e-6

    def join(self) -> torch.Tensor:
        self._service.log.append("join")
        if self._service.lost_at_join:
            self._service.available = False
            raise ExpertServiceError("lost")
        if self._service.non_finite_row is not None:
            self._output[self._service.non_finite_row] = float("nan")
        return self._output


class _Service:
    """The CPU expert service, which can be lost."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._experts = InProcessExperts(checkpoint)
        self.available = True
        self.lost_at_submit = False
        self.lost_at_join = False
        self.non_finite_row: int | None = None
        self.log: list[str] = []
        self.messages: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.timeouts: list[float | None] = []

    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> PendingOutput:
        if self.lost_at_submit:
            self.available = False
            raise ExpertServiceError("lost")
        self.log.append("send")
        self.messages.append((hidden.clone(), expert_ids.clone()))
        self.timeouts.append(timeout_seconds)
        computed = self._experts.submit(layer, hidden, expert_ids=expert_ids, routing_weights=routing_weights)
        return _Pending(self, computed.join())


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return Checkpoint.open(tiny)


@pytest.fixture
def service(checkpoint: Checkpoint) -> _Service:
    return _Service(checkpoint)


@pytest.fixture
def slots(checkpoint: Checkpoint) -> Iterator[ExpertSlots]:
    """Experts 0 to 3 of layer 0 are resident."""
    slots = ExpertSlots(checkpoint, CPU, 4)
    slots.load([(0, expert) for expert in range(4)])
    yield slots
    slots.close()


def _batch(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden rows, expert ids [rows, 2] and routing weights."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(8, generator=generator)[:K] for _ in range(rows)])
    return torch.randn(rows, 64, generator=generator), ids, torch.rand(rows, K, generator=generator)


def _expected(checkpoint: Checkpoint, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    hidden, ids, weights = batch
    experts = InProcessExperts(checkpoint)
    return experts.submit(0, hidden, expert_ids=ids.to(torch.int32), routing_weights=weights).join()


def _run(dispatcher: Dispatcher, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    hidden, ids, weights = batch
    return dispatcher.finish(dispatcher.begin(0, hidden, expert_ids=ids, routing_weights=weights))


def test_the_message_holds_the_rows_and_experts_that_are_remote(
    checkpoint: Checkpoint, service: _Service, slots: ExpertSlots
) -> None:
    dispatcher = Dispatcher(checkpoint, CPU, service)
    use_route(dispatcher, checkpoint, slots, Route(cpu_seconds=1e-6, transfer_seconds=1.0))
    hidden, _, weights = _batch(4)
    ids = torch.tensor([[0, 1], [2, 5], [6, 7], [3, 0]])
    output = _run(dispatcher, (hidden, ids, weights))
    torch.testing.assert_close(output, _expected(checkpoint, (hidden, ids, weights)), atol=1e-5, rtol=1e-5)
    ((sent, sent_ids),) = service.messages
    assert torch.equal(sent, hidden[[1, 2]])
    assert sent_ids.tolist() == [[-1, 5], [6, 7]]
    assert dispatcher.selections.read_routes()[0] == {"resident": 5, "streamed": 0, "remote": 3}


def test_the_cpu_is_sent_its_rows_first_and_waited_for_last(
    checkpoint: Checkpoint, service: _Service, slots: ExpertSlots, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = Dispatcher(checkpoint, CPU, service)
    use_route(dispatcher, checkpoint, slots, Route(cpu_seconds=1e-6, transfer_seconds=1.0))
    holding_of = slots.holding

    def logged(key: tuple[int, int]) -> Holding:
        service.log.append("compute")
        return holding_of(key)

    monkeypatch.setattr(slots, "holding", logged)
    hidden, _, weights = _batch(1)
    _run(dispatcher, (hidden, torch.tensor([[1, 6]]), weights))
    assert service.log == ["send", "compute", "join"]


@pytest.mark.parametrize("when", ["before", "at submit", "at join"])
@pytest.mark.parametrize("where", ["in process", "streamed"])
def test_a_lost_service_costs_time_and_no_token(
    checkpoint: Checkpoint, service: _Service, slots: ExpertSlots, when: str, where: str
) -> None:
    service.available = when != "before"
    service.lost_at_submit, service.lost_at_join = when == "at submit", when == "at join"
    in_process = InProcessExperts(checkpoint) if where == "in process" else None
    dispatcher = Dispatcher(checkpoint, CPU, service, in_process=in_process)
    use_route(dispatcher, checkpoint, slots, Route(cpu_seconds=1e-6, transfer_seconds=1.0))
    for seed in range(3):  # from the second one on, the loss is known
        batch = _batch(9, seed)
        torch.testing.assert_close(_run(dispatcher, batch), _expected(checkpoint, batch), atol=1e-5, rtol=1e-5)
    routes = dispatcher.selections.read_routes()[0]
    assert routes["remote"] == 0
    assert routes["streamed"] > 0
    assert sum(routes.values()) == 3 * 9 * K


def test_without_any_other_means_a_lost_service_is_told(checkpoint: Checkpoint, service: _Service) -> None:
    dispatcher = Dispatcher(checkpoint, CPU, service)
    service.lost_at_join = True
    with pytest.raises(ExpertServiceError):
        _run(dispatcher, _batch(2))


def test_a_row_that_comes_back_non_finite_is_marked_and_kept_out(checkpoint: Checkpoint, service: _Service) -> None:
    dispatcher = Dispatcher(checkpoint, CPU, service)
    batch = _batch(3)
    service.non_finite_row = 1
    output = _run(dispatcher, batch)
    expected = _expected(checkpoint, batch)
    expected[1] = 0
    torch.testing.assert_close(output, expected)
    assert dispatcher.take_non_finite() == {1}


def test_a_non_finite_row_is_known_by_its_place_in_the_batch(
    checkpoint: Checkpoint, service: _Service, slots: ExpertSlots
) -> None:
    """It is counted in the batch, not in the message."""
    dispatcher = Dispatcher(checkpoint, CPU, service)
    use_route(dispatcher, checkpoint, slots, Route(cpu_seconds=1e-6, transfer_seconds=1.0))
    service.non_finite_row = 0
    hidden, _, weights = _batch(3)
    _run(dispatcher, (hidden, torch.tensor([[0, 1], [1, 2], [3, 7]]), weights))
    assert dispatcher.take_non_finite() == {2}


def test_non_finite_rows_are_handed_over_once(checkpoint: Checkpoint, service: _Service) -> None:
    dispatcher = Dispatcher(checkpoint, CPU, service)
    service.non_finite_row = 1
    _run(dispatcher, _batch(3))
    rows = dispatcher.take_non_finite()
    assert dispatcher.take_non_finite() == set()
    assert rows == {1}, "what was handed over is the caller's"


def test_rows_that_were_non_finite_before_are_not_the_services_fault(checkpoint: Checkpoint, service: _Service) -> None:
    dispatcher = Dispatcher(checkpoint, CPU, service)
    hidden, ids, weights = _batch(3)
    hidden[2, 5] = float("nan")
    output = _run(dispatcher, (hidden, ids, weights))
    assert dispatcher.take_non_finite() == set()
    assert output[2].isnan().all()


def test_answers_have_as_long_as_their_prediction_warrants(
    checkpoint: Checkpoint, service: _Service, slots: ExpertSlots
) -> None:
    dispatcher = Dispatcher(checkpoint, CPU, service)
    use_route(dispatcher, checkpoint, slots, Route(cpu_seconds=0.4, transfer_seconds=100.0))
    hidden, _, weights = _batch(1)
    _run(dispatcher, (hidden, torch.tensor([[5, 6]]), weights))
    _run(dispatcher, (hidden, torch.tensor([[0, 7]]), weights))
    first, second = service.timeouts
    assert first is not None
    assert second is not None
    assert 0.8 < first <= 60
    assert second < first


def test_a_long_prefill_is_sent_in_several_messages_where_that_pays(checkpoint: Checkpoint, service: _Service) -> None:
    measured = Measurements(1, cpu=((1, 1e-6), (1024, 1e-1)), hop=((1, 1e-6), (1024, 1e-1)))
    latency = LatencyModel(measured, [1] * len(checkpoint.layers), 1024)
    dispatcher = Dispatcher(checkpoint, CPU, service)
    dispatcher.use(MeasuredRemote(latency, timeout_cap_seconds=60.0))
    batch = _batch(512)
    torch.testing.assert_close(_run(dispatcher, batch), _expected(checkpoint, batch), atol=1e-5, rtol=1e-5)
    assert len(service.messages) > 1
    assert service.log == ["send"] * len(service.messages) + ["join"] * len(service.messages)
    assert sum(len(hidden) for hidden, _ in service.messages) == 512
    short = _batch(4)
    service.messages.clear()
    _run(dispatcher, short)
    assert len(service.messages) == 1
