"""Keys as they are pressed, where there is a terminal to press them in."""

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], str | None]]:
    """Gives a function that waits so many seconds for a key; None where none came, or there is no terminal."""
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, AttributeError):  # not Unix; not open; no terminal
        yield _wait
        return
    except Exception as error:  # termios.error is no OSError, and is not there to name where the import failed
        if type(error).__module__ != "termios":
            raise
        yield _wait
        return

    def read(seconds: float) -> str | None:
        if not select.select([descriptor], [], [], seconds)[0]:
            return None
        key = os.read(descriptor, 1).decode(errors="replace")
        if not key:  # the terminal has hung up, and would never wait again
            time.sleep(seconds)
        return key or None

    try:
        tty.setcbreak(descriptor)
        yield read
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _wait(seconds: float) -> None:
    time.sleep(seconds)
