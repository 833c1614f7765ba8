"""Retries: only before the first message of an answer, and within the call's timeout."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from client import AsyncClient, BusyError, Client, ClientError, GenerationCancelledError, UnavailableError
from fiddler import rpc
from tests.support.fake_server import (
    PIECES,
    FakeServer,
    Script,
    chunk,
    fail_with,
    hang_after,
    in_turn,
    serving,
    taken,
    tell_a_story,
)

STORY = "".join(PIECES)
GONE = rpc.StatusError(grpc.StatusCode.UNAVAILABLE, "the service is stopping")


def busy(retry_seconds: float | None) -> rpc.StatusError:
    delay = Duration()
    delay.FromMilliseconds(round(1000 * (retry_seconds or 0)))
    details = [] if retry_seconds is None else [error_details_pb2.RetryInfo(retry_delay=delay)]
    return rpc.StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "256 requests wait already", *details)


async def text(server: FakeServer, kind: str, *, retry_busy: bool = False, timeout: float = 10) -> str:
    if kind == "sync":
        with Client(server.target, retry_busy=retry_busy) as client:
            return await asyncio.to_thread(client.generate("a prompt", timeout=timeout).text)
    async with AsyncClient(server.target, retry_busy=retry_busy) as client:
        return await client.generate("a prompt", timeout=timeout).text()


both = pytest.mark.parametrize("kind", ["sync", "async"])
before_and_after_metadata = pytest.mark.parametrize("wrap", [lambda script: script, taken], ids=["new", "taken"])


@both
@before_and_after_metadata
async def test_unavailable_before_the_first_message_is_asked_again(
    server: FakeServer, kind: str, wrap: Callable[[Script], Script]
) -> None:
    server.service.script = in_turn(wrap(fail_with(GONE)), wrap(fail_with(GONE)), tell_a_story)
    assert await text(server, kind) == STORY
    assert len(server.service.requests) == 3
    assert all(seconds < 11 for seconds in server.service.deadlines), "the caller's timeout, as gRPC rounds it"


@both
@before_and_after_metadata
async def test_a_server_that_stays_unavailable_is_asked_four_times(
    server: FakeServer, kind: str, wrap: Callable[[Script], Script]
) -> None:
    server.service.script = wrap(fail_with(GONE))
    with pytest.raises(UnavailableError, match="stopping"):
        await text(server, kind)
    assert len(server.service.requests) == 4


@both
async def test_a_new_call_that_a_stopping_server_drops_is_asked_again(server: FakeServer, kind: str) -> None:
    dropped = rpc.StatusError(grpc.StatusCode.CANCELLED, "")
    server.service.script = in_turn(fail_with(dropped), tell_a_story)
    assert await text(server, kind) == STORY
    server.service.script = fail_with(dropped)
    with pytest.raises(UnavailableError, match="may be stopping"):
        await text(server, kind)


@both
async def test_questions_are_asked_again_as_well(kind: str, tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/late"
    asked: asyncio.Task[str]
    if kind == "sync":
        asked = asyncio.create_task(asyncio.to_thread(lambda: Client(target).model_info().name))
    else:
        asked = asyncio.create_task(_name(target))
    await asyncio.sleep(0.05)
    with serving(target):
        assert await asked == "demo"


async def _name(target: str) -> str:
    async with AsyncClient(target) as client:
        return (await client.model_info()).name


@both
async def test_unavailable_after_the_first_message_stands(server: FakeServer, kind: str) -> None:
    server.service.script = taken(fail_with(GONE, chunk("first", 1)))
    with pytest.raises(UnavailableError, match="stopping"):
        await text(server, kind)
    assert len(server.service.requests) == 1


@before_and_after_metadata
def test_a_client_told_not_to_asks_once(server: FakeServer, wrap: Callable[[Script], Script]) -> None:
    server.service.script = wrap(fail_with(GONE))
    with Client(server.target, retry_unavailable=False) as client, pytest.raises(UnavailableError):
        client.generate("a prompt").text()
    assert len(server.service.requests) == 1


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED]
)
@before_and_after_metadata
def test_other_errors_stand(server: FakeServer, code: grpc.StatusCode, wrap: Callable[[Script], Script]) -> None:
    server.service.script = wrap(fail_with(rpc.StatusError(code, "no")))
    with Client(server.target, retry_busy=True) as client, pytest.raises(ClientError):
        client.generate("a prompt").text()
    assert len(server.service.requests) == 1


def test_a_long_prompt_is_asked_again_as_well(server: FakeServer) -> None:
    server.service.script = in_turn(fail_with(GONE), tell_a_story)
    with Client(server.target) as client:
        assert client.generate("a" * 2**20).text() == STORY


@both
async def test_a_busy_server_stands_unless_asked_for(server: FakeServer, kind: str) -> None:
    server.service.script = fail_with(busy(0.25))
    with pytest.raises(BusyError, match="wait already") as raised:
        await text(server, kind)
    assert raised.value.retry_after_seconds == 0.25
    assert len(server.service.requests) == 1


@both
async def test_a_busy_server_is_asked_when_it_says(server: FakeServer, kind: str) -> None:
    server.service.script = in_turn(*[fail_with(busy(0.05))] * 5, taken(tell_a_story))
    started = time.monotonic()
    assert await text(server, kind, retry_busy=True) == STORY
    assert time.monotonic() - started >= 5 * 0.05
    assert len(server.service.requests) == 6


@pytest.mark.parametrize("retry_seconds", [None, 60.0])
@both
async def test_a_busy_server_that_says_never_or_too_late_stands(
    server: FakeServer, kind: str, retry_seconds: float | None
) -> None:
    server.service.script = fail_with(busy(retry_seconds))
    with pytest.raises(BusyError) as raised:
        await text(server, kind, retry_busy=True, timeout=5)
    assert raised.value.retry_after_seconds == retry_seconds
    assert len(server.service.requests) == 1


def test_a_slow_reader_is_not_asked_again(server: FakeServer) -> None:
    server.service.script = fail_with(busy(0.01), chunk("first", 1))
    with Client(server.target, retry_busy=True) as client, pytest.raises(BusyError):
        client.generate("a prompt").text()
    assert len(server.service.requests) == 1


def test_cancelling_ends_the_wait(server: FakeServer) -> None:
    server.service.script = fail_with(busy(3600))
    with Client(server.target, retry_busy=True) as client:
        generation = client.generate("a prompt")
        threading.Timer(0.3, generation.cancel).start()
        with pytest.raises(GenerationCancelledError):
            generation.text()


async def test_cancelling_ends_the_asynchronous_wait(server: FakeServer) -> None:
    server.service.script = fail_with(busy(3600))
    async with AsyncClient(server.target, retry_busy=True) as client:
        generation = client.generate("a prompt")
        asyncio.get_running_loop().call_later(0.3, generation.cancel)
        with pytest.raises(GenerationCancelledError):
            await generation.text()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.generate("a prompt").text()


def test_a_client_that_is_closed_asks_no_more(server: FakeServer) -> None:
    server.service.script = in_turn(fail_with(busy(0.3)), hang_after())
    client = Client(server.target, retry_busy=True)
    generation = client.generate("a prompt")
    threading.Timer(0.1, client.close).start()
    with pytest.raises(GenerationCancelledError):
        generation.text()
    assert len(server.service.requests) == 1
