"""A process ends with the one that started it."""

import os
import select
import signal
import subprocess
import sys

CHILD = "from fiddler.running import parent; import time; parent.end_with_parent(); print(flush=True); time.sleep(60)"
PARENT = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE,
                         env={{**os.environ, "FIDDLER_ENDS_WITH": str(os.getpid())}})
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert select.select([child], [], [], 20)[0] == [child]
        os.close(child)


def test_without_the_variable_nothing_is_watched() -> None:
    code = "import threading; from fiddler.running import parent; parent.end_with_parent(); "
    code += "print(threading.active_count())"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).stdout == b"1\n"
