"""Standard output whose reader may close it early."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def output_that_may_end() -> Iterator[None]:
    """Ends its block quietly if the reader of standard output closes it.

    Raises:
        OSError: The output cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        _discard_output()
        if not isinstance(error, BrokenPipeError):
            raise


def _discard_output() -> None:
    """Keeps Python from failing again when it flushes standard output at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
