"""Addresses, health and statuses, over real servers in this process."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fiddler import listen, rpc
from fiddler.v1 import experts_pb2, experts_pb2_grpc
from tests.support import statuses

LONGEST_PATH = "/tmp/" + "x" * 91


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:50051",
        "0.0.0.0:65535",
        "localhost:1",
        "gpu-1.example.com:80",
        "[::1]:443",
        "unix:/run/fiddler/experts.sock",
        "unix:experts.sock",
        f"unix:{LONGEST_PATH}",
    ],
)
def test_an_address_is_taken_as_it_is(address: str) -> None:
    assert rpc.check_address(address) == address


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.1.2.3:65535", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("unix:/run/fiddler/experts.sock", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("[::1:2]:1", False),
        ("127.0.0.1.example.com:1", False),
        ("localhost.example.com:1", False),
        ("10.0.0.1:1", False),
        ("gpu:1", False),
    ],
)
def test_only_what_this_host_alone_reaches_is_local(address: str, local: bool) -> None:
    assert rpc.is_local(address) is local


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("", "'' is not an address; expected HOST:PORT or unix:PATH"),
        ("127.0.0.1", "not an address"),
        ("127.0.0.1:", "not an address"),
        (":80", "not an address"),
        ("::1:80", "not an address"),
        ("[::1]", "not an address"),
        ("[gpu]:80", "not an address"),
        ("gpu:http", "not an address"),
        ("gpu:65536", "not an address"),
        ("gpu:-1", "not an address"),
        ("gpu:0", "not an address"),
        ("g pu:80", "not an address"),
        ("gpu:80\n", "not an address"),
        ("http://gpu:80", "not an address"),
        ("/run/experts.sock", "not an address"),
        ("unix:", "'unix:' does not name a socket; expected unix:PATH"),
        ("unix:/run/fiddler/", "does not name a socket"),
        ("unix:/run/\0", "does not name a socket"),
        (f"unix:{LONGEST_PATH}x", f"socket path {LONGEST_PATH}x is longer than 96 bytes"),
        ("unix:/tmp/" + "é" * 46, "is longer than 96 bytes"),
    ],
)
def test_what_is_no_address_is_refused(address: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        rpc.check_address(address)


def _server() -> grpc.Server:
    return grpc.server(ThreadPoolExecutor(2), options=rpc.server_options(2**20))


@contextmanager
def serving(server: grpc.Server, address: str) -> Iterator[None]:
    listen.bind(server, address)
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("status", "serves"),
    [
        (health_pb2.HealthCheckResponse.SERVING, True),
        (health_pb2.HealthCheckResponse.NOT_SERVING, False),
        (None, False),
    ],
)
def test_health_is_asked_for(tmp_path: Path, status: int | None, serves: bool) -> None:
    server = _server()
    if status is not None:
        servicer = health.HealthServicer()
        servicer.set("", status)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"unix:{tmp_path}/experts.sock"
    with serving(server, address), grpc.insecure_channel(address) as channel:
        assert rpc.is_serving(channel, timeout_seconds=5) is serves


def test_nobody_is_not_serving(tmp_path: Path) -> None:
    with grpc.insecure_channel(f"unix:{tmp_path}/none.sock") as channel:
        assert not rpc.is_serving(channel, timeout_seconds=1)


INVALID = rpc.invalid_argument("sampling.top_p", "must be above 0 and at most 1, got 7")
UNFIT = rpc.failed_precondition("dtype", "the caller expects DTYPE_FLOAT32, and we have DTYPE_BFLOAT16 → ☹")
BUSY = rpc.busy("256 requests wait already", 1.25)
BARE = rpc.StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, "too late")


class Refusing(experts_pb2_grpc.ExpertServiceServicer):
    """Fails every call with one status."""

    def __init__(self, error: rpc.StatusError) -> None:
        self.error = error

    def Describe(  # noqa: N802
        self, request: experts_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> experts_pb2.DescribeResponse:
        self.error.abort(context)

    def OpenSegment(  # noqa: N802
        self, request: experts_pb2.OpenSegmentRequest, context: grpc.ServicerContext
    ) -> experts_pb2.OpenSegmentResponse:
        self.error.abort(context)

    def Run(  # noqa: N802
        self, request_iterator: Iterator[experts_pb2.RunRequest], context: grpc.ServicerContext
    ) -> Iterator[experts_pb2.RunResponse]:
        yield experts_pb2.RunResponse(sequence=1)
        self.error.abort(context)


class RefusingAsync(Refusing):
    """The same on grpc.aio."""

    async def Describe(self, request: Any, context: Any) -> Any:  # type: ignore[override]  # noqa: N802
        await self.error.abort_async(context)


def _check(error: Any, expected: rpc.StatusError) -> None:
    assert error.code() is expected.code
    assert error.details() == expected.message == str(expected)
    if expected is INVALID:
        assert statuses.wrong_field(error) == ("sampling.top_p", "must be above 0 and at most 1, got 7")
        assert expected.message == "sampling.top_p: must be above 0 and at most 1, got 7"
    elif expected is BUSY:
        assert statuses.retry_seconds(error) == 1.25
    elif expected is UNFIT:
        assert statuses.mismatch(error) == ("dtype", expected.message)
    else:
        assert statuses.details(error) == []


@pytest.mark.parametrize("error", [INVALID, UNFIT, BUSY, BARE])
def test_a_status_arrives_whole_from_a_synchronous_server(tmp_path: Path, error: rpc.StatusError) -> None:
    server, address = _server(), f"unix:{tmp_path}/experts.sock"
    experts_pb2_grpc.add_ExpertServiceServicer_to_server(Refusing(error), server)
    with serving(server, address), grpc.insecure_channel(address) as channel:
        stub = experts_pb2_grpc.ExpertServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Describe(experts_pb2.DescribeRequest())
        _check(caught.value, error)
        replies = stub.Run(iter([]))
        assert next(replies).sequence == 1
        with pytest.raises(grpc.RpcError) as caught:
            next(replies)
        _check(caught.value, error)


@pytest.mark.parametrize("error", [INVALID, UNFIT, BUSY, BARE])
async def test_a_status_arrives_whole_from_an_asynchronous_server(tmp_path: Path, error: rpc.StatusError) -> None:
    server, address = grpc.aio.server(), f"unix:{tmp_path}/experts.sock"
    experts_pb2_grpc.add_ExpertServiceServicer_to_server(RefusingAsync(error), server)
    listen.bind(server, address)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await experts_pb2_grpc.ExpertServiceStub(channel).Describe(experts_pb2.DescribeRequest())
            _check(caught.value, error)
    finally:
        await server.stop(None)
