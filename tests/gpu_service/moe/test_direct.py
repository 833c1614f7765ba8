"""Layers that need no plan: sent before anything else, counted after the step, and replaced if no answer comes."""

import weakref
from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.backend import PendingOutput
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.errors import ExpertServiceError
from gpu_service.moe.direct import FEW_ROWS, DirectWork
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.orchestration import MeasuredRemote
from gpu_service.planning.latency_model import LatencyModel, Measurements
from gpu_service.planning.planner import all_remote, rows_by_expert

CPU = torch.device("cpu")
K, HIDDEN, NUM_EXPERTS = 2, 64, 8
CAP_SECONDS = 1000.0


class _Pending:
    compute_seconds = 0.25

    def __init__(self, output: torch.Tensor, *, is_lost: bool) -> None:
        self._output = output
        self._is_lost = is_lost

    def join(self) -> torch.Tensor:
        if self._is_lost:
            raise ExpertServiceError("lost")
        return self._output


class _Service:
    """The CPU expert service, which may be lost before a message or after it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._experts = InProcessExperts(checkpoint)
        self.available = True
        self.is_lost_at_submit = self.is_lost_at_join = False
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
        self.timeouts.append(timeout_seconds)
        if self.is_lost_at_submit:
            raise ExpertServiceError("lost")
        computed = self._experts.submit(layer, hidden, expert_ids=expert_ids, routing_weights=routing_weights)
        return _Pending(computed.join(), is_lost=self.is_lost_at_join)


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return Checkpoint.open(tiny)


@pytest.fixture
def service(checkpoint: Checkpoint) -> _Service:
    return _Service(checkpoint)


@pytest.fixture
def latency(checkpoint: Checkpoint) -> LatencyModel:
    measured = Measurements(1, cpu=((1, 0.5), (8, 0.75)), hop=((1, 0.25),))
    return LatencyModel(measured, [1] * len(checkpoint.layers), max_rows=FEW_ROWS + 1)


def _dispatcher(
    checkpoint: Checkpoint, service: _Service, latency: LatencyModel | None = None, *, in_process: bool = False
) -> Dispatcher:
    local = InProcessExperts(checkpoint) if in_process else None
    dispatcher = Dispatcher(checkpoint, CPU, service, in_process=local)
    if latency is not None:
        dispatcher.use(MeasuredRemote(latency, CAP_SECONDS))
    return dispatcher


def _batch(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    ids = torch.stack([torch.randperm(NUM_EXPERTS, generator=generator)[:K] for _ in range(rows)])
    return torch.randn(rows, HIDDEN, generator=generator), ids, torch.rand(rows, K, generator=generator)


def _run(dispatcher: Dispatcher, rows: int, layer: int = 0) -> torch.Tensor:
    hidden, ids, weights = _batch(rows)
    work = dispatcher.begin(layer, hidden, expert_ids=ids, routing_weights=weights)
    assert isinstance(work, DirectWork) == (rows <= FEW_ROWS)
    return dispatcher.finish(work)


def _assert_right(checkpoint: Checkpoint, output: torch.Tensor, rows: int) -> None:
    hidden, ids, weights = _batch(rows)
    experts = InProcessExperts(checkpoint)
    expected = experts.submit(0, hidden, expert_ids=ids.to(torch.int32), routing_weights=weights).join()
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
def test_layers_are_counted_when_the_step_ends(
    checkpoint: Checkpoint, service: _Service, latency: LatencyModel, rows: int
) -> None:
    dispatcher = _dispatcher(checkpoint, service, latency)
    _assert_right(checkpoint, _run(dispatcher, rows), rows)
    if rows <= FEW_ROWS:
        assert sum(map(sum, dispatcher.selections.read())) == 0
    dispatcher.end_of_step(rows, 1.0)
    expected = torch.bincount(_batch(rows)[1].flatten(), minlength=NUM_EXPERTS).tolist()
    assert dispatcher.selections.read()[0] == expected
    assert dispatcher.selections.read_routes()[0] == {"resident": 0, "streamed": 0, "remote": rows * K}
    assert dispatcher.costs.seconds[0] > 0
    assert dispatcher.costs.actual["cpu"][0] == 0.25
    assert dispatcher.costs.predicted["hop"][0] == pytest.approx(0.25)
    dispatcher.end_of_step(rows, 1.0)
    assert dispatcher.selections.read()[0] == expected, "once"


def test_a_step_that_fails_is_counted_too(checkpoint: Checkpoint, service: _Service) -> None:
    dispatcher = _dispatcher(checkpoint, service)
    _run(dispatcher, 3)
    dispatcher.cancel_batch()
    assert sum(dispatcher.selections.read()[0]) == 3 * K


def test_rows_are_not_held_until_the_step_ends(checkpoint: Checkpoint, service: _Service) -> None:
    dispatcher = _dispatcher(checkpoint, service)
    hidden, ids, weights = _batch(5)
    output = dispatcher.finish(dispatcher.begin(0, hidden, expert_ids=ids, routing_weights=weights))
    held = [weakref.ref(tensor) for tensor in (hidden, weights, output)]
    del hidden, weights, output
    assert [each() for each in held] == [None] * 3


@pytest.mark.parametrize("rows", [1, 5])
def test_an_answer_may_take_at_least_as_long_as_a_plan_would_let_it(
    checkpoint: Checkpoint, service: _Service, latency: LatencyModel, rows: int
) -> None:
    dispatcher = _dispatcher(checkpoint, service, latency)
    _run(dispatcher, rows)
    counts = rows_by_expert(_batch(rows)[1].to(torch.int32).numpy(), NUM_EXPERTS).tolist()
    planned = dispatcher.orchestration.timeout_seconds(all_remote(counts, latency.costs(0)).remote_seconds)
    (given,) = service.timeouts
    assert planned is not None
    assert given is not None
    assert planned <= given < CAP_SECONDS
    assert rows > 1 or given == pytest.approx(planned)


def test_before_costs_are_known_an_answer_may_take_as_long_as_any(checkpoint: Checkpoint, service: _Service) -> None:
    _run(_dispatcher(checkpoint, service), 1)
    assert service.timeouts == [None]


@pytest.mark.parametrize("at", ["submit", "join"])
def test_what_is_lost_is_computed_here_once(checkpoint: Checkpoint, service: _Service, at: str) -> None:
    dispatcher = _dispatcher(checkpoint, service, in_process=True)
    service.is_lost_at_submit, service.is_lost_at_join = at == "submit", at == "join"
    _assert_right(checkpoint, _run(dispatcher, 4), 4)
    dispatcher.end_of_step(4, 1.0)
    assert dispatcher.selections.read_routes()[0] == {"resident": 0, "streamed": 4 * K, "remote": 0}
    assert sum(dispatcher.selections.read()[0]) == 4 * K
    assert len(service.timeouts) == 1, "it was not sent again"


@pytest.mark.parametrize("at", ["submit", "join"])
def test_what_is_lost_and_cannot_be_computed_here_fails(checkpoint: Checkpoint, service: _Service, at: str) -> None:
    dispatcher = _dispatcher(checkpoint, service)
    service.is_lost_at_submit, service.is_lost_at_join = at == "submit", at == "join"
    with pytest.raises(ExpertServiceError, match="is lost, and there is no room"):
        _run(dispatcher, 1)


def test_a_service_that_is_gone_is_not_sent_to(checkpoint: Checkpoint, service: _Service) -> None:
    dispatcher = _dispatcher(checkpoint, service, in_process=True)
    service.available = False
    hidden, ids, weights = _batch(2)
    work = dispatcher.begin(0, hidden, expert_ids=ids, routing_weights=weights)
    assert not isinstance(work, DirectWork)
    _assert_right(checkpoint, dispatcher.finish(work), 2)
    assert service.timeouts == []
    assert dispatcher.prepare(0, rows=1, experts_per_row=K) is None


def test_a_layer_that_is_given_up_is_joined_and_not_counted_as_computed(
    checkpoint: Checkpoint, service: _Service
) -> None:
    dispatcher = _dispatcher(checkpoint, service)
    hidden, ids, weights = _batch(2)
    work = dispatcher.begin(0, hidden, expert_ids=ids, routing_weights=weights)
    service.is_lost_at_join = True
    work.discard()
    dispatcher.end_of_step(2, 1.0)
    assert sum(dispatcher.selections.read_routes()[0].values()) == 0
