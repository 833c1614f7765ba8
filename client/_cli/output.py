"""Standard output, whose reader may leave before all is said."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def output_that_may_end() -> Iterator[None]:
    """Ends its block, without a word, where whoever reads the output has left.

    Raises:
        OSError: The output cannot be written.
    """
    try:
        yield
    except OSError as error:
        _abandon_output()
        if not isinstance(error, BrokenPipeError):
            raise


def _abandon_output() -> None:
    """Keeps Python from flushing, as it exits, what nobody reads any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
