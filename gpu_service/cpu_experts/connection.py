"""One connection to the CPU expert service: health, handshake, streams, and the watch for overdue answers.

A connection that is lost is replaced by a new one. gRPC would reconnect the channel after a delay of its own, and would
stay with a process that hangs even when another process has bound the socket since.
"""

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import structlog
import torch
from typing_extensions import override

from fiddler import PROTOCOL_VERSION, rpc, tensors
from fiddler.calls.handshake import check_handshake
from fiddler.transport import directories
from fiddler.v1 import experts_pb2, experts_pb2_grpc
from gpu_service.cpu_experts.shared_segment import SegmentError, SharedSegment
from gpu_service.errors import ExpertServiceError, HandshakeError

NOT_READY = "the CPU expert service is not running, or not ready"
"""The error for an address that no ready service answers at."""

_SEGMENT_SECONDS = 1.0
"""How long the service may take to offer shared memory."""

_log = structlog.get_logger(__name__)

_Result = TypeVar("_Result")


class StreamEndedError(grpc.RpcError):
    """The service ended the stream without an error, as it does when it stops."""

    @override
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    @override
    def details(self) -> str:
        return "the stream was ended"


class Stream:
    """One Run call, and the memory that it shares with the service, if any.

    gRPC's sending thread takes messages from a queue; answers come in the order of the messages.
    """

    def __init__(self, stub: experts_pb2_grpc.ExpertServiceStub, segment: SharedSegment | None = None) -> None:
        self._outbox: queue.SimpleQueue[experts_pb2.RunRequest | None] = queue.SimpleQueue()
        messages: Iterator[experts_pb2.RunRequest] = iter(self._outbox.get, None)
        self.segment = segment
        """What messages may be posted to instead; None if there is none."""
        self._call = stub.Run(messages, metadata=segment.metadata if segment else None)
        if segment is not None and not self._call.add_callback(segment.close):
            segment.close()
        self.overdue = False
        """Whether it was closed because an answer was overdue."""
        self.failure: ExpertServiceError | None = None
        """Why it was given up; None if it was not."""

    @property
    def has_ended(self) -> bool:
        """Whether either side, or a broken connection, has ended the stream. For any thread."""
        return not self._call.is_active()

    def send(self, request: experts_pb2.RunRequest) -> None:
        """Queues a message and returns. On a stream that has ended it has no effect."""
        self._outbox.put(request)

    def error(self) -> grpc.RpcError:
        """Why the stream has ended; waits for its end."""
        while True:
            try:
                self.receive()
            except grpc.RpcError as error:
                return error

    def receive(self) -> experts_pb2.RunResponse:
        """Waits for the next answer until the stream ends.

        Raises:
            grpc.RpcError: The stream has ended.
        """
        try:
            return next(self._call)
        except StopIteration:
            raise StreamEndedError from None

    def close(self) -> None:
        """Ends the stream: a thread that waits for an answer gets an error. For any thread."""
        self._outbox.put(None)
        self._call.cancel()
        if self.segment is not None:
            self.segment.close()


class Connection:
    """A channel to the service that shares no connection with other channels."""

    def __init__(
        self,
        address: str,
        dtype: torch.dtype,
        max_message_bytes: int,
        *,
        weight_format: str = "",
    ) -> None:
        """Connects when it is first used.

        Args:
            address: HOST:PORT or unix:PATH.
            dtype: The dtype of hidden rows, both ways.
            max_message_bytes: The largest message, both ways.
            weight_format: Of the checkpoint's experts; empty if it is not compared.
        """
        self._address = address
        self._dtype = dtype
        self._weight_format = weight_format
        self._description = experts_pb2.DescribeResponse()  # what the service said in the handshake
        self._channel = grpc.insecure_channel(rpc.target(address), options=_channel_options(address, max_message_bytes))
        self._stub = experts_pb2_grpc.ExpertServiceStub(self._channel)

    def shake_hands(self, fingerprint: str, timeout_seconds: float) -> experts_pb2.DescribeResponse:
        """Checks that the service is ready, and that both sides run the same checkpoint in the same dtype.

        Raises:
            HandshakeError: They run another checkpoint, format of weights, dtype or version of the protocol; or others
                could put a service of theirs at the address.
            ExpertServiceError: The service did not answer in time, or is not ready.
        """
        deadline = time.monotonic() + timeout_seconds
        if problem := _unsafe(self._address):
            raise HandshakeError(f"{self._address}: {problem}")
        if not self.is_serving(timeout_seconds):
            raise ExpertServiceError(f"{self._address}: {_forbidden(self._address) or NOT_READY}")
        request = experts_pb2.DescribeRequest(
            protocol_version=PROTOCOL_VERSION,
            checkpoint_fingerprint=fingerprint,
            dtype=tensors.PROTO_DTYPES[self._dtype],
            weight_format=self._weight_format or None,
        )
        timeout_seconds = max(0.0, deadline - time.monotonic())
        try:
            description = self._on_open_channel(lambda: self._stub.Describe(request, timeout=timeout_seconds))
            check_handshake(request, description)
            self._description = description
            return description
        except rpc.StatusError as error:
            raise HandshakeError(f"{self._address}: {error.message}") from None
        except grpc.RpcError as error:
            kind = HandshakeError if error.code() is grpc.StatusCode.FAILED_PRECONDITION else ExpertServiceError
            raise kind(f"{self._address}: {error.code().name}: {error.details()}") from None

    def is_serving(self, timeout_seconds: float) -> bool:
        """Whether the service answers and is ready.

        Raises:
            ExpertServiceError: The connection has been closed.
        """
        return self._on_open_channel(lambda: rpc.is_serving(self._channel, timeout_seconds))

    def open_stream(self) -> Stream:
        """Opens a new stream.

        Raises:
            ExpertServiceError: The connection has been closed.
        """
        return self._on_open_channel(lambda: Stream(self._stub, self._open_segment()))

    def close(self) -> None:
        """Ends the connection and all its calls. For any thread."""
        self._channel.close()

    def _open_segment(self) -> SharedSegment | None:
        """Memory that the next stream shares with the service; None, with a line in the log, if there is none."""
        if not self._description.shares_memory:
            return None
        try:
            offered = self._stub.OpenSegment(experts_pb2.OpenSegmentRequest(), timeout=_SEGMENT_SECONDS)
            return SharedSegment(offered, self._description.threads)
        except grpc.RpcError as error:
            reason = error.details()
        except SegmentError as error:
            reason = str(error)
        _log.info("layers go over the socket, and not through shared memory", reason=reason)
        return None

    def _on_open_channel(self, call: Callable[[], _Result]) -> _Result:
        try:
            return call()
        except ValueError:  # what gRPC raises for a call on a channel that another thread has closed
            raise ExpertServiceError(f"{self._address}: the connection is closed") from None


class Watch:
    """Closes a stream whose answer is overdue, because gRPC's wait for a stream's next answer takes no timeout.

    One thread at a time waits for a stream. It arms the watch before, and disarms it afterwards.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._stream: Stream | None = None
        self._deadline = math.inf
        self._wakes_at = math.inf
        self._closed = False
        threading.Thread(target=self._run, name="expert watch", daemon=True).start()

    def arm(self, stream: Stream, deadline: float) -> None:
        """Closes a stream at a deadline, in the time of time.monotonic(), unless disarmed before."""
        with self._condition:
            self._stream, self._deadline = stream, deadline
            if deadline < self._wakes_at:  # otherwise it wakes in time anyway, and a layer costs no thread switch
                self._condition.notify()

    def disarm(self) -> None:
        """Cancels the deadline."""
        with self._condition:
            self._stream, self._deadline = None, math.inf

    def close(self) -> None:
        """Ends the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def _run(self) -> None:
        with self._condition:
            while not self._closed:
                if self._stream is not None and self._deadline <= time.monotonic():
                    self._stream.overdue = True
                    self._stream.close()
                    self._stream, self._deadline = None, math.inf
                self._wakes_at = self._deadline
                self._condition.wait(None if self._wakes_at == math.inf else self._wakes_at - time.monotonic())


def _unsafe(address: str) -> str:
    """Explains if others could put a socket of theirs at the address; empty if not, or if it may not be looked at."""
    if not address.startswith("unix:"):
        return ""
    path = Path(address.removeprefix("unix:"))
    if not os.access(path.parent, os.X_OK):  # not there, or no permission, which `_forbidden` explains
        return ""
    try:
        return directories.problem_of(path)
    except OSError:
        return ""


def _forbidden(address: str) -> str:
    """Explains if this process may not connect to a Unix socket, which gRPC does not tell from a missing service."""
    path = address.removeprefix("unix:")
    if path == address or os.access(path, os.R_OK | os.W_OK):
        return ""
    try:
        owner = os.stat(path).st_uid
    except PermissionError:
        return f"user {os.getuid()} has no permission to look into {os.path.dirname(path)}"
    except OSError:
        return ""
    return f"user {os.getuid()} has no permission to connect to it; it belongs to user {owner}"


def _channel_options(address: str, max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        *rpc.channel_options(address, max_message_bytes),
        # otherwise gRPC's channels share connections, and with them the delay before the next attempt
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
