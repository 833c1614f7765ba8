"""The client and the real service through shared memory, beside the stream."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import torch

from fiddler import logs
from gpu_service.cpu_experts import client as client_module
from gpu_service.cpu_experts import link
from gpu_service.cpu_experts.backend import PendingOutput
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.errors import ExpertServiceError
from tests.support import checkpoints, shared_services
from tests.support.in_process_service import value, wait_until
from tests.support.shared_services import MAX_ROWS, SharedService

HIDDEN, NUM_EXPERTS, K = 64, 8, 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("deepseek_v2", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_HEAL_SECONDS", 10.0)
    monkeypatch.setattr(link, "_CONNECT_SECONDS", 10.0)


@pytest.fixture
def service(tiny: Path, tmp_path: Path) -> Iterator[SharedService]:
    with shared_services.serve(tiny, tmp_path) as service:
        yield service


@pytest.fixture
def client(service: SharedService) -> Iterator[ExpertClient]:
    client = ExpertClient(service.address, torch.float32, timeout_seconds=60, max_message_bytes=2**22)
    client.connect(service.checkpoint.fingerprint)
    yield client
    client.close()


def _rows(number: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, HIDDEN, generator=torch.Generator().manual_seed(seed))


def _choice(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, NUM_EXPERTS, (rows, K), generator=generator, dtype=torch.int32)
    return ids, torch.rand(rows, K, generator=generator)


def _submit(client: ExpertClient, hidden: torch.Tensor, layer: int = 0, timeout: float | None = None) -> PendingOutput:
    ids, weights = _choice(len(hidden))
    return client.submit(layer, hidden, expert_ids=ids, routing_weights=weights, timeout_seconds=timeout)


def _assert_right(service: SharedService, pending: PendingOutput, hidden: torch.Tensor, layer: int = 0) -> None:
    ids, weights = _choice(len(hidden))
    expected = service.runner.run(layer, hidden, expert_ids=ids, routing_weights=weights)
    assert torch.equal(pending.join(), expected.output)


def _shared(pending: PendingOutput) -> bool:
    return pending.slot is not None  # type: ignore[attr-defined]


def test_messages_go_through_memory_and_large_ones_over_the_socket(
    service: SharedService, client: ExpertClient
) -> None:
    for number, shared in ((1, True), (40, True), (MAX_ROWS, False), (2, True)):
        hidden = _rows(number, seed=number)
        pending = _submit(client, hidden, layer=1)
        assert _shared(pending) is shared
        _assert_right(service, pending, hidden, layer=1)
        assert pending.compute_seconds is not None
        assert pending.compute_seconds > 0


def test_more_than_slots_are_under_way_and_joined_in_any_order(service: SharedService, client: ExpertClient) -> None:
    messages = [(_submit(client, _rows(3, seed)), _rows(3, seed)) for seed in range(9)]
    assert {_shared(pending) for pending, _ in messages} == {True, False}
    for pending, hidden in reversed(messages):
        _assert_right(service, pending, hidden)


def test_slots_of_calls_that_nobody_joins_are_used_again(service: SharedService, client: ExpertClient) -> None:
    for seed in range(50):
        pending = _submit(client, _rows(2, seed))
        if seed % 5:
            pending.join()
        del pending
        gc.collect(0)
    _assert_right(service, _submit(client, _rows(2)), _rows(2))
    assert _shared(_submit(client, _rows(2)))


def test_a_message_is_counted_as_on_the_stream(service: SharedService, client: ExpertClient) -> None:
    names = ("fiddler_expert_rows_total", "fiddler_expert_received_bytes_total", "fiddler_expert_sent_bytes_total")
    answered = {"code": "OK"}
    before = [value(name) for name in names] + [value("fiddler_expert_requests_total", **answered)]
    _submit(client, _rows(3)).join()
    expected = [3, 3 * HIDDEN * 4 + 3 * K * 8, 3 * HIDDEN * 4, 1]

    def counted() -> list[float]:
        now = [value(name) for name in names] + [value("fiddler_expert_requests_total", **answered)]
        return [after - was for after, was in zip(now, before, strict=True)]

    wait_until(lambda: counted() == expected)


@pytest.mark.parametrize(
    ("hidden_size", "layer", "wrong_id", "reason"),
    [
        (HIDDEN, 7, 0, "INVALID_ARGUMENT: layer: must be 0 to 1, got 7"),
        (HIDDEN, 0, 99, "INVALID_ARGUMENT: expert_ids: must be -1 to 7, got 99"),
        (HIDDEN, 0, -2, "INVALID_ARGUMENT: expert_ids: must be -1 to 7, got -2"),
    ],
)
def test_a_wrong_message_is_refused_as_on_the_stream(
    client: ExpertClient, hidden_size: int, layer: int, wrong_id: int, reason: str
) -> None:
    ids, weights = _choice(2)
    ids[1, 1] = wrong_id
    with logs.about_requests(["named"]):
        pending = client.submit(layer, _rows(2)[:, :hidden_size], expert_ids=ids, routing_weights=weights)
    assert _shared(pending)
    with pytest.raises(ExpertServiceError, match=reason):
        pending.join()
    assert not client.available


@contextmanager
def _kernel_taken(service: SharedService) -> Iterator[Callable[[], None]]:
    """The kernel is at work for another caller, until what this yields is called."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with service.runner._turn():
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    try:
        yield release.set
    finally:
        release.set()
        holder.join()


def test_a_message_whose_time_runs_out_in_the_queue_is_refused(service: SharedService, client: ExpertClient) -> None:
    with _kernel_taken(service):
        pending = _submit(client, _rows(1), timeout=0.2)
        with pytest.raises(ExpertServiceError, match="DEADLINE_EXCEEDED"):
            pending.join()


def test_the_loss_of_the_service_ends_a_wait(service: SharedService, client: ExpertClient) -> None:
    with _kernel_taken(service):
        pending = _submit(client, _rows(1))
        stopper = threading.Timer(0.1, service.stop)
        stopper.start()
        with pytest.raises(ExpertServiceError):
            pending.join()
    stopper.join()


def test_after_a_broken_stream_what_is_unanswered_is_sent_again(service: SharedService, client: ExpertClient) -> None:
    pendings = [_submit(client, _rows(2, seed)) for seed in range(3)]
    client._link.stream()._call.cancel()  # as if the connection broke
    for seed, pending in enumerate(pendings):
        _assert_right(service, pending, _rows(2, seed))
    assert client.available
    assert _shared(_submit(client, _rows(1)))


def test_a_service_that_stops_answers_what_is_under_way(tiny: Path, tmp_path: Path) -> None:
    service = shared_services.start(tiny, f"unix:{tmp_path}/experts.sock")
    client = ExpertClient(service.address, torch.float32, timeout_seconds=60, max_message_bytes=2**22)
    client.connect(service.checkpoint.fingerprint)
    with _kernel_taken(service) as release:
        pending = _submit(client, _rows(2))
        stopper = threading.Thread(target=service.stop, args=(10,))
        stopper.start()
        threading.Timer(0.2, release).start()
        assert pending.join().shape == (2, HIDDEN)
    stopper.join()
    _assert_right(service, pending, _rows(2))
    client.close()


@pytest.mark.parametrize("damage", ["lost", "wrong id", "another layout"])
def test_where_the_memory_is_not_seen_the_stream_takes_all(
    service: SharedService, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    assert service.servicer.segments is not None
    offer: Callable[[], object] = service.servicer.segments.offer

    def damaged() -> object:
        offered = offer()
        if damage == "lost":
            Path(offered.path).unlink()  # type: ignore[attr-defined]
        elif damage == "wrong id":
            offered.id = bytes(16)  # type: ignore[attr-defined]
        else:
            offered.layout_version += 1  # type: ignore[attr-defined]
        return offered

    monkeypatch.setattr(service.servicer.segments, "offer", damaged)
    client = ExpertClient(service.address, torch.float32, timeout_seconds=60, max_message_bytes=2**22)
    client.connect(service.checkpoint.fingerprint)
    pending = _submit(client, _rows(2))
    assert not _shared(pending)
    _assert_right(service, pending, _rows(2))
    client.close()


def test_no_file_is_left(service: SharedService, client: ExpertClient) -> None:
    assert service.servicer.segments is not None
    directory = service.servicer.segments._directory
    mine = {path.name for path in directory.glob(".fiddler-segment-*")}
    client._link.stream()
    fresh = service.servicer.segments.offer()
    assert {path.name for path in directory.glob(".fiddler-segment-*")} - mine == {Path(fresh.path).name}
    service.servicer.segments.close()
    assert not Path(fresh.path).exists()


def test_a_stream_that_names_an_unknown_segment_is_refused(service: SharedService) -> None:
    from fiddler.v1 import experts_pb2_grpc

    with grpc.insecure_channel(service.address) as channel:
        stub = experts_pb2_grpc.ExpertServiceStub(channel)
        for identity in ("00" * 16, "no hexadecimal"):
            with pytest.raises(grpc.RpcError) as caught:
                next(stub.Run(iter([]), metadata=(("fiddler-segment", identity),)))
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
