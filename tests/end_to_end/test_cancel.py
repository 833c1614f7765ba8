"""Callers that leave, in every way and at any moment, leave nothing behind."""

import asyncio
import random
import time
from typing import Any
from urllib.request import urlopen

import grpc

from fiddler.v1 import generation_pb2, generation_pb2_grpc
from fiddler.v1.generation_pb2 import BeamSearch, GenerateRequest, SamplingParameters, TokenIds
from pair import Pair

NUM_CALLS = 640
NUM_LEAVE = 500
"""At least; the others read to the end."""
NUM_AT_ONCE = 40
SETTLE_SECONDS = 30
PROMPT = [5, 9, 11]

_GAUGES = ("fiddler_requests_running", "fiddler_requests_waiting")
_WAYS = ("cancel", "cancel", "disconnect", "deadline", "abort", "stay")


async def _leave(target: str, chance: random.Random, number: int) -> str:
    """Makes one call that ends in some way. Returns which, and what Abort answered."""
    way = chance.choice(_WAYS)
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        deadline = chance.uniform(0.001, 0.3) if way == "deadline" else None
        call = stub.Generate(_request(chance, number), timeout=deadline)
        try:
            for _ in range(chance.randint(0, 4)):
                if await call.read() is grpc.aio.EOF:
                    break
            if way == "cancel":
                call.cancel()
            elif way == "disconnect":
                await channel.close(None)
            elif way == "abort":
                # the request may have ended by then, or not have been read yet; otherwise its stream ends
                answer = await stub.Abort(generation_pb2.AbortRequest(request_id=f"request-{number}"))
                call.cancel()
                return f"{way} {answer.aborted}"
            elif way == "stay":
                while await call.read() is not grpc.aio.EOF:
                    pass
                assert await call.code() is grpc.StatusCode.OK
        except (grpc.aio.AioRpcError, asyncio.CancelledError, grpc.aio.UsageError):
            if way == "stay":
                raise
    return way


def _request(chance: random.Random, number: int) -> GenerateRequest:
    """One generation, three sampled ones, or beams, of a prompt with a shared beginning or a long one of its own."""
    ids = chance.choice([PROMPT, [7] * 40, [chance.randrange(3, 300) for _ in range(100)]])
    message = GenerateRequest(
        token_ids=TokenIds(ids=ids), max_tokens=chance.randint(1, 30), request_id=f"request-{number}"
    )
    kind = chance.choice(["one", "one", "generations", "beams"])
    if kind == "generations":
        message.n = 3
        message.sampling.CopyFrom(SamplingParameters(temperature=1.0))
    elif kind == "beams":
        message.beam_search.CopyFrom(BeamSearch(num_beams=4, stream_best=True))
    return message


async def _leave_often(target: str) -> list[str]:
    chance, at_once = random.Random(8), asyncio.Semaphore(NUM_AT_ONCE)

    async def one(number: int) -> str:
        async with at_once:
            return await _leave(target, random.Random(chance.random()), number)

    return await asyncio.gather(*(one(number) for number in range(NUM_CALLS)))


def test_500_callers_that_leave_free_every_slot(pair: Pair) -> None:
    with grpc.insecure_channel(pair.target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        expected = _tokens(stub)
        ways = asyncio.run(_leave_often(pair.target))
        assert set(ways) == {*_WAYS, "abort True", "abort False"} - {"abort"}
        assert sum(way != "stay" for way in ways) >= NUM_LEAVE
        held = _held(stub, pair.gpu_metrics_port)
        give_up = time.monotonic() + SETTLE_SECONDS
        while any(held.values()) and time.monotonic() < give_up:
            time.sleep(0.05)
            held = _held(stub, pair.gpu_metrics_port)
        assert not any(held.values()), held
        assert _tokens(stub) == expected


def _tokens(stub: generation_pb2_grpc.GenerationServiceStub) -> list[int]:
    call = stub.Generate(GenerateRequest(token_ids=TokenIds(ids=PROMPT), max_tokens=20))
    return [token for message in call for token in message.chunk.token_ids]


def _held(stub: generation_pb2_grpc.GenerationServiceStub, metrics_port: int) -> dict[str, int]:
    """What requests occupy."""
    info = stub.GetServerInfo(generation_pb2.GetServerInfoRequest())
    with urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as response:
        lines = [line.split() for line in response.read().decode().splitlines() if line.startswith("fiddler_requests_")]
    gauges = {line[0]: int(float(line[1])) for line in lines if line[0] in _GAUGES}
    assert len(gauges) == len(_GAUGES)
    return gauges | {
        "running": info.running_requests,
        "waiting": info.waiting_requests,
        "slots": info.used_slots,
        "bytes": info.used_kv_bytes,
    }
