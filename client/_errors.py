"""The client's errors, as one tree. _statuses.py maps gRPC's statuses to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing the package must be quick, so gRPC is imported by the first call
    import grpc


class ClientError(Exception):
    """A call failed.

        ClientError
          InvalidRequestError        the request is wrong; do not repeat it
          UnauthenticatedError       the server requires a token and got no valid one
          UnavailableError           no server answers, or it is not ready; repeat later
          BusyError                  the server has no room for the request; repeat later
          DeadlineError              the timeout passed
          GenerationCancelledError   the client or the server cancelled the call
          ServerError                the server failed, or is not a GPU service

    Attributes:
        message: What went wrong, in words.
        code: The gRPC status; for an error found without asking the server, the status of the same meaning.
    """

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class InvalidRequestError(ClientError):
    """The request is wrong.

    Attributes:
        field: The path of the wrong field by its proto names, e.g. "sampling.top_p"; the argument's name if the request
            has no such field, e.g. "timeout"; None if the server named none.
        reason: The server's name for the mistake: "CONTEXT_LENGTH_EXCEEDED" if prompt and output are longer than the
            context; empty if it has none.
    """

    def __init__(self, message: str, code: grpc.StatusCode, field: str | None = None, reason: str = "") -> None:
        super().__init__(message, code)
        self.field = field
        self.reason = reason


class UnauthenticatedError(ClientError):
    """The server requires a token and got none, or an invalid one."""


class UnavailableError(ClientError):
    """No server answers at the target, or the server lacks something it needs."""


class BusyError(ClientError):
    """The server has no room: too many requests are waiting, or this request's messages were not read.

    Attributes:
        retry_after_seconds: How long to wait before repeating the request; None if the server did not say.
    """

    def __init__(self, message: str, code: grpc.StatusCode, retry_after_seconds: float | None = None) -> None:
        super().__init__(message, code)
        self.retry_after_seconds = retry_after_seconds


class DeadlineError(ClientError):
    """The timeout passed."""


class GenerationCancelledError(ClientError):
    """The client or the server cancelled the call."""


class ServerError(ClientError):
    """The server failed, or is not a GPU service."""
