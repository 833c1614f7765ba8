"""What the synchronous and the asynchronous client have in common: all that does not wait."""

from collections.abc import Iterable
from typing import TypedDict, Unpack

import grpc
from google.protobuf.message import Message

from client._connection import (
    DEFAULT_KEEPALIVE_SECONDS,
    DEFAULT_MAX_MESSAGE_BYTES,
    channel_options,
    checked_target,
    checked_timeout,
    credentials,
    token_metadata,
)
from client._errors import ClientError, GenerationCancelledError, UnavailableError
from client._messages import Complete, Event, GenerationChunk, complete_from
from client._options import TlsOptions
from client._request import num_generations
from client._retries import Retries
from client._statuses import cut_short, invalid
from fiddler.v1 import generation_pb2

DEFAULT_TARGET = "127.0.0.1:50051"
REQUEST_ID_KEY = "fiddler-request-id"


class CallOptions(TypedDict):
    """What gRPC is told with each call."""

    timeout: float | None
    wait_for_ready: bool
    metadata: tuple[tuple[str, str], ...]


class BaseClient:
    """Where to connect, and how. The options are those of ConnectionOptions."""

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        keepalive_seconds: float = DEFAULT_KEEPALIVE_SECONDS,
        wait_for_ready: bool = False,
        retry_unavailable: bool = True,
        retry_busy: bool = False,
        **tls_options: Unpack[TlsOptions],
    ) -> None:
        if unknown := tls_options.keys() - TlsOptions.__annotations__:
            raise TypeError(f"{min(unknown)!r} is no option of a connection")
        self.target = checked_target(target)
        self._credentials = credentials(self.target, tls_options)
        self._metadata = token_metadata(self.target, token, self._credentials is not None)
        self._max_message_bytes = max_message_bytes
        self._options = channel_options(
            self.target, max_message_bytes, keepalive_seconds, tls_options.get("tls_server_name")
        )
        self._wait_for_ready = wait_for_ready
        self._retry_unavailable = retry_unavailable
        self._retry_busy = retry_busy
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")

    def _check_size(self, request: Message) -> None:
        if request.ByteSize() > self._max_message_bytes:
            raise invalid("prompt", f"makes {request.ByteSize()} bytes, over the limit of {self._max_message_bytes}")

    def _retries(self, timeout: float | None) -> Retries:
        return Retries(checked_timeout(timeout), self._retry_unavailable, self._retry_busy)

    def _call_options(self, timeout: float | None) -> CallOptions:
        return {
            "timeout": checked_timeout(timeout),
            "wait_for_ready": self._wait_for_ready,
            "metadata": self._metadata,
        }


class BaseGeneration:
    """What is known of a request's generations while their messages come in.

    Attributes:
        num_generations: How many there are: the request's n, or the beams that it wants back.
        completes: How each of them ended, by its index, as far as that has been read.
    """

    def __init__(self, request: generation_pb2.GenerateRequest, retries: Retries) -> None:
        self.completes: dict[int, Complete] = {}
        self._retries = retries
        self.num_generations = num_generations(request)
        self._request_id = request.request_id or None
        self._begun = False

    @property
    def complete(self) -> Complete | None:
        """How the first of them, of index 0, ended, once that has been read."""
        return self.completes.get(0)

    def _note(self, response: generation_pb2.GenerateResponse) -> None:
        self._begun = True
        if response.HasField("complete"):
            self.completes[response.complete.index] = complete_from(response.complete)

    def _check_complete(self) -> None:
        if len(self.completes) < self.num_generations:
            raise cut_short()

    def _judged(self, error: ClientError, is_cancelled: bool) -> ClientError:
        """The error, or another one where it is a server's way to drop, as it stops, what has just come."""
        if isinstance(error, GenerationCancelledError) and not (is_cancelled or self._begun):
            return UnavailableError("the server dropped the call; it may be stopping", grpc.StatusCode.UNAVAILABLE)
        return error

    def _delay_seconds(self, error: ClientError) -> float | None:
        """How long to wait before asking again; None: the error stands."""
        return None if self._begun else self._retries.delay_seconds(error)


def texts_of(events: Iterable[Event], num_generations: int) -> list[str]:
    """The texts of a request's generations, by index, from their chunks, or from their ends where they are beams."""
    parts: list[list[str]] = [[] for _ in range(num_generations)]
    for event in events:
        if isinstance(event, GenerationChunk | Complete) and event.index < num_generations:
            parts[event.index].append(event.text)
    return ["".join(part) for part in parts]
