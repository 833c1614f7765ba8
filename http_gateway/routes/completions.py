"""/v1/completions."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from client import AsyncClient
from fiddler.v1 import generation_pb2
from http_gateway import metrics
from http_gateway.access import CallerClient, GatewayOf
from http_gateway.errors import ApiError, invalid
from http_gateway.openai.answers import DONE, Head, UsageSum, progress_of
from http_gateway.openai.completion_answers import CompletionParts, WholeCompletion
from http_gateway.openai.completion_request import CompletionRequest
from http_gateway.openai.translation import Translation, completion_requests
from http_gateway.responses import EventStream, unless_caller_leaves
from http_gateway.routes.direct import DirectRoute
from http_gateway.routes.first_token import FirstToken
from http_gateway.routes.generating import Running, as_events, closing_stream, started

router = APIRouter(tags=["Completions"], route_class=DirectRoute)
PATH = "/v1/completions"
metrics.TIME_TO_FIRST_TOKEN.labels(PATH)  # there from the start with 0, so that the first one is an increase
_PROMPTS_AT_ONCE = 8
"""Of one request, so that it does not fill the GPU service's queue alone."""
_QUEUED_RESPONSES = 64

Responses = AsyncGenerator[tuple[int, generation_pb2.GenerateResponse], None]
"""Messages, each with the index of its prompt."""


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
        responses = await unless_caller_leaves(request, begun)
        if not body.stream:
            answer = WholeCompletion(head, usage)
            return JSONResponse(await unless_caller_leaves(request, _whole(responses, parts, answer)))
        has_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = _events(responses, parts, head, usage if has_usage else None, first_token)
        return EventStream(closing_stream(events), stack.pop_all(), last=DONE)


async def _whole(responses: Responses, parts: list[CompletionParts], answer: WholeCompletion) -> dict[str, Any]:
    async for prompt, response in responses:
        for part in parts[prompt].of(response):
            answer.add(part)
    return answer.content()


async def _events(
    responses: Responses,
    parts: list[CompletionParts],
    head: Head,
    usage: UsageSum | None,
    first_token: FirstToken,
) -> AsyncGenerator[bytes, None]:
    async for prompt, response in responses:
        if response.HasField("progress"):
            yield as_events([head.of([], prompt_progress=progress_of(response.progress))])
        chunks = [
            head.of([part]) if usage is None else head.of([part], usage=None) for part in parts[prompt].of(response)
        ]
        if chunks:
            first_token.seen(response)
            yield as_events(chunks)
    if usage is not None:
        yield as_events([head.of([], usage=usage.content())])


async def _begun(
    stack: AsyncExitStack, client: AsyncClient, translations: list[Translation], timeout_seconds: float
) -> Responses:
    """The messages of all prompts as they arrive, once the service has accepted the only prompt, or answers the first.

    Raises:
        ApiError: The service refuses it.
    """
    if len(translations) == 1:
        running = await stack.enter_async_context(started(client, translations[0], timeout_seconds))
        return _of_one(running)
    responses = await stack.enter_async_context(aclosing(_of_several(client, translations, timeout_seconds)))
    return _chained(await anext(responses), responses)


async def _chained(first: tuple[int, generation_pb2.GenerateResponse], responses: Responses) -> Responses:
    yield first
    async for each in responses:
        yield each


async def _of_one(running: Running) -> Responses:
    async for response in running.responses():
        yield 0, response


async def _of_several(client: AsyncClient, translations: list[Translation], timeout_seconds: float) -> Responses:
    """The messages of several prompts.

    Raises:
        ApiError: A generation failed. The others are cancelled.
    """
    queue: asyncio.Queue[tuple[int, generation_pb2.GenerateResponse] | ApiError | Exception | None]
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
