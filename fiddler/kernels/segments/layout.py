"""The layout of a segment as the native library defines it, and one process's mapping of it."""

import ctypes
import mmap
import weakref
from ctypes import POINTER, c_char, c_double, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from functools import cache
from typing import NamedTuple

from fiddler.kernels import native
from fiddler.kernels.native import NativeError, NativeUnavailableError

LAYOUT_VERSION = 1
NONCE_BYTES = 16
TEXT_BYTES = 512
NAMES_BYTES = 512


class Event(IntEnum):
    """Why `ServiceEnd.serve` returned: fiddler_segment_event."""

    CLOSED = 0
    MESSAGE = 1
    RECORDS = 2


class Outcome(IntEnum):
    """How waiting for an answer ended: fiddler_segment_outcome."""

    ANSWERED = 0
    REFUSED = 1
    OVERDUE = 2
    ENDED = 3
    BROKEN = 4


class RequestHeader(ctypes.Structure):
    """fiddler_segment_request."""

    _fields_ = (
        ("sequence", c_uint64),
        ("posted_ns", c_int64),
        ("remaining_ns", c_int64),
        ("layer", c_uint32),
        ("rows", c_uint32),
        ("experts_per_row", c_uint32),
        ("names_bytes", c_uint32),
        ("names", c_char * NAMES_BYTES),
    )


class ResponseHeader(ctypes.Structure):
    """fiddler_segment_response."""

    _fields_ = (
        ("sequence", c_uint64),
        ("queue_seconds", c_double),
        ("compute_seconds", c_double),
        ("code", c_int32),
        ("text_bytes", c_uint32),
        ("text", c_char * TEXT_BYTES),
    )


class Record(ctypes.Structure):
    """fiddler_segment_record: what the metrics count of a message."""

    queue_seconds: float
    compute_seconds: float
    layer: int
    rows: int
    experts_per_row: int
    experts_read: int

    _fields_ = (
        ("queue_seconds", c_float),
        ("compute_seconds", c_float),
        ("layer", c_uint32),
        ("rows", c_uint32),
        ("experts_per_row", c_uint32),
        ("experts_read", c_uint32),
    )


class Limits(ctypes.Structure):
    """fiddler_segment_limits."""

    _fields_ = (
        ("layers", POINTER(c_void_p)),
        ("most_assignments", POINTER(c_int64)),
        ("num_layers", c_int64),
        ("max_rows", c_int64),
        ("max_experts_per_row", c_int64),
        ("dtype", c_int32),
        ("tier", c_int32),
        ("few_rows", c_int32),
        ("most_rows_to_count", c_int32),
    )


@cache
def _library() -> ctypes.CDLL:
    """The native library, with the types of its functions for segments.

    Raises:
        NativeUnavailableError: There is none.
    """
    library = native.load()
    request, response = POINTER(RequestHeader), POINTER(ResponseHeader)
    try:
        for name, result, arguments in (
            ("fiddler_segment_size", c_int64, (c_int32, c_int64, c_int64)),
            (
                "fiddler_segment_create",
                c_void_p,
                (c_void_p, c_int32, c_int64, c_int64, ctypes.c_char_p, c_int32, c_int32),
            ),
            ("fiddler_segment_destroy", None, (c_void_p,)),
            ("fiddler_segment_close", None, (c_void_p,)),
            ("fiddler_segment_post", c_int32, (c_void_p, request, c_void_p, c_int64, c_void_p, c_void_p)),
            (
                "fiddler_segment_wait",
                c_int32,
                (c_void_p, c_int32, c_uint64, c_double, c_void_p, c_int64, response),
            ),
            (
                "fiddler_segment_join",
                c_int32,
                (c_void_p, c_int32, c_uint64, c_double, c_void_p, c_void_p, c_int64, response, POINTER(c_int32)),
            ),
            ("fiddler_segment_release", c_int32, (c_void_p, c_int32)),
            ("fiddler_segment_serve", c_int32, (c_void_p, c_void_p, POINTER(Limits), POINTER(c_int32), request)),
            ("fiddler_segment_answer", c_int32, (c_void_p, c_int32, response, c_void_p, c_int64)),
            ("fiddler_segment_payload", c_void_p, (c_void_p, c_int32)),
            ("fiddler_segment_drain", c_int32, (c_void_p, POINTER(Record), c_int32)),
            ("fiddler_segment_busy", c_int64, (c_void_p,)),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise NativeUnavailableError(f"the native library is of another version; install again: {error}") from error
    return library


class Shape(NamedTuple):
    """How a segment is divided."""

    num_slots: int
    """Messages that may be under way."""
    request_bytes: int
    """For a message's hidden rows, expert ids and routing weights; a multiple of the page size."""
    response_bytes: int
    """For its answer, and so for its hidden rows; likewise."""

    @property
    def num_bytes(self) -> int:
        """The size of the memory.

        Raises:
            NativeError: A number is out of range.
            NativeUnavailableError: There is no native library.
        """
        size = int(_library().fiddler_segment_size(*self))
        if size == 0:
            raise NativeError(f"a segment of {self.num_slots} slots of {self.request_bytes} + {self.response_bytes}")
        return size


class End:
    """A mapping and what the library keeps of it. Threads that use it keep it alive."""

    def __init__(self, memory: mmap.mmap, shape: Shape, nonce: bytes, creates: bool, spin_microseconds: int) -> None:
        if len(memory) != shape.num_bytes or len(nonce) != NONCE_BYTES:
            raise NativeError(f"a segment of {len(memory)} bytes, expected {shape.num_bytes}")
        self.shape = shape
        self._library = _library()
        view = (c_char * len(memory)).from_buffer(memory)
        self._handle = self._library.fiddler_segment_create(
            ctypes.addressof(view), *shape, nonce, creates, spin_microseconds
        )
        if not self._handle:
            raise NativeError("the memory is not the segment that was agreed on")
        # the view keeps the mapping, and this keeps the view
        weakref.finalize(self, _destroy, self._library, self._handle, view)

    def close(self) -> None:
        """Makes every wait on this end return. For any thread."""
        self._library.fiddler_segment_close(self._handle)


def _destroy(library: ctypes.CDLL, handle: int, view: object) -> None:
    library.fiddler_segment_destroy(handle)
    del view
