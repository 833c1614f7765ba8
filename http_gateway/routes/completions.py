"""/v1/completions."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from client import AsyncClient
from fiddler.v1 import generation_pb2
from http_gateway import metrics
from http_gateway.access import CallerClient, GatewayOf
from http_gateway.errors import invalid
from http_gateway.openai.answers import Head, UsageSum
from http_gateway.openai.completion_answers import ChunkForm, CompletionParts, WholeCompletion
from http_gateway.openai.completion_request import CompletionRequest
from http_gateway.openai.translation import Translation, completion_requests
from http_gateway.responses import unless_caller_leaves
from http_gateway.routes.direct import DirectRoute
from http_gateway.routes.first_token import FirstToken
from http_gateway.routes.generating import Running, as_events, event_stream, started

router = APIRouter(tags=["Completions"], route_class=DirectRoute)
PATH = "/v1/completions"
metrics.TIME_TO_FIRST_TOKEN.labels(PATH)  # there from the start with 0, so that the first one is an increase
_PROMPTS_AT_ONCE = 8
"""Of one request, so that it does not fill the GPU service's queue alone."""
_QUEUED_RESPONSES = 64

Arrived = tuple[int, generation_pb2.GenerateResponse]
Read = Callable[[], Awaitable[Arrived | None]]
"""Returns the next message with the index of its prompt, and None at the end."""


@router.post(PATH, summary="Continue texts", response_model=None)
async def completions(body: CompletionRequest, request: Request, gateway: GatewayOf, client: CallerClient) -> Response:
    """Continues one or several prompts, in one piece or as server-sent events."""
    first_token = FirstToken(PATH)
    if len(body.prompts) > gateway.settings.max_prompts:
        raise invalid("prompt", f"has {len(body.prompts)} prompts, over the limit of {gateway.settings.max_prompts}")
    translations = completion_requests(body)
    usage = UsageSum()
    parts = [
        CompletionParts(body, prompt=index, shows_output=translation.shows_output, usage=usage)
        for index, translation in enumerate(translations)
    ]
    head = Head(f"cmpl-{uuid.uuid4().hex}", "text_completion", await gateway.served_model(client, body.model))
    timeout_seconds = gateway.settings.request_timeout_seconds
    async with AsyncExitStack() as stack:
        begun = _begun(stack, client, translations, timeout_seconds)
        read = await unless_caller_leaves(request, begun)
        if not body.stream:
            answer = WholeCompletion(head, usage)
            return JSONResponse(await unless_caller_leaves(request, _whole(read, parts, answer)))
        events = _events(read, parts, ChunkForm(head, body, usage), first_token)
        return event_stream(events, stack)


async def _whole(read: Read, parts: list[CompletionParts], answer: WholeCompletion) -> dict[str, Any]:
    while (message := await read()) is not None:
        prompt, response = message
        for part in parts[prompt].of(response):
            answer.add(part)
    return answer.content()


async def _events(
    read: Read,
    parts: list[CompletionParts],
    form: ChunkForm,
    first_token: FirstToken,
) -> AsyncGenerator[bytes, None]:
    while (message := await read()) is not None:
        prompt, response = message
        if response.HasField("progress"):
            yield as_events([form.progress(response.progress)])
        chunks = [form.of(part) for part in parts[prompt].of(response)]
        if chunks:
            first_token.seen(response)
            yield as_events(chunks)
    yield as_events(form.end())


async def _begun(
    stack: AsyncExitStack, client: AsyncClient, translations: list[Translation], timeout_seconds: float
) -> Read:
    """What reads the messages of all prompts, once the service accepted the only prompt, or answers the first.

    Raises:
        ApiError: The service refuses it.
    """
    if len(translations) == 1:
        running = await stack.enter_async_context(started(client, translations[0], timeout_seconds))
        return _of_one(running)
    responses = await stack.enter_async_context(aclosing(_of_several(client, translations, timeout_seconds)))
    return _chained(await anext(responses), responses)


def _chained(first: Arrived, responses: AsyncGenerator[Arrived, None]) -> Read:
    begun: list[Arrived] = [first]

    async def read() -> Arrived | None:
        return begun.pop() if begun else await anext(responses, None)

    return read


def _of_one(running: Running) -> Read:
    async def read() -> Arrived | None:
        response = await running.read()
        return None if response is None else (0, response)

    return read


async def _of_several(
    client: AsyncClient, translations: list[Translation], timeout_seconds: float
) -> AsyncGenerator[Arrived, None]:
    """The messages of several prompts.

    Raises:
        ApiError: A generation failed. The others are cancelled.
    """
    queue: asyncio.Queue[Arrived | Exception | None]
    queue = asyncio.Queue(_QUEUED_RESPONSES)
    permits = asyncio.Semaphore(_PROMPTS_AT_ONCE)

    async def feed(prompt: int) -> None:
        try:
            async with permits, started(client, translations[prompt], timeout_seconds) as running:
                async for response in running.responses():
                    await queue.put((prompt, response))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(feed(prompt)) for prompt in range(len(translations))]
    try:
        num_left = len(tasks)
        while num_left:
            match await queue.get():
                case None:
                    num_left -= 1
                case Exception() as error:
                    raise error
                case each:
                    yield each
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
