"""The gRPC calls that generations are streamed to: counts them, and ends one whose caller has stopped reading."""

import asyncio
import contextlib
import weakref
from typing import Any

import grpc

from fiddler import rpc

_PATIENCE_SECONDS = 5.0
_STATUS_SECONDS = 0.1

Context = grpc.aio.ServicerContext[Any, Any]


class Call:
    """A call under way. Made in its handler's task."""

    def __init__(self, context: Context) -> None:
        self._context = context
        handler = asyncio.current_task()
        assert handler is not None
        self._handler = weakref.ref(handler)  # a cancelled task keeps the frames of its handler, which know this call
        self._loop = asyncio.get_running_loop()
        self._ending: asyncio.Task[None] | None = None
        self.is_deserted = False
        """Whether `desert` was called."""

    def desert(self) -> None:
        """Ends the call with RESOURCE_EXHAUSTED if its handler cannot, because it waits for the caller to read.

        For any thread. A caller that is only slow receives the remaining messages, and the status from the handler.
        """
        self.is_deserted = True
        self._loop.call_soon_threadsafe(self._desert)

    def _desert(self) -> None:
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        if (handler := self._handler()) is None:
            return
        await asyncio.wait({handler}, timeout=_PATIENCE_SECONDS)
        if handler.done():
            return
        # gRPC sends the status after the unread messages, which may be never, and needs no handler to do so. Cancelling
        # the handler without a status would leave a caller that reads again waiting for ever.
        status = rpc.StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many messages were not read")
        with contextlib.suppress(TimeoutError, grpc.aio.AbortError, grpc.aio.UsageError):
            await asyncio.wait_for(status.abort_async(self._context), _STATUS_SECONDS)
        handler.cancel()


class Calls:
    """All calls under way, in one event loop."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._none_left = asyncio.Event()
        self._none_left.set()

    def add(self, context: Context) -> Call:
        """Counts a call until it is over. Its handler calls this."""
        self._num_calls += 1
        self._none_left.clear()
        # its type stub requires a class that does not exist
        context.add_done_callback(lambda _: self._over())  # type: ignore[arg-type]
        return Call(context)

    async def wait_until_none(self) -> None:
        """Returns once no call is under way."""
        await self._none_left.wait()

    def _over(self) -> None:
        self._num_calls -= 1
        if not self._num_calls:
            self._none_left.set()
