"""Reads single keys from a terminal."""

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], str | None]]:
    """Yields a function that waits up to some seconds for a key and returns it.

    The function returns None if no key was pressed in time. Without a terminal it only waits.
    """
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, AttributeError):  # not Unix, standard input is closed, or no terminal
        yield _wait
        return
    except Exception as error:  # termios.error, which cannot be named if the import of termios failed
        if type(error).__module__ != "termios":
            raise
        yield _wait
        return

    def read(seconds: float) -> str | None:
        if not select.select([descriptor], [], [], seconds)[0]:
            return None
        key = os.read(descriptor, 1).decode(errors="replace")
        if not key:  # the terminal has hung up, and select() no longer waits
            time.sleep(seconds)
        return key or None

    try:
        tty.setcbreak(descriptor)
        yield read
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _wait(seconds: float) -> None:
    time.sleep(seconds)
