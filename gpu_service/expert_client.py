"""The GPU service's side of ExpertService: one stream, one layer at a time in flight or several, replies in order."""

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import structlog
import torch

from fiddler import PROTOCOL_VERSION, rpc, tensors
from fiddler.v1 import experts_pb2, experts_pb2_grpc
from gpu_service import metrics

_log = structlog.get_logger(__name__)
_SENT_BYTES = metrics.EXPERT_CALL_BYTES.labels("sent")
_RECEIVED_BYTES = metrics.EXPERT_CALL_BYTES.labels("received")

_ATTEMPTS = 3  # a message is sent this often before its request fails
_BACKOFF_SECONDS = 0.05  # before the second attempt; doubles
_WATCH_SECONDS = 0.5
_HANDSHAKE_SECONDS = 10.0
# The message itself is at fault, or the pair is; sending it again would end the same way.
_FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class ExpertServiceError(Exception):
    """The CPU expert service did not answer, or answered with an error."""


class HandshakeError(ExpertServiceError):
    """The CPU expert service serves something else than this service runs."""


@dataclass(eq=False, slots=True)
class _Call:
    """One message that was sent and not answered yet."""

    client: "ExpertClient"
    request: experts_pb2.RunRequest
    shape: tuple[int, ...]
    sent_at: float

    def join(self) -> torch.Tensor:
        """Waits for the answer: see RemoteExperts.

        Raises:
            ExpertServiceError: There is none, after all attempts.
        """
        return self.client._join(self)


class _Stream:
    """One Run call: messages go in through a queue that gRPC's sending thread drains."""

    def __init__(self, stub: experts_pb2_grpc.ExpertServiceStub) -> None:
        self._outbox: queue.SimpleQueue[experts_pb2.RunRequest | None] = queue.SimpleQueue()
        messages: Iterator[experts_pb2.RunRequest] = iter(self._outbox.get, None)
        self._call = stub.Run(messages)
        self.overdue = False

    def send(self, request: experts_pb2.RunRequest) -> None:
        self._outbox.put(request)

    def receive(self) -> experts_pb2.RunResponse:
        """The next answer. Raises grpc.RpcError where the stream has ended."""
        try:
            return next(self._call)
        except StopIteration:
            raise _StreamEndedError from None

    def close(self) -> None:
        self._outbox.put(None)
        self._call.cancel()


class _StreamEndedError(grpc.RpcError):
    """The service ended the stream without an error, as it does when it stops."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the stream was ended"


class ExpertClient:
    """Sends layers to the CPU expert service. `submit` and `join` are for one thread; a pure call is safe to repeat."""

    def __init__(self, address: str, dtype: torch.dtype, timeout_seconds: float, max_message_bytes: int) -> None:
        """Connects when it is first used.

        Args:
            address: HOST:PORT or unix:PATH.
            dtype: What hidden rows are sent and expected in.
            timeout_seconds: How long one layer may take, waiting included.
            max_message_bytes: The largest message either way.
        """
        self.address = address
        self._dtype = dtype
        self._timeout_seconds = timeout_seconds
        self._channel = grpc.insecure_channel(address, options=_channel_options(address, max_message_bytes))
        self._stub = experts_pb2_grpc.ExpertServiceStub(self._channel)
        self._fingerprint: str | None = None
        self._stream: _Stream | None = None
        self._sequence = itertools.count(1)
        self._pending: list[_Call] = []
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="expert watch", daemon=True).start()

    def is_serving(self, timeout_seconds: float = 2.0) -> bool:
        """Whether the service answers and is ready."""
        return rpc.is_serving(self._channel, timeout_seconds)

    def handshake(self, fingerprint: str) -> experts_pb2.DescribeResponse:
        """Makes sure that both services run the same checkpoint in the same dtype.

        Raises:
            HandshakeError: They do not.
            ExpertServiceError: The service did not answer.
        """
        try:
            description = self._describe(fingerprint)
        except grpc.RpcError as error:
            kind = HandshakeError if error.code() is grpc.StatusCode.FAILED_PRECONDITION else ExpertServiceError
            raise kind(f"{self.address}: {error.code().name}: {error.details()}") from None
        self._fingerprint = fingerprint
        return description

    def submit(
        self, layer: int, hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> _Call:
        """Sends one layer's rows and returns at once: see RemoteExperts."""
        request = experts_pb2.RunRequest(
            sequence=next(self._sequence), layer=layer, time_remaining_seconds=self._timeout_seconds
        )
        tensors.encode(hidden if hidden.dtype is self._dtype else hidden.to(self._dtype), request.hidden)
        tensors.encode(expert_ids, request.expert_ids)
        tensors.encode(routing_weights, request.routing_weights)
        call = _Call(self, request, tuple(hidden.shape), time.monotonic())
        self._pending.append(call)
        if self._stream is not None:
            self._stream.send(request)
        else:
            with contextlib.suppress(grpc.RpcError):  # join() tries again, and tells
                self._open()
        return call

    def abort(self) -> None:
        """Ends the stream for good: who waits for an answer gets an ExpertServiceError. For any thread."""
        self._closed.set()
        if stream := self._stream:
            stream.close()

    def close(self) -> None:
        """Ends the stream and the connection."""
        self.abort()
        self._channel.close()

    def _join(self, call: _Call) -> torch.Tensor:
        for attempt in itertools.count(1):
            try:
                response = self._receive(call)
                break
            except grpc.RpcError as error:
                self._failed(call, error, attempt)
        self._pending.remove(call)
        metrics.EXPERT_CALL_SECONDS.observe(time.monotonic() - call.sent_at)
        _SENT_BYTES.inc(call.request.ByteSize())
        _RECEIVED_BYTES.inc(response.ByteSize())
        try:
            return tensors.decode(response.output, "output", self._dtype, call.shape)
        except tensors.TensorError as error:
            raise ExpertServiceError(f"{self.address}: wrong answer: {error}") from None

    def _receive(self, call: _Call) -> experts_pb2.RunResponse:
        """The call's answer; answers to calls that were given up come before it and are thrown away."""
        while True:
            response = self._open().receive()
            if response.sequence == call.request.sequence:
                return response

    def _failed(self, call: _Call, error: grpc.RpcError, attempt: int) -> None:
        """Lets what was not answered be sent again, on a new stream, or gives up."""
        code, details = error.code(), error.details()
        metrics.EXPERT_CALL_FAILURES.labels(code.name).inc()
        overdue = self._stream is not None and self._stream.overdue
        if overdue:
            code, details = grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {self._timeout_seconds:g} s"
        self._drop_stream()
        if code in _FINAL or attempt == _ATTEMPTS or self._closed.is_set():
            self._pending.clear()
            raise ExpertServiceError(f"the CPU expert service at {self.address} failed: {code.name}: {details}")
        _log.warning("sending again", layer=call.request.layer, attempt=attempt, code=code.name, details=details)
        time.sleep(_BACKOFF_SECONDS * 2 ** (attempt - 1))

    def _watch(self) -> None:
        """Cancels the stream of a service that stands still: waiting for a stream's next answer takes no timeout."""
        while not self._closed.wait(_WATCH_SECONDS):
            oldest, stream = next(iter(self._pending), None), self._stream
            # the service itself says so when a message's time runs out, if it can
            if oldest and stream and time.monotonic() - oldest.sent_at > self._timeout_seconds + _WATCH_SECONDS:
                stream.overdue = True
                stream.close()

    def _open(self) -> _Stream:
        """The stream; a new one, with what is not answered sent on it, where there is none.

        Whoever answers at the address now need not be who did before, so that the handshake comes first.
        """
        if self._stream is None:
            if self._fingerprint is not None:
                self._describe(self._fingerprint)
            self._stream = _Stream(self._stub)
            for call in self._pending:
                self._stream.send(call.request)
        return self._stream

    def _describe(self, fingerprint: str) -> experts_pb2.DescribeResponse:
        request = experts_pb2.DescribeRequest(
            protocol_version=PROTOCOL_VERSION,
            checkpoint_fingerprint=fingerprint,
            dtype=tensors.PROTO_DTYPES[self._dtype],
        )
        return self._stub.Describe(request, timeout=_HANDSHAKE_SECONDS)

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _channel_options(address: str, max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        *rpc.channel_options(address, max_message_bytes),
        # a service that comes back should be found at once, not after gRPC's default of up to 120 s
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
