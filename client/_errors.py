"""What can go wrong with a call, as one tree. Mapping gRPC's statuses onto it is in _statuses.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the tree is imported with the package, which must be quick; gRPC comes with the first call
    import grpc


class ClientError(Exception):
    """A call that did not succeed.

        ClientError
          InvalidRequestError        the request is wrong; repeating it is useless
          UnauthenticatedError       the server asks for a token, and got none that is valid
          UnavailableError           nothing serves there, or what it needs is gone; repeat it later
          BusyError                  the server has no room for the request; repeat it later
          DeadlineError              the timeout passed
          GenerationCancelledError   cancelled, here or by the server
          ServerError                the server failed, or is no such server

    Attributes:
        message: What went wrong, in words.
        code: The gRPC status, or the one that says the same of an error that was found without asking the server.
    """

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class InvalidRequestError(ClientError):
    """The request is wrong.

    Attributes:
        field: What is wrong: the field's path in the request by its proto names, e.g. "sampling.top_p", or the name of
            the argument where the request has no such field, e.g. "timeout". None where the server named none.
    """

    def __init__(self, message: str, code: grpc.StatusCode, field: str | None = None) -> None:
        super().__init__(message, code)
        self.field = field


class UnauthenticatedError(ClientError):
    """The server asks who calls, and was given no token, or one that is not valid."""


class UnavailableError(ClientError):
    """Nothing serves there, or the server is without what it needs."""


class BusyError(ClientError):
    """The server has no room: too many requests wait, or this one's messages were not read.

    Attributes:
        retry_after_seconds: How long to wait before asking again, where the server says.
    """

    def __init__(self, message: str, code: grpc.StatusCode, retry_after_seconds: float | None = None) -> None:
        super().__init__(message, code)
        self.retry_after_seconds = retry_after_seconds


class DeadlineError(ClientError):
    """The timeout passed."""


class GenerationCancelledError(ClientError):
    """The call was cancelled, here or by the server."""


class ServerError(ClientError):
    """The server failed, or it is not a server of this kind."""
