"""The client against a scripted service on a real Unix socket."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import torch

from fiddler import PROTOCOL_VERSION, tensors
from fiddler.v1 import experts_pb2, experts_pb2_grpc
from gpu_service.expert_client import ExpertClient, ExpertServiceError, HandshakeError

ROWS = torch.arange(6, dtype=torch.float32).view(2, 3)
IDS = torch.tensor([[0, -1], [1, 0]], dtype=torch.int32)
WEIGHTS = torch.ones(2, 2)

Answer = Callable[[experts_pb2.RunRequest, grpc.ServicerContext], experts_pb2.RunResponse]


def _double(request: experts_pb2.RunRequest, _: grpc.ServicerContext) -> experts_pb2.RunResponse:
    response = experts_pb2.RunResponse(sequence=request.sequence)
    rows = tensors.decode(request.hidden, "hidden", torch.float32, (None, 3))
    tensors.encode(rows * 2, response.output)
    return response


def _abort(code: grpc.StatusCode) -> Answer:
    def answer(request: experts_pb2.RunRequest, context: grpc.ServicerContext) -> experts_pb2.RunResponse:
        context.abort(code, "as scripted")

    return answer


class _Service(experts_pb2_grpc.ExpertServiceServicer):
    """Answers the n-th message by the n-th line of its script, and all later ones by the last."""

    def __init__(self) -> None:
        self.script: list[Answer] = [_double]
        self.requests: list[experts_pb2.RunRequest] = []
        self.streams = 0
        self.fingerprint = "right"

    def Describe(  # noqa: N802
        self, request: experts_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> experts_pb2.DescribeResponse:
        if request.checkpoint_fingerprint != self.fingerprint:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another checkpoint")
        assert request.protocol_version == PROTOCOL_VERSION
        return experts_pb2.DescribeResponse(kernel="scripted")

    def Run(  # noqa: N802
        self, request_iterator: Iterator[experts_pb2.RunRequest], context: grpc.ServicerContext
    ) -> Iterator[experts_pb2.RunResponse]:
        self.streams += 1
        for request in request_iterator:
            self.requests.append(request)
            yield self.script[min(len(self.requests), len(self.script)) - 1](request, context)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/experts.sock"


@pytest.fixture
def service(address: str) -> Iterator[_Service]:
    service = _Service()
    server = grpc.server(ThreadPoolExecutor(4))
    experts_pb2_grpc.add_ExpertServiceServicer_to_server(service, server)
    server.add_insecure_port(address)
    server.start()
    yield service
    server.stop(0).wait()


@pytest.fixture
def client(address: str) -> Iterator[ExpertClient]:
    client = ExpertClient(address, torch.float32, timeout_seconds=2, max_message_bytes=2**20)
    yield client
    client.close()


def test_rows_go_out_and_sums_come_back(service: _Service, client: ExpertClient) -> None:
    output = client.submit(4, ROWS, IDS, WEIGHTS).join()
    assert torch.equal(output, ROWS * 2)
    (request,) = service.requests
    assert (request.layer, request.time_remaining_seconds) == (4, 2)
    assert torch.equal(tensors.decode(request.expert_ids, "", torch.int32, (2, 2)), IDS)
    assert torch.equal(tensors.decode(request.routing_weights, "", torch.float32, (2, 2)), WEIGHTS)


def test_all_layers_share_a_stream_and_several_may_be_under_way(service: _Service, client: ExpertClient) -> None:
    calls = [client.submit(layer, ROWS + layer, IDS, WEIGHTS) for layer in range(5)]
    for layer, call in enumerate(calls):
        assert torch.equal(call.join(), (ROWS + layer) * 2)
    assert service.streams == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_what_a_broken_stream_left_unanswered_is_sent_again(
    service: _Service, client: ExpertClient, code: grpc.StatusCode
) -> None:
    service.script = [_double, _abort(code), _double]
    calls = [client.submit(layer, ROWS + layer, IDS, WEIGHTS) for layer in range(3)]
    for layer, call in enumerate(calls):
        assert torch.equal(call.join(), (ROWS + layer) * 2)
    assert service.streams == 2


def test_after_three_attempts_the_caller_is_told(service: _Service, client: ExpertClient) -> None:
    service.script = [_abort(grpc.StatusCode.UNAVAILABLE)]
    with pytest.raises(ExpertServiceError, match="UNAVAILABLE: as scripted"):
        client.submit(0, ROWS, IDS, WEIGHTS).join()
    assert len(service.requests) == 3
    service.script = [_double]
    assert torch.equal(client.submit(0, ROWS, IDS, WEIGHTS).join(), ROWS * 2)


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL]
)
def test_a_message_that_is_itself_at_fault_is_not_sent_again(
    service: _Service, client: ExpertClient, code: grpc.StatusCode
) -> None:
    service.script = [_abort(code)]
    with pytest.raises(ExpertServiceError, match=code.name):
        client.submit(0, ROWS, IDS, WEIGHTS).join()
    assert len(service.requests) == 1


def test_nobody_there(client: ExpertClient, address: str) -> None:
    with pytest.raises(ExpertServiceError, match=f"{address} failed: UNAVAILABLE"):
        client.submit(0, ROWS, IDS, WEIGHTS).join()
    assert not client.is_serving()


def test_a_service_that_stands_still_is_given_up(service: _Service, client: ExpertClient) -> None:
    released = threading.Event()

    def stand_still(request: experts_pb2.RunRequest, context: grpc.ServicerContext) -> experts_pb2.RunResponse:
        released.wait(30)
        return _double(request, context)

    service.script = [stand_still, _double]
    with pytest.raises(ExpertServiceError, match="DEADLINE_EXCEEDED: no answer within 2 s"):
        client.submit(0, ROWS, IDS, WEIGHTS).join()
    assert torch.equal(client.submit(0, ROWS, IDS, WEIGHTS).join(), ROWS * 2)
    released.set()


def test_an_answer_of_another_shape_is_refused(service: _Service, client: ExpertClient) -> None:
    def wrong(request: experts_pb2.RunRequest, _: grpc.ServicerContext) -> experts_pb2.RunResponse:
        response = experts_pb2.RunResponse(sequence=request.sequence)
        tensors.encode(torch.zeros(1, 3), response.output)
        return response

    service.script = [wrong]
    with pytest.raises(ExpertServiceError, match=r"output\.shape"):
        client.submit(0, ROWS, IDS, WEIGHTS).join()


def test_the_handshake(service: _Service, client: ExpertClient) -> None:
    assert client.handshake("right").kernel == "scripted"
    with pytest.raises(HandshakeError, match="FAILED_PRECONDITION: another checkpoint"):
        client.handshake("wrong")


def test_a_new_stream_begins_with_the_handshake(service: _Service, client: ExpertClient) -> None:
    client.handshake("right")
    client.submit(0, ROWS, IDS, WEIGHTS).join()
    service.script = [_abort(grpc.StatusCode.UNAVAILABLE)]
    service.fingerprint = "another"
    with pytest.raises(ExpertServiceError, match="FAILED_PRECONDITION: another checkpoint"):
        client.submit(0, ROWS, IDS, WEIGHTS).join()
    assert len(service.requests) == 2, "nothing was sent to a service with another checkpoint"


def test_a_client_that_is_closed_while_it_waits_is_told(service: _Service, client: ExpertClient) -> None:
    released = threading.Event()

    def stand_still(request: experts_pb2.RunRequest, context: grpc.ServicerContext) -> experts_pb2.RunResponse:
        released.wait(30)
        return _double(request, context)

    service.script = [stand_still]
    call = client.submit(0, ROWS, IDS, WEIGHTS)
    threading.Timer(0.2, client.abort).start()
    with pytest.raises(ExpertServiceError):
        call.join()
    released.set()
