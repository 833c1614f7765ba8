"""Addresses, sockets and statuses, over real servers in this process."""

import os
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fiddler import rpc
from fiddler.v1 import experts_pb2, experts_pb2_grpc
from tests.fiddler import statuses

LONGEST_PATH = "/tmp/" + "x" * 102


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:50051",
        "0.0.0.0:65535",
        "localhost:0",
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
    ("address", "problem"),
    [
        ("", "'' is no address; expected HOST:PORT or unix:PATH"),
        ("127.0.0.1", "no address"),
        ("127.0.0.1:", "no address"),
        (":80", "no address"),
        ("::1:80", "no address"),
        ("[::1]", "no address"),
        ("[gpu]:80", "no address"),
        ("gpu:http", "no address"),
        ("gpu:65536", "no address"),
        ("gpu:-1", "no address"),
        ("g pu:80", "no address"),
        ("gpu:80\n", "no address"),
        ("http://gpu:80", "no address"),
        ("/run/experts.sock", "no address"),
        ("unix:", "'unix:' names no socket; expected unix:PATH"),
        ("unix:/run/fiddler/", "names no socket"),
        ("unix:/run/\0", "names no socket"),
        (f"unix:{LONGEST_PATH}x", f"socket path {LONGEST_PATH}x is over 107 bytes, the most that Linux takes"),
        ("unix:/tmp/" + "é" * 52, "is over 107 bytes"),
    ],
)
def test_what_is_no_address_is_refused(address: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"{problem}$" if problem.endswith("takes") else problem):
        rpc.check_address(address)


def _server() -> grpc.Server:
    return grpc.server(ThreadPoolExecutor(2), options=rpc.server_options(2**20))


@contextmanager
def serving(server: grpc.Server, address: str) -> Iterator[None]:
    rpc.bind(server, address)
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


def _stale_socket(path: Path) -> None:
    """What a server that was killed leaves."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


def _reaches(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_a_missing_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "experts.sock"
    umask = os.umask(0)
    try:
        with serving(_server(), f"unix:{path}"):
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert _reaches(path)
    finally:
        os.umask(umask)


def test_a_directory_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with serving(_server(), f"unix:{tmp_path}/experts.sock"):
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "experts.sock"
    _stale_socket(path)
    assert not _reaches(path)
    with serving(_server(), f"unix:{path}"):
        assert _reaches(path)


def test_the_socket_of_a_living_server_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "experts.sock"
    with serving(_server(), f"unix:{path}"):
        with pytest.raises(OSError, match=f"{path} is served by another process"):
            rpc.bind(_server(), f"unix:{path}")
        assert _reaches(path)


def test_a_file_in_the_way_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary")
    with pytest.raises(OSError, match=f"{path} is there and is no socket"):
        rpc.bind(_server(), f"unix:{path}")
    assert path.read_text() == "dear diary"


def test_a_file_where_the_directory_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(OSError, match=f"{tmp_path}/run"):
        rpc.bind(_server(), f"unix:{tmp_path}/run/experts.sock")


def test_a_port_is_served_by_one_server_only() -> None:
    first = _server()
    port = first.add_insecure_port("127.0.0.1:0")
    first.start()
    try:
        with pytest.raises(OSError, match=f"--listen: cannot serve on 127.0.0.1:{port}; is it taken?"):
            rpc.bind(_server(), f"127.0.0.1:{port}")
    finally:
        first.stop(None).wait()


def test_a_socket_is_removed_once_and_a_port_never(tmp_path: Path) -> None:
    path = tmp_path / "experts.sock"
    _stale_socket(path)
    for _ in range(2):
        rpc.remove_listen_address(f"unix:{path}")
        assert not path.exists()
    rpc.remove_listen_address("127.0.0.1:80")


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
    with grpc.insecure_channel(f"unix:{tmp_path}/nobody.sock") as channel:
        assert not rpc.is_serving(channel, timeout_seconds=1)


INVALID = rpc.invalid_argument("sampling.top_p", "must be above 0 and at most 1, got 7")
UNFIT = rpc.failed_precondition("dtype", "the caller expects DTYPE_FLOAT32, and we have DTYPE_BFLOAT16 → ☹")
BARE = rpc.StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, "too late")


class Refusing(experts_pb2_grpc.ExpertServiceServicer):
    """Fails every call with one status."""

    def __init__(self, error: rpc.StatusError) -> None:
        self.error = error

    def Describe(  # noqa: N802
        self, request: experts_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> experts_pb2.DescribeResponse:
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
    elif expected is UNFIT:
        assert statuses.mismatch(error) == ("dtype", expected.message)
    else:
        assert statuses.details(error) == []


@pytest.mark.parametrize("error", [INVALID, UNFIT, BARE])
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


@pytest.mark.parametrize("error", [INVALID, UNFIT, BARE])
async def test_a_status_arrives_whole_from_an_asynchronous_server(tmp_path: Path, error: rpc.StatusError) -> None:
    server, address = grpc.aio.server(), f"unix:{tmp_path}/experts.sock"
    experts_pb2_grpc.add_ExpertServiceServicer_to_server(RefusingAsync(error), server)
    rpc.bind(server, address)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await experts_pb2_grpc.ExpertServiceStub(channel).Describe(experts_pb2.DescribeRequest())
            _check(caught.value, error)
    finally:
        await server.stop(None)
