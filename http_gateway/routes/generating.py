"""What the endpoints that generate share: the start of a generation, and errors within a stream."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog

from client import AsyncClient, AsyncGeneration, ClientError
from fiddler.v1 import generation_pb2
from http_gateway import metrics
from http_gateway.errors import ApiError, api_error
from http_gateway.openai.answers import DONE, event
from http_gateway.openai.translation import Translation
from http_gateway.responses import EventStream

_log = structlog.get_logger("http_gateway")


class Running:
    """A generation that the GPU service has accepted.

    Attributes:
        id: The request's name at the GPU service.
    """

    def __init__(self, generation: AsyncGeneration, translation: Translation) -> None:
        self._generation = generation
        self._translation = translation
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
                self._first = await self._generation.read()
                request_id = await self._generation.request_id()
        except ClientError as error:
            raise api_error(error, self._translation.names.param_of) from error
        self.id = request_id or ""

    async def responses(self) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """The messages.

        Raises:
            ApiError: The generation failed.
        """
        while (response := await self.read()) is not None:
            yield response

    async def read(self) -> generation_pb2.GenerateResponse | None:
        """The next message; None at the end.

        Raises:
            ApiError: The generation failed.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return await self._generation.read()
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


def event_stream(
    events: AsyncGenerator[bytes, None], stack: AsyncExitStack, headers: dict[str, str] | None = None
) -> EventStream:
    """The answer that streams events. It takes over what the stack holds."""
    stack.enter_context(metrics.OPEN_STREAMS.track_inprogress())
    return EventStream(events, stack.pop_all(), last=DONE, failed=_failure, headers=headers)


def _failure(error: Exception) -> bytes:
    """The event that tells an error, since the status has been sent."""
    if isinstance(error, ApiError):
        return event(error.content)
    _log.error("stream failed", exc_info=error)
    return event(ApiError(500, "the gateway failed").content)
