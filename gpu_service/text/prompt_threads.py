"""The threads that turn prompts into tokens, since a long one takes long.

Chats have threads of their own: the checkpoint's template renders them, which may take seconds and has few processes.
So texts are never kept waiting by chats.
"""

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from gpu_service.errors import QueueFullError

_NUM_CHATS = 8
_PATIENCE_SECONDS = 10.0
_Result = TypeVar("_Result")


class PromptThreads:
    """For one event loop."""

    def __init__(self) -> None:
        self._chats = ThreadPoolExecutor(_NUM_CHATS, thread_name_prefix="chat")

    async def run(self, parse: Callable[[], _Result], *, is_chat: bool) -> _Result:
        """What `parse` returns or raises, in a thread.

        Raises:
            QueueFullError: It is a chat, and other chats have taken all threads for long.
        """
        if not is_chat:
            return await asyncio.to_thread(parse)
        arrived = time.monotonic()

        def parse_in_time() -> _Result:
            if time.monotonic() - arrived > _PATIENCE_SECONDS:
                raise QueueFullError("other chats are being rendered")
            return parse()

        context = contextvars.copy_context()  # with what the log says of the request
        return await asyncio.get_running_loop().run_in_executor(self._chats, partial(context.run, parse_in_time))
