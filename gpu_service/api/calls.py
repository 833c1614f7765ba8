"""The calls that generations are streamed to: how many there are, and the end of one that its reader has deserted."""

import asyncio
import contextlib
from typing import Any

import grpc

from fiddler import rpc

_PATIENCE_SECONDS = 5.0
_STATUS_SECONDS = 0.1

Context = grpc.aio.ServicerContext[Any, Any]


class Call:
    """A call under way, as its handler's task made it known."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._handler = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._ending: asyncio.Task[None] | None = None
        self.is_deserted = False
        """Whether `desert` was called."""

    def desert(self) -> None:
        """Has the call end with RESOURCE_EXHAUSTED where its handler cannot end it, since it waits for its reader.

        May be called from any thread. A reader that is only slow gets what is left, and the status from the handler.
        """
        self.is_deserted = True
        self._loop.call_soon_threadsafe(self._desert)

    def _desert(self) -> None:
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        assert self._handler is not None
        await asyncio.wait({self._handler}, timeout=_PATIENCE_SECONDS)
        if self._handler.done():
            return
        # The status goes behind what was not read, which may be never: it is left to gRPC, which needs no handler for
        # that. Cancelling the handler alone would leave a reader that comes back to wait for ever.
        status = rpc.StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many messages were not read")
        with contextlib.suppress(TimeoutError, grpc.aio.AbortError, grpc.aio.UsageError):
            await asyncio.wait_for(status.abort_async(self._context), _STATUS_SECONDS)
        self._handler.cancel()


class Calls:
    """All calls under way, in one event loop."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._none_left = asyncio.Event()
        self._none_left.set()

    def add(self, context: Context) -> Call:
        """Counts a call until it is over. To be called by its handler."""
        self._num_calls += 1
        self._none_left.clear()
        # its type stub asks for a class that is not there
        context.add_done_callback(lambda _: self._over())  # type: ignore[arg-type]
        return Call(context)

    async def wait_until_none(self) -> None:
        """Returns when no call is under way."""
        await self._none_left.wait()

    def _over(self) -> None:
        self._num_calls -= 1
        if not self._num_calls:
            self._none_left.set()
