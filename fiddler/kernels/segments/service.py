"""The service's end of a segment: the library computes what it can, and hands over the rest."""

import ctypes
import mmap
import time
from ctypes import c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fiddler.kernels import native
from fiddler.kernels.native import Pool
from fiddler.kernels.segments.layout import TEXT_BYTES, End, Event, Limits, Record, RequestHeader, ResponseHeader, Shape

_ANY_ASSIGNMENTS = 2**62


class Native(NamedTuple):
    """What the library computes by itself."""

    pool: Pool
    tier: int
    layers: tuple[native.Layer, ...]
    most_assignments: tuple[int | None, ...]
    """By layer: the most rows x experts per row; None: any number."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message that the library handed over, copied from the memory."""

    slot: int
    sequence: int
    layer: int
    rows: int
    experts_per_row: int
    remaining_seconds: float | None
    names: str
    """What `CallerEnd.post` was given."""
    hidden_size: int
    """Elements of a hidden row; 0 if there is no such layer."""
    payload: bytes
    """Hidden rows, expert ids and routing weights, as far as the slot has room for them."""


class ServiceEnd(End):
    """Computes messages. `serve` and `answer` are for one thread."""

    def __init__(self, memory: mmap.mmap, shape: Shape, nonce: bytes, *, spin_microseconds: int) -> None:
        """Makes a segment in the memory.

        Raises:
            NativeError: A number is out of range.
            NativeUnavailableError: There is no native library, or this system has no futexes.
        """
        super().__init__(memory, shape, nonce, True, spin_microseconds)
        self._limits = Limits()
        self._slot, self._request = c_int32(), RequestHeader()
        self._records = (Record * 256)()
        self._hidden_sizes: tuple[int, ...] = ()
        self._itemsize = 0

    def compute(
        self,
        computed: Native,
        *,
        dtype: torch.dtype,
        max_rows: int,
        max_experts_per_row: int,
        few_rows: int,
        most_rows_to_count: int,
    ) -> None:
        """Sets what is computed here. To be called once, before `serve`.

        Args:
            computed: Pool, tier and layers.
            dtype: Of hidden rows, both ways: bfloat16 or float32.
            max_rows: Messages with more are handed over.
            max_experts_per_row: Likewise.
            few_rows: Of one expert, for Record.experts_read.
            most_rows_to_count: In a message, for Record.experts_read.
        """
        number = len(computed.layers)
        most = (_ANY_ASSIGNMENTS if limit is None else limit for limit in computed.most_assignments)
        self._computed = computed  # keeps the layers
        self._limits = Limits(
            (c_void_p * number)(*(ctypes.addressof(layer) for layer in computed.layers)),
            (c_int64 * number)(*most),
            number,
            max_rows,
            max_experts_per_row,
            native.dtypes().index(str(dtype).removeprefix("torch.")),
            computed.tier,
            few_rows,
            most_rows_to_count,
        )
        self._hidden_sizes = tuple(layer.hidden_size for layer in computed.layers)
        self._itemsize = dtype.itemsize

    def serve(self) -> Message | Event:
        """Computes messages until one is to be answered by the caller of this, or something else is to be done."""
        event = Event(
            self._library.fiddler_segment_serve(
                self._handle,
                self._computed.pool.handle,
                ctypes.byref(self._limits),
                ctypes.byref(self._slot),
                ctypes.byref(self._request),
            )
        )
        return self._message() if event is Event.MESSAGE else event

    def answer(self, message: Message, output: torch.Tensor, queue_seconds: float, compute_seconds: float) -> None:
        """Answers a message that was handed over with rows: [rows, hidden], contiguous."""
        response = ResponseHeader(message.sequence, queue_seconds, compute_seconds)
        native.check(
            self._library.fiddler_segment_answer(
                self._handle, message.slot, ctypes.byref(response), output.data_ptr(), output.nbytes
            )
        )

    def refuse(self, message: Message, code: int, text: str) -> None:
        """Answers a message that was handed over with a gRPC status and a reason."""
        encoded = text.encode()[:TEXT_BYTES]
        response = ResponseHeader(message.sequence, 0.0, 0.0, code, len(encoded), encoded)
        native.check(self._library.fiddler_segment_answer(self._handle, message.slot, ctypes.byref(response), None, 0))

    def drain(self) -> list[Record]:
        """What was computed since the last time, oldest first. For one thread at a time."""
        found: list[Record] = []
        while number := self._library.fiddler_segment_drain(self._handle, self._records, len(self._records)):
            found += (Record.from_buffer_copy(record) for record in self._records[:number])
        return found

    @property
    def busy_seconds(self) -> float:
        """Seconds in which it computed. For any thread."""
        return float(self._library.fiddler_segment_busy(self._handle)) * 1e-9

    def _message(self) -> Message:
        request, slot = self._request, self._slot.value
        hidden_size = self._hidden_sizes[request.layer] if request.layer < len(self._hidden_sizes) else 0
        num_bytes = request.rows * (hidden_size * self._itemsize + 8 * request.experts_per_row)
        return Message(
            slot,
            request.sequence,
            request.layer,
            request.rows,
            request.experts_per_row,
            _remaining_seconds(request),
            bytes(request.names)[: request.names_bytes].decode(errors="replace"),
            hidden_size,
            ctypes.string_at(
                self._library.fiddler_segment_payload(self._handle, slot), min(num_bytes, self.shape.request_bytes)
            ),
        )


def _remaining_seconds(request: RequestHeader) -> float | None:
    """From now on, if the caller's clock can be right; None for no limit."""
    if request.remaining_ns < 0:
        return None
    elapsed_ns = max(time.monotonic_ns() - int(request.posted_ns), 0)
    return max(int(request.remaining_ns) - elapsed_ns, 0) * 1e-9
