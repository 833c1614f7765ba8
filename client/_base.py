"""What the synchronous and the asynchronous client have in common: all that does not wait."""

from collections.abc import Sequence
from typing import TypedDict

from client._connection import channel_options, checked_target, checked_timeout
from client._messages import Complete, complete_from
from client._request import build_request
from client._statuses import cut_short, invalid
from fiddler.v1 import generation_pb2

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_MAX_MESSAGE_BYTES = 64 * 2**20
DEFAULT_KEEPALIVE_SECONDS = 330.0


class CallOptions(TypedDict):
    """What gRPC is told with each call."""

    timeout: float | None
    wait_for_ready: bool


class ConnectionOptions(TypedDict, total=False):
    """How to connect.

    Attributes:
        max_message_bytes: The largest message, in bytes, that is sent or taken. 64 MiB unless said.
        keepalive_seconds: How often a connection that has calls but no traffic is tried, every 330 seconds unless said.
            A server hangs up on less than 300 unless it was told to bear it.
        wait_for_ready: Whether a call waits, within its timeout, for a server that cannot be reached, rather than raise
            UnavailableError. It does not unless said.
    """

    max_message_bytes: int
    keepalive_seconds: float
    wait_for_ready: bool


class BaseClient:
    """Where to connect, and how."""

    def __init__(
        self,
        target: str,
        *,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        keepalive_seconds: float = DEFAULT_KEEPALIVE_SECONDS,
        wait_for_ready: bool = False,
    ) -> None:
        self.target = checked_target(target)
        self._max_message_bytes = max_message_bytes
        self._options = channel_options(self.target, max_message_bytes, keepalive_seconds)
        self._wait_for_ready = wait_for_ready
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")

    def _request(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        seed: int | None,
        stop_token_ids: Sequence[int],
    ) -> generation_pb2.GenerateRequest:
        request = build_request(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_token_ids=stop_token_ids,
        )
        if request.ByteSize() > self._max_message_bytes:
            raise invalid("prompt", f"makes {request.ByteSize()} bytes, over the limit of {self._max_message_bytes}")
        return request

    def _call_options(self, timeout: float | None) -> CallOptions:
        return {"timeout": checked_timeout(timeout), "wait_for_ready": self._wait_for_ready}


class BaseGeneration:
    """What is known of a generation while its messages come in.

    Attributes:
        complete: How it ended, once that has been read.
    """

    def __init__(self) -> None:
        self.complete: Complete | None = None

    def _note(self, response: generation_pb2.GenerateResponse) -> None:
        if response.HasField("complete"):
            self.complete = complete_from(response.complete)

    def _check_complete(self) -> None:
        if self.complete is None:
            raise cut_short()
