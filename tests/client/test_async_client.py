"""The asynchronous client. test_client.py tests what it shares with the synchronous one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from client import (
    AsyncClient,
    BusyError,
    ClientError,
    Complete,
    DeadlineError,
    GenerationCancelledError,
    GenerationChunk,
    InvalidRequestError,
    ServerError,
    UnavailableError,
)
from fiddler import rpc
from fiddler.v1 import generation_pb2
from tests.support.fake_server import PIECES, FakeServer, chunk, complete, fail_with, hang_after, serving

TIMEOUT_SECONDS = 10.0


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target) as client:
        yield client


async def was_cancelled(server: FakeServer) -> bool:
    return await asyncio.to_thread(server.service.cancelled.wait, TIMEOUT_SECONDS)


async def test_a_generation_is_chunks_and_then_one_complete(server: FakeServer, client: AsyncClient) -> None:
    async with client.generate("a prompt", max_tokens=5) as generation:
        events = [event async for event in generation]
    *chunks, end = events
    assert chunks == [GenerationChunk(0, (token_id,), text) for token_id, text in enumerate(PIECES)]
    assert isinstance(end, Complete)
    assert generation.complete == end
    assert server.service.requests[0].text == "a prompt"
    assert server.service.requests[0].max_tokens == 5


async def test_text_reads_to_the_end(client: AsyncClient) -> None:
    generation = client.generate("a prompt")
    assert await generation.text() == "".join(PIECES)
    assert generation.complete is not None


async def test_responses_are_the_messages_of_the_proto(client: AsyncClient) -> None:
    responses = [response async for response in client.generate("a prompt").responses()]
    assert responses[0] == chunk("Once", 0)
    assert responses[-1] == complete()


async def test_a_slow_reader_gets_every_message(server: FakeServer, client: AsyncClient) -> None:
    server.service.script = lambda request, context: iter([*(chunk(str(i), i) for i in range(300)), complete(300)])
    generation = client.generate("a prompt")
    await asyncio.sleep(0.3)
    assert await generation.text() == "".join(map(str, range(300)))


async def test_a_client_may_be_made_before_the_loop_runs(server: FakeServer) -> None:
    def in_a_loop_of_its_own() -> str:
        client = AsyncClient(server.target)

        async def ask() -> str:
            async with client:
                return await client.generate("a prompt").text()

        return asyncio.run(ask())

    assert await asyncio.to_thread(in_a_loop_of_its_own) == "".join(PIECES)


async def test_generations_run_side_by_side(client: AsyncClient) -> None:
    texts = await asyncio.gather(*(client.generate("a prompt").text() for _ in range(4)))
    assert texts == ["".join(PIECES)] * 4


async def test_the_field_that_the_server_refuses_is_named(server: FakeServer, client: AsyncClient) -> None:
    server.service.script = fail_with(rpc.invalid_argument("max_tokens", "must be above 0, got 0"))
    with pytest.raises(InvalidRequestError, match="max_tokens: must be above 0, got 0") as raised:
        await client.generate("a prompt", max_tokens=0).text()
    assert raised.value.field == "max_tokens"


async def test_what_cannot_be_sent_is_named(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        client.generate("a prompt", seed=-1)
    assert raised.value.field == "sampling.seed"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, BusyError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineError),
        (grpc.StatusCode.CANCELLED, GenerationCancelledError),
        (grpc.StatusCode.INTERNAL, ServerError),
    ],
)
async def test_each_status_has_its_error(
    server: FakeServer, client: AsyncClient, code: grpc.StatusCode, kind: type[ClientError]
) -> None:
    server.service.script = fail_with(rpc.StatusError(code, "so it is"), chunk("first", 1))
    generation = client.generate("a prompt")
    assert await anext(generation) == GenerationChunk(0, (1,), "first")
    with pytest.raises(ClientError, match="so it is") as raised:
        await anext(generation)
    assert type(raised.value) is kind
    assert raised.value.code is code
    with pytest.raises(kind):
        await anext(generation)


async def test_a_stream_that_ends_too_early_is_no_success(server: FakeServer, client: AsyncClient) -> None:
    server.service.script = lambda request, context: iter([chunk("first", 1)])
    with pytest.raises(ServerError, match="before the generation was complete"):
        await client.generate("a prompt").text()


async def test_leaving_early_cancels_on_the_server(server: FakeServer, client: AsyncClient) -> None:
    server.service.script = hang_after(chunk("first", 1))
    async with client.generate("a prompt") as generation:
        await anext(generation)
    assert await was_cancelled(server)
    with pytest.raises(GenerationCancelledError):
        await anext(generation)


async def test_cancel_wakes_the_reader(server: FakeServer, client: AsyncClient) -> None:
    server.service.script = hang_after(chunk("first", 1))
    generation = client.generate("a prompt")
    await anext(generation)
    asyncio.get_running_loop().call_later(0.1, generation.cancel)
    with pytest.raises(GenerationCancelledError) as raised:
        await anext(generation)
    assert raised.value.code is grpc.StatusCode.CANCELLED
    assert await was_cancelled(server)


async def test_cancelling_the_reading_task_cancels_on_the_server(server: FakeServer, client: AsyncClient) -> None:
    server.service.script = hang_after(chunk("first", 1))
    generation = client.generate("a prompt")
    await anext(generation)
    # asyncio.timeout turns only its own cancellation into a TimeoutError.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await anext(generation)
    assert await was_cancelled(server)


async def test_closing_the_client_cancels_its_generations(server: FakeServer) -> None:
    server.service.script = hang_after(chunk("first", 1))
    async with AsyncClient(server.target) as client:
        generation = client.generate("a prompt")
        await anext(generation)
    assert await was_cancelled(server)
    with pytest.raises(GenerationCancelledError):
        await anext(generation)


async def test_the_timeout_ends_a_generation(server: FakeServer, client: AsyncClient) -> None:
    server.service.script = hang_after()
    with pytest.raises(DeadlineError):
        await client.generate("a prompt", timeout=0.3).text()
    assert await was_cancelled(server)


async def test_infos(client: AsyncClient) -> None:
    assert (await client.model_info()).dtype == "bfloat16"
    assert (await client.server_info(timeout=TIMEOUT_SECONDS)).version == "0.1.0"


async def test_where_nobody_listens_calls_fail_at_once(tmp_path: Path) -> None:
    async with AsyncClient(f"unix:{tmp_path}/nobody") as client:
        with pytest.raises(UnavailableError):
            await client.generate("a prompt").text()
        with pytest.raises(UnavailableError):
            await client.model_info()


async def test_a_client_told_to_wait_waits_for_the_server(tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/late"
    async with AsyncClient(target, wait_for_ready=True) as client:
        generation = client.generate("a prompt", timeout=TIMEOUT_SECONDS)
        with serving(target):
            assert await generation.text() == "".join(PIECES)


async def test_a_closed_client_says_so(server: FakeServer) -> None:
    client = AsyncClient(server.target)
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.generate("a prompt")
    with pytest.raises(RuntimeError, match="closed"):
        await client.server_info()


async def test_a_request_of_the_proto_is_sent_as_it_is(server: FakeServer, client: AsyncClient) -> None:
    request = generation_pb2.GenerateRequest(text="a prompt", max_tokens=3, request_id="mine")
    assert await client.send(request, timeout=5).text() == "".join(PIECES)
    assert server.service.requests == [request]
    assert server.service.deadlines[0] <= 5.5  # gRPC rounds it up


async def test_a_client_with_another_token_shares_the_connection(server: FakeServer, client: AsyncClient) -> None:
    other = client.with_token("theirs")
    await other.generate("a prompt").text()
    await client.generate("a prompt").text()
    assert [metadata.get("authorization") for metadata in server.service.metadata] == ["Bearer theirs", None]
    assert other._channel is client._channel
    with pytest.raises(InvalidRequestError, match=r"^token: must be visible ASCII"):
        client.with_token("two words")
