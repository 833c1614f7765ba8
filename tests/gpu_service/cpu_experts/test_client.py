"""The client against a scripted service on a real Unix socket."""

import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import torch

from fiddler import logs, tensors
from fiddler.v1 import experts_pb2
from gpu_service.cpu_experts import client as client_module
from gpu_service.cpu_experts import link
from gpu_service.cpu_experts.backend import PendingOutput
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.cpu_experts.connection import Stream
from gpu_service.errors import ExpertServiceError, HandshakeError
from tests.support.scripted_service import ScriptedService, abort, after, double

ROWS = torch.arange(6, dtype=torch.float32).view(2, 3)
IDS = torch.tensor([[0, -1], [1, 0]], dtype=torch.int32)
WEIGHTS = torch.ones(2, 2)

Changes = list[ExpertServiceError | None]


@pytest.fixture(autouse=True)
def _times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that hold on a busy machine, and a check that starts early, so that no test waits longer than it must."""
    monkeypatch.setattr(client_module, "_HEAL_SECONDS", 10.0)
    monkeypatch.setattr(link, "_CONNECT_SECONDS", 10.0)
    monkeypatch.setattr(link, "_LOOK_SECONDS", 10.0)
    monkeypatch.setattr(link, "_LOOK_AFTER_SECONDS", 0.3)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/experts.sock"


@pytest.fixture
def service(address: str) -> Iterator[ScriptedService]:
    service = ScriptedService(address)
    service.start()
    yield service
    service.stop()


@pytest.fixture
def changes() -> Changes:
    return []


@pytest.fixture
def lonely(address: str, changes: Changes) -> Iterator[ExpertClient]:
    """A client that has not connected."""
    client = ExpertClient(address, torch.float32, timeout_seconds=60, max_message_bytes=2**20, on_change=changes.append)
    yield client
    client.close()


@pytest.fixture
def client(service: ScriptedService, lonely: ExpertClient) -> ExpertClient:
    lonely.connect("right")
    return lonely


def _wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def _submit(
    client: ExpertClient, layer: int, rows: torch.Tensor = ROWS, timeout_seconds: float | None = None
) -> PendingOutput:
    return client.submit(layer, rows, expert_ids=IDS, routing_weights=WEIGHTS, timeout_seconds=timeout_seconds)


def _lose(service: ScriptedService, client: ExpertClient) -> None:
    service.stop()
    with pytest.raises(ExpertServiceError, match=r"failed: (UNAVAILABLE|CANCELLED)|not running, or not ready"):
        _submit(client, 0).join()


def _assert_answers(client: ExpertClient) -> None:
    assert torch.equal(_submit(client, 0).join(), ROWS * 2)


def test_rows_go_out_and_sums_come_back(service: ScriptedService, client: ExpertClient) -> None:
    output = _submit(client, 4).join()
    assert torch.equal(output, ROWS * 2)
    (request,) = service.requests
    assert (request.layer, request.time_remaining_seconds) == (4, 60)
    assert torch.equal(tensors.decode(request.expert_ids, "", dtype=torch.int32, shape=(2, 2)), IDS)
    assert torch.equal(tensors.decode(request.routing_weights, "", dtype=torch.float32, shape=(2, 2)), WEIGHTS)


@pytest.mark.parametrize("order", [range(5), range(4, -1, -1)])
def test_all_layers_share_a_stream_and_several_may_be_under_way(
    service: ScriptedService, client: ExpertClient, order: range
) -> None:
    calls = [_submit(client, layer, ROWS + layer) for layer in range(5)]
    for layer in order:
        assert torch.equal(calls[layer].join(), (ROWS + layer) * 2)
    assert service.streams == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_what_a_broken_stream_left_unanswered_is_sent_again_at_once(
    service: ScriptedService, client: ExpertClient, changes: Changes, code: grpc.StatusCode
) -> None:
    service.script = [double, abort(code), double]
    calls = [_submit(client, layer, ROWS + layer) for layer in range(3)]
    for layer in (2, 0, 1):  # the first is answered, and not joined, when the stream breaks
        assert torch.equal(calls[layer].join(), (ROWS + layer) * 2)
    assert service.streams == 2
    assert [request.layer for request in service.requests] == [0, 1, 1, 2]
    assert changes == [None], "it was never lost"


def test_a_call_that_was_forgotten_is_not_sent_again(service: ScriptedService, client: ExpertClient) -> None:
    both_are_sent = threading.Event()
    unavailable = abort(grpc.StatusCode.UNAVAILABLE)

    def abort_later(request: experts_pb2.RunRequest, context: grpc.ServicerContext) -> experts_pb2.RunResponse:
        assert both_are_sent.wait(30)
        return unavailable(request, context)

    service.script = [abort_later, double]
    _submit(client, 1)
    gc.collect()
    second = _submit(client, 2, ROWS + 1)
    both_are_sent.set()
    assert torch.equal(second.join(), (ROWS + 1) * 2)
    assert [request.layer for request in service.requests] == [1, 2]


def test_a_stream_that_breaks_again_is_a_loss_and_all_that_is_under_way_fails(
    service: ScriptedService, client: ExpertClient, changes: Changes
) -> None:
    service.script = [abort(grpc.StatusCode.UNAVAILABLE)]
    calls = [_submit(client, layer) for layer in range(3)]
    with pytest.raises(ExpertServiceError, match="UNAVAILABLE: as scripted"):
        calls[0].join()
    assert len(service.requests) == 2
    _wait_until(lambda: client.available)
    for call in calls[1:]:  # the service is back, but it is unknown how far it came with these
        with pytest.raises(ExpertServiceError, match="UNAVAILABLE: as scripted"):
            call.join()
    assert [error is None for error in changes] == [True, False, True]
    service.script = [double]
    _assert_answers(client)


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL]
)
def test_a_message_that_is_itself_at_fault_is_not_sent_again(
    service: ScriptedService, client: ExpertClient, code: grpc.StatusCode
) -> None:
    service.script = [abort(code)]
    with pytest.raises(ExpertServiceError, match=code.name):
        _submit(client, 0).join()
    assert len(service.requests) == 1


def test_nobody_there(lonely: ExpertClient, address: str) -> None:
    assert not lonely.available
    with pytest.raises(ExpertServiceError, match=f"{address}: the CPU expert service has not been reached yet"):
        _submit(lonely, 0)
    with pytest.raises(ExpertServiceError, match="not running, or not ready"):
        lonely.connect("right")


@pytest.mark.parametrize("is_hidden", [True, False])
def test_a_socket_that_may_not_be_connected_to_is_told(
    service: ScriptedService, lonely: ExpertClient, monkeypatch: pytest.MonkeyPatch, is_hidden: bool
) -> None:
    def refuse(path: str) -> os.stat_result:
        raise PermissionError(13, "Permission denied", path)

    service.set_ready(False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the test may run as root, who may connect to anything
    if is_hidden:
        monkeypatch.setattr(os, "stat", refuse)
    what = "to look into /" if is_hidden else "to connect to it; it belongs to user"
    with pytest.raises(ExpertServiceError, match=f"user {os.getuid()} has no permission {what}"):
        lonely.connect("right")


def test_a_service_that_is_not_ready_is_not_used(service: ScriptedService, lonely: ExpertClient) -> None:
    service.set_ready(False)
    with pytest.raises(ExpertServiceError, match="not running, or not ready"):
        lonely.connect("right")
    assert not lonely.available


def test_the_handshake(service: ScriptedService, lonely: ExpertClient) -> None:
    with pytest.raises(HandshakeError, match="FAILED_PRECONDITION: the checkpoint is right"):
        lonely.connect("wrong")
    assert not lonely.available
    assert lonely.connect("right").kernel == "scripted"
    assert lonely.available


def test_the_answer_of_the_handshake_is_compared_too(service: ScriptedService, lonely: ExpertClient) -> None:
    service.answered_fingerprint = "of another"
    with pytest.raises(
        HandshakeError, match=r"checkpoint_fingerprint: the caller expects right, and .* has of another"
    ):
        lonely.connect("right")
    assert not lonely.available


@pytest.mark.parametrize("problem", ["is a symbolic link", "has mode 0777", "belongs to user 10099"])
def test_a_socket_that_others_could_replace_is_not_connected_to(
    problem: str, service: ScriptedService, address: str, lonely: ExpertClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(address.removeprefix("unix:")).parent
    if "link" in problem:
        moved = directory.rename(directory.with_name("moved"))
        directory.symlink_to(moved)
    elif "mode" in problem:
        directory.chmod(0o777)
    else:
        lstat = Path.lstat
        owned = os.stat_result([0o40700, 0, 0, 1, 10099, 0, 0, 0, 0, 0])
        monkeypatch.setattr(Path, "lstat", lambda path: owned if path == directory else lstat(path))
    with pytest.raises(HandshakeError, match=f"the socket's directory {directory} {problem}"):
        lonely.connect("right")
    assert service.handshakes == 0


def test_a_service_that_is_gone_is_not_asked_until_it_is_back(
    service: ScriptedService, client: ExpertClient, changes: Changes, address: str
) -> None:
    _lose(service, client)
    assert not client.available
    assert client.error is changes[-1]
    with pytest.raises(ExpertServiceError, match=f"{address}: the CPU expert service "):
        _submit(client, 0)
    service.start()
    _wait_until(lambda: client.available)
    _assert_answers(client)
    assert [error is None for error in changes] == [True, False, True]


def test_a_service_that_is_back_is_used_once_it_is_ready(service: ScriptedService, client: ExpertClient) -> None:
    _lose(service, client)
    service.set_ready(False)
    handshakes = service.handshakes
    service.start()
    time.sleep(1)
    assert not client.available
    assert service.handshakes == handshakes
    service.set_ready(True)
    _wait_until(lambda: client.available)
    _assert_answers(client)


def test_a_service_that_comes_back_as_another_is_never_used_and_told_of_once(
    service: ScriptedService, client: ExpertClient, changes: Changes
) -> None:
    _lose(service, client)
    service.fingerprint, handshakes = "another", service.handshakes
    service.start()
    _wait_until(lambda: service.handshakes >= handshakes + 3)
    service.fingerprint = "a third"
    _wait_until(lambda: "a third" in str(client.error))
    assert not client.available
    assert [type(error) for error in changes[1:]] == [ExpertServiceError, HandshakeError, HandshakeError]
    assert "the checkpoint is another" in str(changes[2])
    service.fingerprint = "right"
    _wait_until(lambda: client.available)
    assert len(service.requests) == 0, "nothing was sent to a service with another checkpoint"
    _assert_answers(client)


def test_a_stream_in_place_of_a_broken_one_begins_with_the_handshake(
    service: ScriptedService, client: ExpertClient
) -> None:
    service.script = [abort(grpc.StatusCode.UNAVAILABLE)]
    service.fingerprint = "another"
    with pytest.raises(ExpertServiceError, match="FAILED_PRECONDITION: the checkpoint is another"):
        _submit(client, 0).join()
    assert len(service.requests) == 1, "nothing was sent to a service with another checkpoint"


def test_a_service_that_stands_still_is_given_up_and_its_late_answer_is_nobodys(
    service: ScriptedService, client: ExpertClient
) -> None:
    released = threading.Event()
    service.script = [double, after(released), double]
    _assert_answers(client)
    patient = _submit(client, 1)
    hasty = _submit(client, 2, ROWS + 1, timeout_seconds=0.3)
    with pytest.raises(ExpertServiceError, match=r"DEADLINE_EXCEEDED: no answer within 0\.3 s"):
        hasty.join()
    with pytest.raises(ExpertServiceError, match="DEADLINE_EXCEEDED"):
        patient.join()
    _wait_until(lambda: client.available)
    later = _submit(client, 3, ROWS + 2)
    released.set()
    assert torch.equal(later.join(), (ROWS + 2) * 2)


def test_a_short_wait_after_a_long_one_ends_in_time(service: ScriptedService, client: ExpertClient) -> None:
    released = threading.Event()
    service.script = [double, after(released)]
    _submit(client, 0, timeout_seconds=1000).join()
    call = _submit(client, 0, timeout_seconds=0.1)
    with pytest.raises(ExpertServiceError, match=r"no answer within 0\.1 s"):
        call.join()
    assert service.requests[-1].time_remaining_seconds == pytest.approx(0.1)
    released.set()


def test_an_answer_that_came_in_time_is_taken_however_late(
    service: ScriptedService, client: ExpertClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(stream: Stream, deadline: float) -> None:
        if deadline <= time.monotonic():
            stream.close()

    monkeypatch.setattr(client._watch, "arm", at_once)
    call = _submit(client, 0, timeout_seconds=0.2)
    _wait_until(lambda: len(service.requests) == 1)
    time.sleep(0.5)
    assert torch.equal(call.join(), ROWS * 2)


def test_a_message_names_the_requests_that_it_is_for(service: ScriptedService, client: ExpertClient) -> None:
    with logs.about_requests(["one", "two"]):
        _submit(client, 0).join()
    _submit(client, 0).join()
    assert [list(request.request_ids) for request in service.requests] == [["one", "two"], []]


def test_an_answer_of_another_shape_is_refused_and_a_loss(
    service: ScriptedService, client: ExpertClient, changes: Changes
) -> None:
    def wrong(request: experts_pb2.RunRequest, _: grpc.ServicerContext) -> experts_pb2.RunResponse:
        response = experts_pb2.RunResponse(sequence=request.sequence)
        tensors.encode(torch.zeros(1, 3), response.output)
        return response

    service.script = [wrong]
    with pytest.raises(ExpertServiceError, match=r"malformed answer: output\.shape"):
        _submit(client, 0).join()
    assert len(service.requests) == 1
    assert "malformed answer" in str(changes[1])


@pytest.mark.parametrize("way", ["gone", "not ready"])
def test_a_loss_is_noticed_while_nothing_is_sent(service: ScriptedService, client: ExpertClient, way: str) -> None:
    if way == "gone":
        service.stop()
    else:
        service.set_ready(False)
    _wait_until(lambda: not client.available)
    assert "not running, or not ready" in str(client.error)


def test_another_service_at_the_address_is_noticed_while_nothing_is_sent(
    service: ScriptedService, client: ExpertClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_look = threading.Event()  # so that the link does not look in between
    monkeypatch.setattr(client._link, "_is_quiet", may_look.is_set)
    service.stop()
    service.fingerprint = "another"
    service.start()
    # gRPC tells a thread of its own that the stream has ended: the link may have to look more than once to see it
    may_look.set()
    _wait_until(lambda: "the checkpoint is another" in str(client.error))


def test_a_loss_that_is_noticed_fails_what_is_under_way(service: ScriptedService, client: ExpertClient) -> None:
    released = threading.Event()
    service.script = [after(released)]
    calls = [_submit(client, layer) for layer in range(2)]
    service.set_ready(False)
    for call in calls:
        with pytest.raises(ExpertServiceError, match="not running, or not ready"):
            call.join()
    released.set()


def test_a_service_is_found_though_its_predecessor_stands_still_at_the_same_address(
    service: ScriptedService, client: ExpertClient, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_CONNECT_SECONDS", 1.0)
    _lose(service, client)
    path = Path(address.removeprefix("unix:"))
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        connection, _ = listener.accept()
        path.unlink()
        service.start()
        _wait_until(lambda: client.available, seconds=15)  # gRPC itself gives an attempt up after 20
        connection.close()
    _assert_answers(client)


def test_a_client_that_is_closed_while_it_waits_is_told(
    service: ScriptedService, client: ExpertClient, changes: Changes
) -> None:
    released = threading.Event()
    service.script = [after(released)]
    call = _submit(client, 0)
    threading.Timer(0.2, client.abort).start()
    with pytest.raises(ExpertServiceError, match="the client is closed"):
        call.join()
    with pytest.raises(ExpertServiceError, match="the client is closed"):
        _submit(client, 0)
    assert changes == [None], "what is closed on purpose is not lost"
    released.set()


def test_a_client_that_is_closed_looks_for_nobody(
    service: ScriptedService, client: ExpertClient, changes: Changes
) -> None:
    _lose(service, client)
    client.close()
    handshakes = service.handshakes
    service.start()
    time.sleep(1.5)
    assert service.handshakes == handshakes
    assert not client.available
    with pytest.raises(ExpertServiceError, match="the client is closed"):
        client.connect("right")
