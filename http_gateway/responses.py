"""Answers that end the work behind them when the caller leaves: streams of events, and plain ones."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

_Result = TypeVar("_Result")
SILENCE_SECONDS = 15.0
"""Less than what proxies and clients wait for the next byte, which is 30 seconds or more."""
_COMMENT = b": working\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies must pass events on at once


class CallerLeftError(Exception):
    """The caller closed the connection."""


@asynccontextmanager
async def while_caller_stays(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block when the caller leaves. The block runs in its own task, so that nothing is added to its way.

    Raises:
        CallerLeftError: The caller left.
    """
    task = asyncio.current_task()
    assert task is not None
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        await _left(receive)
        has_left = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not has_left or task.uncancel() > 0:  # cancelled by others, too
            raise
        raise CallerLeftError from None
    finally:
        watching.cancel()


async def unless_caller_leaves(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Returns what the work returns. The work is cancelled if the caller leaves, or if this call is cancelled.

    Raises:
        CallerLeftError: The caller left first.
    """
    async with while_caller_stays(request.receive):
        return await work
    raise AssertionError  # for mypy: the block always returns or raises


class EventStream(Response):
    """A stream of server-sent events. Its resources are closed with it, at the latest when the caller leaves.

    While there is nothing to send, such as during a long prompt, a comment is sent from time to time: proxies and
    clients would take the silence for the end.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        resources: AsyncExitStack,
        *,
        last: bytes,
        failed: Callable[[Exception], bytes],
        headers: dict[str, str] | None = None,
    ) -> None:
        """Prepares.

        Args:
            events: Each with the empty line after it.
            resources: Closed at the end, even if no event was read.
            last: The event after all others.
            failed: The event that tells why there are no more, as far as that went wrong.
            headers: Further headers.
        """
        super().__init__(None, headers={**_HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._resources = resources
        self._last = last
        self._failed = failed
        self._sent_at = 0.0

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            with suppress(CallerLeftError):
                async with while_caller_stays(receive):
                    await self._send(send)

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with self._comments(send):
                try:
                    async for event in events:
                        self._sent_at = time.monotonic()
                        await send({"type": "http.response.body", "body": event, "more_body": True})
                except Exception as error:
                    await send({"type": "http.response.body", "body": self._failed(error), "more_body": True})
            await send({"type": "http.response.body", "body": self._last, "more_body": False})

    @asynccontextmanager
    async def _comments(self, send: Send) -> AsyncIterator[None]:
        """Sends a comment after each time in which nothing else was sent."""
        self._sent_at = time.monotonic()

        async def comment() -> None:
            while True:
                await asyncio.sleep(max(0.0, self._sent_at + SILENCE_SECONDS - time.monotonic()))
                if time.monotonic() - self._sent_at >= SILENCE_SECONDS:
                    self._sent_at = time.monotonic()
                    await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})

        commenting = asyncio.create_task(comment())
        try:
            yield
        finally:
            commenting.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
