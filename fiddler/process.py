"""Prepares a service's process before grpc and torch are imported, which read the environment once, on import."""

import ctypes
import faulthandler
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from fiddler.running.parent import end_with_parent

_M_MMAP_THRESHOLD = -3  # <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_ARENA_MAX = -8
_HEAP_BYTES = 256 * 2**20  # above the largest message
_REUSE_BYTES = 24 * 2**20  # above what a message of a long prompt takes
_NUM_ARENAS = 4
_KEEP_BYTES = 32 * 2**20
_STANDARD_ERROR = 2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_LOG_SECONDS = 1.0


def prepare() -> None:
    """Sets defaults that make messages between the services fast. What the environment already sets is kept.

    The measurements are in docs/experiments.md.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    end_with_parent()
    # a file of weights that is cut off while it is mapped ends the process by SIGBUS: it shall not go without a word
    if not faulthandler.is_enabled():
        faulthandler.enable(_STANDARD_ERROR, all_threads=False)
    # gRPC's older event loop wakes fewer threads per message than its EventEngine
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
    # gRPC would log what a status or an exception already reports
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # OpenMP threads that spin after a parallel region take cores from the other service
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # glibc would return the memory of each large message to the kernel, and fault it in again for the next one. Each
    # of its arenas keeps as much as _REUSE_BYTES, and it would make eight arenas for each core.
    libc = ctypes.CDLL(None)
    # an older glibc may refuse the first option, and the second one alone would make things worse
    if hasattr(libc, "mallopt") and libc.mallopt(_M_MMAP_THRESHOLD, _HEAP_BYTES):
        libc.mallopt(_M_TRIM_THRESHOLD, _REUSE_BYTES)
        if "MALLOC_ARENA_MAX" not in os.environ:
            libc.mallopt(_M_ARENA_MAX, _NUM_ARENAS)


class MemoryKeeper:
    """Returns to the system what the process has freed, if that may be much: `look` is called every few seconds."""

    def __init__(self) -> None:
        """Nothing is returned yet."""
        self._libc = ctypes.CDLL(None)
        self._least_bytes: int | None = None

    def look(self) -> None:
        """Returns freed memory if the process uses 32 MiB more than the least that it was ever seen to use.

        Nothing tells how much of that is free; if none is, this takes less than a millisecond.
        """
        least = self._least_bytes
        if (least is None or own_bytes() > least + _KEEP_BYTES) and hasattr(self._libc, "malloc_trim"):
            self._libc.malloc_trim(0)
        self._least_bytes = own_bytes() if least is None else min(least, own_bytes())


def own_bytes() -> int:
    """Bytes of this process's memory that are in use, without pages of files such as the mapped weights."""
    with open("/proc/self/statm") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * _PAGE_BYTES


def exit_after(seconds: float, status: int, log: Callable[[], None]) -> threading.Timer:
    """Ends the process after a time, whatever its threads do, unless it has ended by itself.

    Args:
        seconds: The time.
        status: What the process then exits with.
        log: Says so. Called just before.

    Returns:
        The timer, which can be cancelled.
    """

    def leave() -> None:
        # in a thread, since a log that nobody reads may block
        writing = threading.Thread(target=log, daemon=True)
        writing.start()
        writing.join(_LOG_SECONDS)
        os._exit(status)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    return timer


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the process at once. Until the server handles signals there is nothing to clean up."""
    os._exit(0)  # an exception could be caught by what is being imported
