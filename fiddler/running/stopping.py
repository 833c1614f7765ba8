"""What a process waits for until it is to end: a signal, or a thread that gives up."""

import queue


class Stop:
    """An event that a signal handler may set while the main thread waits for it.

    threading.Event is none: its `set` takes a lock that its `wait` holds for moments, in the very thread that the
    handler interrupts, and both then wait for ever. A SimpleQueue's `put` may interrupt its own `get`.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Ends the wait. For any thread, and for signal handlers."""
        self._is_set = True
        self._woken.put(None)

    def is_set(self) -> bool:
        """Whether it was set. For any thread."""
        return self._is_set

    def wait(self) -> None:
        """Waits until it is set. For one thread, once."""
        self._woken.get()
