"""A log that nobody reads stalls no request, and says what is missing once it is read."""

import fcntl
import os
import signal
import threading
from pathlib import Path

from client import Client
from client.health import ask_health
from tests.support.losses import metric
from tests.support.pairs import start

PIPE_BYTES = 4096
NUM_REQUESTS = 100
"""Each is a line of more than a hundred bytes."""
_F_SETPIPE_SZ = 1031  # <fcntl.h>


def test_requests_go_on_when_nobody_reads_the_log(tiny: Path) -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as reading, os.fdopen(theirs, "wb") as log:
        fcntl.fcntl(theirs, _F_SETPIPE_SZ, PIPE_BYTES)
        with start(tiny, log=log) as pair:
            with Client(pair.target) as client:
                for _ in range(NUM_REQUESTS):
                    client.generate([3, 4, 5], max_tokens=1, timeout=60).text()
            assert ask_health(pair.target) == "SERVING"
            assert metric(pair, "fiddler_log_lines_dropped_total") == 0, "they wait"
            lines: list[bytes] = []
            reader = threading.Thread(target=lambda: lines.extend(reading))
            reader.start()
            assert pair.stop("gpu_service") == 0
            assert pair.stop("cpu_expert_service") == 0
        log.close()
        reader.join()
    assert sum(b"request ended" in line for line in lines) == NUM_REQUESTS


def test_services_stop_though_nobody_reads_the_log(tiny: Path) -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "wb") as log:
        fcntl.fcntl(theirs, _F_SETPIPE_SZ, PIPE_BYTES)
        with start(tiny, log=log) as pair:
            with Client(pair.target) as client:
                for _ in range(NUM_REQUESTS // 2):
                    client.generate([3, 4, 5], max_tokens=1, timeout=60).text()
            assert pair.stop("gpu_service", signal.SIGTERM) == 0
