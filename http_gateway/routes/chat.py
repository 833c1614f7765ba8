"""/v1/chat/completions."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from http_gateway import metrics
from http_gateway.access import CallerClient, GatewayOf
from http_gateway.openai.answers import Head
from http_gateway.openai.chat_answers import ChatChunks, WholeChat
from http_gateway.openai.chat_request import ChatRequest
from http_gateway.openai.translation import chat_request
from http_gateway.responses import unless_caller_leaves
from http_gateway.routes.direct import DirectRoute
from http_gateway.routes.first_token import FirstToken
from http_gateway.routes.generating import Running, as_events, event_stream, started

router = APIRouter(tags=["Chat"], route_class=DirectRoute)
PATH = "/v1/chat/completions"
metrics.TIME_TO_FIRST_TOKEN.labels(PATH)  # there from the start with 0, so that the first one is an increase


@router.post(PATH, summary="Answer a conversation", response_model=None)
async def chat_completions(body: ChatRequest, request: Request, gateway: GatewayOf, client: CallerClient) -> Response:
    """Answers the last message of a conversation, in one piece or as server-sent events."""
    first_token = FirstToken(PATH)
    translation = chat_request(body)
    model = await gateway.served_model(client, body.model)
    async with AsyncExitStack() as stack:
        generation = started(client, translation, gateway.settings.request_timeout_seconds)
        running = await unless_caller_leaves(request, stack.enter_async_context(generation))
        head = Head(f"chatcmpl-{running.id}", "chat.completion.chunk" if body.stream else "chat.completion", model)
        headers = {"x-request-id": running.id}
        if not body.stream:
            return JSONResponse(
                await unless_caller_leaves(request, _whole(running, WholeChat(head, body))), 200, headers
            )
        events = _events(running, ChatChunks(head, body), first_token)
        return event_stream(events, stack, headers)


async def _whole(running: Running, answer: WholeChat) -> dict[str, Any]:
    async for response in running.responses():
        answer.add(response)
    return answer.content()


async def _events(running: Running, answer: ChatChunks, first_token: FirstToken) -> AsyncGenerator[bytes, None]:
    yield as_events(answer.begin())
    while (response := await running.read()) is not None:
        if part := as_events(answer.of(response)):
            first_token.seen(response)
            yield part
    yield as_events(answer.end())
