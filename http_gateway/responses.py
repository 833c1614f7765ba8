"""Answers that end the work behind them when the caller leaves: streams of events, and plain ones."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

_Result = TypeVar("_Result")
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies must pass events on at once


class CallerLeftError(Exception):
    """The caller closed the connection."""


async def unless_caller_leaves(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Returns what the work returns. The work is cancelled if the caller leaves, or if this call is cancelled.

    Raises:
        CallerLeftError: The caller left first.
    """
    return await _first(work, request.receive)


class EventStream(Response):
    """A stream of server-sent events. Its resources are closed with it, at the latest when the caller leaves."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], resources: AsyncExitStack, headers: dict[str, str] | None = None
    ) -> None:
        """Prepares.

        Args:
            events: Each with the empty line after it.
            resources: Closed at the end, even if no event was read.
            headers: Further headers.
        """
        super().__init__(None, headers={**_HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._resources = resources

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            with suppress(CallerLeftError):
                await _first(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _first(work: Coroutine[Any, Any, _Result], receive: Callable[[], Awaitable[Any]]) -> _Result:
    """Runs work until it ends or the caller leaves."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise CallerLeftError
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
