"""The event that ends a process, set at the worst moments."""

import signal
import subprocess
import sys
import textwrap
import threading

from fiddler.running.stopping import Stop

_AT_EVERY_LINE = """
    import os, signal, sys
    from fiddler.running.stopping import Stop

    stop, signals = Stop(), 0
    signal.signal(signal.SIGUSR1, lambda *_: stop.set())

    def interrupt(frame, event, argument):
        # a signal before every line that the wait runs, in whichever module
        global signals
        if "interrupt" not in frame.f_code.co_name and "lambda" not in frame.f_code.co_name:
            sys.settrace(None)
            os.kill(os.getpid(), signal.SIGUSR1)
            signals += 1
            sys.settrace(interrupt)
        return interrupt

    sys.settrace(interrupt)
    stop.wait()
    sys.settrace(None)
    print(signals > 0, stop.is_set())
"""


def test_a_signal_at_any_line_of_the_wait_ends_it() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_AT_EVERY_LINE)], capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout == "True True\n"


def test_a_signal_while_it_waits_ends_it() -> None:
    stop = Stop()
    before = signal.signal(signal.SIGUSR1, lambda *_: stop.set())
    try:
        threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)).start()
        stop.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stop.is_set()


def test_a_thread_ends_it_too_and_before_it_begins() -> None:
    stop = Stop()
    assert not stop.is_set()
    thread = threading.Thread(target=stop.set)
    thread.start()
    thread.join()
    stop.wait()
    assert stop.is_set()
