"""Exit statuses of the command lines, and which error ends in which."""

from client._errors import (
    BusyError,
    ClientError,
    DeadlineError,
    InvalidRequestError,
    UnauthenticatedError,
    UnavailableError,
)

DONE, FAILED, USAGE, UNAVAILABLE, BUSY, DEADLINE, UNAUTHENTICATED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130

_BY_ERROR: dict[type[ClientError], int] = {
    InvalidRequestError: USAGE,
    UnavailableError: UNAVAILABLE,
    BusyError: BUSY,
    DeadlineError: DEADLINE,
    UnauthenticatedError: UNAUTHENTICATED,
}


def exit_status(error: ClientError) -> int:
    """The status that a command which failed with this error exits with."""
    return _BY_ERROR.get(type(error), FAILED)
