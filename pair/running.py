"""Runs a pair in the foreground until a signal."""

import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from typing_extensions import override

from fiddler.command_line import DONE, FAILED, fail
from pair._errors import PairError
from pair._processes import Pair

_POLL_SECONDS = 0.5


class _SignalledError(Exception):
    """A signal asked the pair to stop."""


class SignalledPair(Pair):
    """A pair that a signal stops at its next check.

    An exception from the signal handler itself could strike between the start of a child and its registration, and
    would leave that child running.
    """

    _is_signalled = False

    def handle_signal(self, number: int, frame: FrameType | None) -> None:
        """Asks the pair to stop."""
        self._is_signalled = True

    @override
    def check(self) -> None:
        if self._is_signalled:
            raise _SignalledError
        super().check()


def run_until_signalled(pair: SignalledPair, *, module: str, starting: str, serving: Sequence[str]) -> int:
    """Starts a pair, says so, and keeps it running until SIGINT, SIGTERM, or a closed terminal.

    Args:
        pair: The pair, not started yet.
        module: What its lines on standard error begin with.
        starting: The line to print at first.
        serving: The lines to print once it serves, after the one that says so.

    Returns:
        The exit status.
    """
    try:
        pair.check_addresses()  # before anything is said
    except PairError as error:
        pair.close()
        return fail(module, str(error), FAILED)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pair.handle_signal)
    # a closed terminal stops the pair too, but not if it was started with nohup
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, pair.handle_signal)
    began = time.monotonic()
    _say(module, starting)
    try:
        with pair:
            _say(module, f"serving on {pair.target} after {time.monotonic() - began:.0f} s")
            for line in serving:
                _say(module, line)
            while True:
                pair.check()
                time.sleep(_POLL_SECONDS)
    except PairError as error:
        return fail(module, str(error), FAILED)
    except _SignalledError:
        return DONE


def _say(module: str, line: str) -> None:
    print(f"{module}: {line}", file=sys.stderr, flush=True)
