"""Segments of memory that callers share with this service: on offer, or each in use by one stream.

A segment in use has a thread, in which the library computes messages. What the library does not compute itself, such as
a message that is wrong, comes to Python and is answered as on a stream.
"""

import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
import torch

from fiddler import rpc, tensors
from fiddler.kernels.native import NativeError, NativeUnavailableError
from fiddler.kernels.segments.layout import LAYOUT_VERSION, NONCE_BYTES, Event, Record, Shape
from fiddler.kernels.segments.service import Message, ServiceEnd
from fiddler.transport import shared_memory
from fiddler.v1 import experts_pb2

NUM_SLOTS = 6
_PAGE_BYTES = 4096
_OFFER_SECONDS = 30.0
_SPIN_MICROSECONDS = 50
_log = structlog.get_logger(__name__)

Answer = Callable[[experts_pb2.RunRequest], experts_pb2.RunResponse]
"""Computes a message, or raises StatusError."""
Count = Callable[[list[Record]], None]
"""Counts messages for the metrics."""
Prepare = Callable[[ServiceEnd], None]
"""Tells a new segment what to compute."""


def shape_of(num_bytes: int) -> Shape:
    """How memory of about this size is divided: requests need a little more than answers, for ids and weights."""
    each = num_bytes // NUM_SLOTS // _PAGE_BYTES
    response_pages = each * 15 // 32
    return Shape(NUM_SLOTS, (each - response_pages) * _PAGE_BYTES, response_pages * _PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class _Offer:
    path: Path
    end: ServiceEnd
    expires_at: float


class Segments:
    """Makes segments and gives them to streams. For any thread."""

    def __init__(self, directory: Path, num_bytes: int, *, count: int, dtype: torch.dtype, prepare: Prepare) -> None:
        """Offers nothing yet.

        Args:
            directory: Where their files lie until they are used.
            num_bytes: The size of each.
            count: The most at a time.
            dtype: Of hidden rows, both ways.
            prepare: Called with each.
        """
        self._directory = directory
        self._shape = shape_of(num_bytes)
        self._count = count
        self._dtype = dtype
        self._prepare = prepare
        self._lock = threading.Lock()
        self._offers: dict[bytes, _Offer] = {}
        self._used: list[UsedSegment] = []
        self._ended_busy_seconds = 0.0
        self._closed = False

    def offer(self) -> experts_pb2.OpenSegmentResponse:
        """Makes one more.

        Raises:
            StatusError: There are as many as there may be, or there is no memory for another.
        """
        with self._lock:
            self._withdraw(time.monotonic())
            if self._closed or len(self._offers) + len(self._used) >= self._count:
                raise rpc.StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._count} segments are in use already")
            nonce = secrets.token_bytes(NONCE_BYTES)
            try:
                path, memory = shared_memory.create(self._directory, self._shape.num_bytes)
            except OSError as error:
                raise rpc.StatusError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{self._directory}: no segment of {self._shape.num_bytes} bytes: {error.strerror or error}",
                ) from None
            try:
                end = ServiceEnd(memory, self._shape, nonce, spin_microseconds=_SPIN_MICROSECONDS)
                self._prepare(end)
            except (NativeError, NativeUnavailableError) as error:
                path.unlink()
                raise rpc.StatusError(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None
            self._offers[nonce] = _Offer(path, end, time.monotonic() + _OFFER_SECONDS)
            return experts_pb2.OpenSegmentResponse(
                path=str(path), id=nonce, **self._shape._asdict(), layout_version=LAYOUT_VERSION
            )

    def use(self, identity: str, answer: Answer, count: Count) -> "UsedSegment":
        """Starts to serve a segment that was offered. The caller stops it.

        Args:
            identity: Its id in hexadecimal.
            answer: Answers what the library does not.
            count: Is given what the library computed, now and then.

        Raises:
            StatusError: There is no such offer, or not any more.
        """
        with self._lock:
            self._withdraw(time.monotonic())
            try:
                offer = None if self._closed else self._offers.pop(bytes.fromhex(identity), None)
            except ValueError:
                offer = None
            if offer is None:
                raise rpc.failed_precondition(
                    shared_memory.METADATA, f"{shared_memory.METADATA}: there is no such segment on offer"
                )
            offer.path.unlink(missing_ok=True)  # both sides have mapped it
            used = UsedSegment(offer.end, self._dtype, answer, count, on_stop=self._forget)
            self._used.append(used)
        used.start()
        return used

    def drain(self) -> None:
        """Counts what was computed so far."""
        for used in self._in_use():
            used.drain()

    @property
    def busy_seconds(self) -> float:
        """Seconds in which segments computed, of all that there were."""
        with self._lock:
            return self._ended_busy_seconds + sum(used.busy_seconds for used in self._used)

    def close(self) -> None:
        """Offers no more, and ends those in use after the message under way."""
        with self._lock:
            self._closed = True
            self._withdraw(None)
        for used in self._in_use():
            used.stop()

    def _in_use(self) -> list["UsedSegment"]:
        with self._lock:
            return list(self._used)

    def _forget(self, used: "UsedSegment") -> None:
        with self._lock:
            if used in self._used:
                self._used.remove(used)
                self._ended_busy_seconds += used.busy_seconds

    def _withdraw(self, now: float | None) -> None:
        """Removes offers that nobody took in time; all for None."""
        for nonce, offer in list(self._offers.items()):
            if now is None or offer.expires_at <= now:
                offer.path.unlink(missing_ok=True)
                del self._offers[nonce]


class UsedSegment:
    """A segment and its thread."""

    def __init__(
        self,
        end: ServiceEnd,
        dtype: torch.dtype,
        answer: Answer,
        count: Count,
        *,
        on_stop: Callable[["UsedSegment"], None],
    ) -> None:
        self._end = end
        self._dtype = dtype
        self._answer = answer
        self._count = count
        self._on_stop = on_stop
        self._draining = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="segment", daemon=True)

    @property
    def busy_seconds(self) -> float:
        """Seconds in which it computed."""
        return self._end.busy_seconds

    def start(self) -> None:
        """Serves from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it after the message under way. For any thread; a second time has no effect."""
        self._end.close()
        self._thread.join()
        self.drain()
        self._on_stop(self)

    def drain(self) -> None:
        """Counts what was computed since the last time."""
        with self._draining:
            if records := self._end.drain():
                self._count(records)

    def _serve(self) -> None:
        while (found := self._end.serve()) is not Event.CLOSED:
            if isinstance(found, Message):
                self._compute(found)
            else:
                self.drain()

    def _compute(self, message: Message) -> None:
        """Answers a message that the library handed over."""
        try:
            response = self._answer(_as_request(message, self._dtype))
        except rpc.StatusError as error:
            self._end.refuse(message, error.code.value[0], error.message)
        except Exception:
            _log.exception("computation failed", **named(message.names.splitlines()))
            text = "the computation failed; the service's log says why"
            self._end.refuse(message, grpc.StatusCode.INTERNAL.value[0], text)
        else:
            output = tensors.decode(response.output, "output", dtype=self._dtype, shape=(None, None))
            self._end.answer(message, output, response.queue_seconds, response.compute_seconds)


def named(request_ids: list[str]) -> dict[str, list[str]]:
    """The requests that a message was computed for, as the log names them."""
    return {"request_ids": request_ids} if request_ids else {}


def _as_request(message: Message, dtype: torch.dtype) -> experts_pb2.RunRequest:
    """The message as it would have come over the stream; one that claims more rows than fit has too few bytes."""
    request = experts_pb2.RunRequest(
        sequence=message.sequence,
        layer=message.layer,
        time_remaining_seconds=message.remaining_seconds,
        request_ids=message.names.splitlines(),
    )
    chosen = (message.rows, message.experts_per_row)
    begin = 0
    for field, shape, stored in (
        (request.hidden, (message.rows, message.hidden_size), dtype),
        (request.expert_ids, chosen, torch.int32),
        (request.routing_weights, chosen, torch.float32),
    ):
        end = begin + math.prod(shape) * stored.itemsize
        field.data = message.payload[begin:end]
        field.shape.extend(shape)
        field.dtype = tensors.PROTO_DTYPES[stored]
        begin = end
    return request
