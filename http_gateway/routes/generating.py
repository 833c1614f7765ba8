"""What the endpoints that generate share: the start of a generation, and errors within a stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import structlog

from client import AsyncClient, AsyncGeneration, ClientError
from fiddler.v1 import generation_pb2
from http_gateway import metrics
from http_gateway.errors import ApiError, api_error
from http_gateway.openai.answers import event
from http_gateway.openai.translation import Translation

_log = structlog.get_logger("http_gateway")


class Running:
    """A generation that the GPU service has accepted.

    Attributes:
        id: The request's name at the GPU service.
    """

    def __init__(self, generation: AsyncGeneration, translation: Translation) -> None:
        self._generation = generation
        self._translation = translation
        self._responses = generation.responses()
        self._first: generation_pb2.GenerateResponse | None = None
        self.id = ""

    async def start(self) -> None:
        """Waits until the service accepts the request, which comes before its computation.

        Raises:
            ApiError: It refuses it.
        """
        try:
            request_id = await self._generation.request_id()
            if request_id is None:  # refused, or to be retried: reading says
                self._first = await anext(self._responses, None)
                request_id = await self._generation.request_id()
        except ClientError as error:
            raise api_error(error, self._translation.names.param_of) from error
        self.id = request_id or ""

    async def responses(self) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """The messages.

        Raises:
            ApiError: The generation failed.
        """
        if self._first is not None:
            yield self._first
        try:
            async for response in self._responses:
                yield response
        except ClientError as error:
            raise api_error(error, self._translation.names.param_of) from error

    def cancel(self) -> None:
        """Ends the generation on the server."""
        self._generation.cancel()


@asynccontextmanager
async def started(client: AsyncClient, translation: Translation, timeout_seconds: float) -> AsyncIterator[Running]:
    """Starts a generation, which ends with the block.

    Raises:
        ApiError: The service refuses the request.
    """
    try:
        generation = client.send(translation.request, timeout=timeout_seconds or None)
    except ClientError as error:
        raise api_error(error, translation.names.param_of) from error
    async with generation:
        running = Running(generation, translation)
        await running.start()
        yield running


def as_events(contents: Iterable[dict[str, Any]]) -> bytes:
    """Several objects as one piece of a stream."""
    return b"".join(map(event, contents))


async def closing_stream(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """A stream whose errors are events, since the status has been sent."""
    metrics.OPEN_STREAMS.inc()
    try:
        async for part in events:
            yield part
    except ApiError as error:
        yield event(error.content)
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except Exception:
        _log.exception("stream failed")
        yield event(ApiError(500, "the gateway failed").content)
    finally:
        await events.aclose()
        metrics.OPEN_STREAMS.dec()
