"""Prepares a service's process before grpc and torch are imported, which read the environment once, on import."""

import ctypes
import os
import signal
from types import FrameType

_M_MMAP_THRESHOLD = -3  # <malloc.h>
_M_TRIM_THRESHOLD = -1
_KEEP_BYTES = 256 * 2**20  # above the largest message


def prepare() -> None:
    """Sets defaults that make messages between the services fast. What the environment already sets is kept.

    The measurements are in docs/experiments.md.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    # gRPC's older event loop wakes fewer threads per message than its EventEngine
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
    # gRPC would log what a status or an exception already reports
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # OpenMP threads that spin after a parallel region take cores from the other service
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # glibc would return the memory of each large message to the kernel, and fault it in again for the next one
    libc = ctypes.CDLL(None)
    # an older glibc may refuse the first option, and the second one alone would make things worse
    if hasattr(libc, "mallopt") and libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES):
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the process at once. Until the server handles signals there is nothing to clean up."""
    os._exit(0)  # an exception could be caught by what is being imported
