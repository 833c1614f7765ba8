"""Ends this process when the one that started it has ended, however it ended: `python -m pair` may be killed.

The parent sets an environment variable to its process id. Services that are started by hand have none.
"""

import contextlib
import os
import select
import signal
import threading
import time
from typing import Final

VARIABLE: Final = "FIDDLER_ENDS_WITH"
_POLL_SECONDS = 0.5


def end_with_parent() -> None:
    """Sends this process SIGTERM once its parent has ended, if the environment names it; else does nothing."""
    text = os.environ.pop(VARIABLE, "")  # not for this process's own children
    if text.isdigit():
        threading.Thread(target=_watch, args=(int(text),), name="parent", daemon=True).start()


def _watch(pid: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # an old kernel, or not Linux
        descriptor = os.pidfd_open(pid)
        if os.getppid() == pid:
            select.select([descriptor], [], [])  # readable once the process has ended
        os.close(descriptor)
    while os.getppid() == pid:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
