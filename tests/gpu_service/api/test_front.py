"""What callers reach, on a real server in this process: bytes that are no message, health watches, a lost socket."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fiddler.calls.watches import MOST_WATCHES
from gpu_service.api import front as front_module
from gpu_service.api.auth import Access
from gpu_service.api.front import Front
from gpu_service.api.generations import Generations
from gpu_service.api.service import GenerationServicer
from gpu_service.settings import Settings

SERVING = health_pb2.HealthCheckResponse.SERVING
NUM_WATCHES = 1500  # gRPC cancels some calls at random where more than 1000 wait to be begun, unless told otherwise
METHODS = [
    "/fiddler.v1.GenerationService/Generate",
    "/fiddler.v1.GenerationService/GetServerInfo",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]


@dataclass(frozen=True)
class Served:
    channel: grpc.aio.Channel
    socket: Path


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(front_module, "_LOOK_SECONDS", 0.05)
    monkeypatch.delenv("FIDDLER_GPU_TOKENS", raising=False)
    path = tmp_path / "gpu.sock"
    settings = Settings(model=tmp_path, listen=f"unix:{path}")
    servicer, health_servicer = GenerationServicer(Generations()), health.aio.HealthServicer()
    await health_servicer.set("", SERVING)
    front = Front(
        settings, Access.read(settings), servicer=servicer, health_servicer=health_servicer, max_request_bytes=2**22
    )
    await front.start()
    async with grpc.aio.insecure_channel(settings.listen) as channel:
        yield Served(channel, path)
    front.remove()
    await front.stop(0)


async def _refusal(call: Any) -> grpc.StatusCode | None:
    """The status that a call ends with; None if it answers."""
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


def _watch(channel: grpc.aio.Channel, service: str = "") -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service=service))


async def _serves(channel: grpc.aio.Channel) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return bool((await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)).status == SERVING)


@pytest.mark.parametrize("method", METHODS)
async def test_bytes_that_are_no_message_are_an_invalid_argument(served: Served, method: str) -> None:
    random.seed(5)
    call = served.channel.stream_stream(method, request_serializer=bytes, response_deserializer=bytes)
    codes: list[grpc.StatusCode | None] = []
    for message in [b"\xff", b"\x0a\x7f", *(random.randbytes(random.randrange(1, 40)) for _ in range(30))]:
        answers = call(iter([message]), timeout=30)
        codes.append(await _refusal(answers))
        answers.cancel()
    assert codes[0] is codes[1] is grpc.StatusCode.INVALID_ARGUMENT
    assert grpc.StatusCode.UNKNOWN not in codes
    assert grpc.StatusCode.INTERNAL not in codes


async def test_text_that_is_not_utf_8_is_named(served: Served) -> None:
    for method, message, field in [
        ("/grpc.health.v1.Health/Check", b"\x0a\x01\xff", "service"),
        (METHODS[-1], b"\x3a\x01\xff", "list_services"),
    ]:
        call = served.channel.stream_stream(method, request_serializer=bytes, response_deserializer=bytes)
        answers = call(iter([message]), timeout=30)
        assert await _refusal(answers) is grpc.StatusCode.INVALID_ARGUMENT
        assert await answers.details() == f"{field}: must be UTF-8"


async def test_health_watches_are_bounded_and_leave_nothing(served: Served) -> None:
    before = psutil.Process().memory_info().rss
    for _ in range(2):
        calls = [_watch(served.channel, f"name {number}") for number in range(NUM_WATCHES)]
        codes = await asyncio.gather(*map(_refusal, calls))
        assert codes.count(None) == MOST_WATCHES
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == NUM_WATCHES - MOST_WATCHES
        assert await _serves(served.channel)
        for call in calls:
            call.cancel()
        await asyncio.sleep(0.5)
        del calls
    assert await _refusal(_watch(served.channel)) is None
    assert psutil.Process().memory_info().rss - before < 100 * 2**20


async def test_a_socket_that_is_lost_is_bound_again(served: Served) -> None:
    watching = _watch(served.channel)
    assert await _refusal(watching) is None
    with structlog.testing.capture_logs() as logs:
        served.socket.unlink()
        served.socket.write_text("a file in the way")
        while not logs:  # until it was tried
            await asyncio.sleep(0.02)
        served.socket.unlink()
        while not served.socket.is_socket():
            await asyncio.sleep(0.02)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"unix:{served.socket}", options) as fresh:
            assert await _serves(fresh)
    assert [(log["log_level"], log["event"]) for log in logs] == [
        ("error", "binding the socket again failed"),
        ("warning", "the socket was removed; bound again"),
    ]
    assert not watching.done()
    watching.cancel()


async def test_reflection_answers(served: Served) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel)  # type: ignore[arg-type]
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {method.split("/")[1] for method in METHODS} == names
