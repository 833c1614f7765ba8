"""Calls are counted until they are over, and a call whose reader never returns is ended from outside."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from fiddler.v1 import generation_pb2, generation_pb2_grpc
from fiddler.v1.generation_pb2 import Chunk, GenerateResponse
from gpu_service.api import calls
from gpu_service.api.calls import Call, Calls

WAIT_SECONDS = 20
LARGE = GenerateResponse(chunk=Chunk(text="x" * 10_000))


class Endless(generation_pb2_grpc.GenerationServiceServicer):
    """Sends for as long as its caller reads.

    Attributes:
        calls: Its calls.
        call: The last one.
        num_sent: How many messages were taken from it.
    """

    def __init__(self) -> None:
        self.calls = Calls()
        self.call: Call | None = None
        self.num_sent = 0

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[GenerateResponse]:  # noqa: N802
        self.call = self.calls.add(context)
        while True:
            yield LARGE
            self.num_sent += 1

    async def stall(self) -> Call:
        """Waits until the call is blocked by its reader."""
        before = -1
        while self.num_sent != before:
            before = self.num_sent
            await asyncio.sleep(0.3)
        assert self.call is not None
        return self.call


@pytest.fixture
async def served() -> AsyncIterator[tuple[Endless, Any]]:
    servicer, server = Endless(), grpc.aio.server()  # type: ignore[abstract]
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.http2.bdp_probe", 0)]) as channel:
        yield servicer, generation_pb2_grpc.GenerationServiceStub(channel)
    await server.stop(None)


async def read_to_the_end(stream: Any) -> int:
    """How many messages there are still."""
    num_read = 0
    while await stream.read() is not grpc.aio.EOF:
        num_read += 1
    return num_read


async def test_a_deserted_call_is_over_although_nobody_reads_and_who_comes_back_is_told(
    served: tuple[Endless, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_PATIENCE_SECONDS", 0.1)
    servicer, stub = served
    stream = stub.Generate(generation_pb2.GenerateRequest())
    await stream.read()
    call = await servicer.stall()
    assert not call.is_deserted
    await asyncio.to_thread(call.desert)  # as the engine's thread does
    assert call.is_deserted
    await asyncio.wait_for(servicer.calls.wait_until_none(), WAIT_SECONDS)
    with pytest.raises(grpc.aio.AioRpcError, match="too many messages were not read") as raised:
        await asyncio.wait_for(read_to_the_end(stream), WAIT_SECONDS)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_reader_that_is_only_slow_is_let_read(
    served: tuple[Endless, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_PATIENCE_SECONDS", WAIT_SECONDS)
    servicer, stub = served
    stream = stub.Generate(generation_pb2.GenerateRequest())
    await stream.read()
    call = await servicer.stall()
    sent_before = servicer.num_sent
    call.desert()
    for _ in range(sent_before + 10):
        assert await asyncio.wait_for(stream.read(), WAIT_SECONDS) == LARGE
    stream.cancel()
    await asyncio.wait_for(servicer.calls.wait_until_none(), WAIT_SECONDS)


async def test_calls_are_counted_until_they_are_over(served: tuple[Endless, Any]) -> None:
    servicer, stub = served
    await asyncio.wait_for(servicer.calls.wait_until_none(), WAIT_SECONDS)
    streams = [stub.Generate(generation_pb2.GenerateRequest()) for _ in range(3)]
    for stream in streams:
        await stream.read()
    over = asyncio.create_task(servicer.calls.wait_until_none())
    for stream in streams:
        assert not (await asyncio.wait({over}, timeout=0.1))[0]
        stream.cancel()
    await asyncio.wait_for(over, WAIT_SECONDS)
