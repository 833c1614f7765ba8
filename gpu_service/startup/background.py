"""Runs a long function in a thread next to an event loop."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn, TypeVar

from fiddler import logs
from gpu_service.errors import panics_as_errors

_Result = TypeVar("_Result")
_running: set[threading.Thread] = set()


async def in_thread(function: Callable[[], _Result]) -> _Result:
    """Runs a long function in a thread that does not delay the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run_it() -> None:
        result, failure = None, None
        try:
            with panics_as_errors():
                result = function()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, failure)
        _running.discard(threading.current_thread())

    thread = threading.Thread(target=run_it, daemon=True)
    _running.add(thread)
    thread.start()
    return await future


def leave(status: int) -> NoReturn:
    """Ends the process, also while a function runs in a thread.

    The interpreter would end such a thread when it comes back from native code, which C++ code above it answers by
    aborting the process.
    """
    if _running:
        logs.flush()
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
