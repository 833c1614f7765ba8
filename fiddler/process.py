"""What a service's process is set to before grpc and torch are imported, since both read it once, as they start."""

import ctypes
import os
import signal
from types import FrameType

_M_MMAP_THRESHOLD = -3  # <malloc.h>
_M_TRIM_THRESHOLD = -1
_KEEP_BYTES = 256 * 2**20  # above the largest message


def prepare() -> None:
    """Sets defaults that make the hop between the services fast; what the environment says already is kept.

    docs/experiments.md has the measurements.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    # gRPC's older event loop wakes fewer threads per message than its EventEngine
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
    # what gRPC would say beside it, a status or an exception says already
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # OpenMP threads that spin after a parallel region take the cores from the other service
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # glibc would return the memory of every large message to the kernel, and fault it in again for the next
    libc = ctypes.CDLL(None)
    # the second without the first, which an older glibc may refuse, would make things worse
    if hasattr(libc, "mallopt") and libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES):
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def _leave(number: int, frame: FrameType | None) -> None:
    """Until the server takes signals over there is nothing to clean up, and an import has no place for an exception."""
    os._exit(0)
