"""The exit statuses of the command lines for the client's errors. 0, 1, 2 and 130 are in fiddler/command_line.py."""

from client._errors import (
    BusyError,
    ClientError,
    DeadlineError,
    InvalidRequestError,
    UnauthenticatedError,
    UnavailableError,
)
from fiddler.command_line import FAILED, USAGE

UNAVAILABLE, BUSY, DEADLINE, UNAUTHENTICATED = 3, 4, 5, 6

_BY_ERROR: dict[type[ClientError], int] = {
    InvalidRequestError: USAGE,
    UnavailableError: UNAVAILABLE,
    BusyError: BUSY,
    DeadlineError: DEADLINE,
    UnauthenticatedError: UNAUTHENTICATED,
}


def exit_status(error: ClientError) -> int:
    """The exit status of a command that failed with this error."""
    return _BY_ERROR.get(type(error), FAILED)
