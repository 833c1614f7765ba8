"""What the synchronous and the asynchronous client share: everything that does not wait."""

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
from client._errors import GenerationCancelledError, UnavailableError
from client._messages import Complete, Event, GenerationChunk, complete_from
from client._options import TlsOptions
from client._requests.generate import num_generations
from client._retries import Retries
from client._statuses import cut_short, error_from, invalid
from client._unreachable import Peer
from fiddler import rpc
from fiddler.v1 import generation_pb2

DEFAULT_TARGET = "127.0.0.1:50051"
REQUEST_ID_KEY = "fiddler-request-id"


class CallOptions(TypedDict):
    """The keyword arguments of a gRPC call."""

    timeout: float | None
    wait_for_ready: bool
    metadata: tuple[tuple[str, str], ...]


class BaseClient:
    """Where and how to connect. The options are those of ConnectionOptions."""

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
            raise TypeError(f"{min(unknown)!r} is not an option of a connection; ConnectionOptions lists them")
        self.target = checked_target(target)
        self._dialled = rpc.target(self.target)
        self._credentials = credentials(self.target, tls_options)
        self._metadata = token_metadata(self.target, token, is_encrypted=self._credentials is not None)
        self._max_message_bytes = max_message_bytes
        self._options = channel_options(
            self.target,
            max_message_bytes=max_message_bytes,
            keepalive_seconds=keepalive_seconds,
            tls_server_name=tls_options.get("tls_server_name"),
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
            problem = f"makes a message of {request.ByteSize()} bytes, over the limit of {self._max_message_bytes}"
            raise invalid("prompt", problem)

    def _retries(self, timeout: float | None) -> Retries:
        return Retries(
            checked_timeout(timeout),
            retry_unavailable=self._retry_unavailable,
            retry_busy=self._retry_busy,
            peer=Peer(self.target, is_encrypted=self._credentials is not None),
        )

    def _call_options(self, retries: Retries) -> CallOptions:
        return {
            "timeout": retries.remaining_seconds(),
            "wait_for_ready": self._wait_for_ready,
            "metadata": self._metadata,
        }


class BaseGeneration:
    """The state of a request's generations while their messages arrive.

    Attributes:
        num_generations: How many generations the request has: its n, or its number of returned beams.
        completes: How each generation ended, by index, as far as it has been read.
    """

    def __init__(self, request: generation_pb2.GenerateRequest, retries: Retries) -> None:
        self.completes: dict[int, Complete] = {}
        self.num_generations = num_generations(request)
        self._retries = retries
        self._request_id = request.request_id or None
        self._has_begun = False

    @property
    def complete(self) -> Complete | None:
        """How the generation of index 0 ended; None until that has been read."""
        return self.completes.get(0)

    def _received(self, response: generation_pb2.GenerateResponse | None) -> generation_pb2.GenerateResponse | None:
        """Records a response and returns it; None is the end of the stream.

        Raises:
            ServerError: The stream ended before every generation was complete.
        """
        if response is None:
            if len(self.completes) < self.num_generations:
                raise cut_short()
            return None
        self._has_begun = True
        if response.HasField("complete"):
            self.completes[response.complete.index] = complete_from(response.complete)
        return response

    def _seconds_to_retry(self, rpc_error: grpc.RpcError, *, is_cancelled: bool) -> float:
        """How long to wait before the request is sent again.

        Args:
            rpc_error: How the call failed.
            is_cancelled: Whether the caller cancelled it.

        Raises:
            ClientError: The request is not sent again.
        """
        error = error_from(rpc_error)
        if isinstance(error, GenerationCancelledError) and not (is_cancelled or self._has_begun):
            # A server that is stopping drops new calls with this status.
            error = UnavailableError("the server dropped the call; it may be stopping", grpc.StatusCode.UNAVAILABLE)
        if self._has_begun:
            raise self._retries.explained(error) from rpc_error
        return self._retries.delay_or_raise(error, rpc_error)


def texts_of(events: Iterable[Event], num_generations: int) -> list[str]:
    """The texts of a request's generations, by index: from their chunks, or from their ends if they are beams."""
    parts: list[list[str]] = [[] for _ in range(num_generations)]
    for event in events:
        if isinstance(event, GenerationChunk | Complete) and event.index < num_generations:
            parts[event.index].append(event.text)
    return ["".join(part) for part in parts]
