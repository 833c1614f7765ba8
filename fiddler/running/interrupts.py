"""Lets Ctrl-C end a program without a traceback while it imports its modules, before it can handle the exception."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, Ctrl-C ends the process at once, by the signal. A program that ignores it goes on to do so.

    In a thread other than the main one, which Python lets change no handler, nothing is changed.
    """
    is_main = threading.current_thread() is threading.main_thread()
    is_default = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if is_default:
            signal.signal(signal.SIGINT, signal.default_int_handler)
