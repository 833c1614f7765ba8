"""`python -m cpu_expert_service` as a process, forked from one that has imported torch: see warm_processes."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.warm_processes import WarmProcess

START_SECONDS = 120
"""How long a service may take to start; it takes two seconds on an idle machine."""

SERVING: int = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: int = health_pb2.HealthCheckResponse.NOT_SERVING


def health(channel: grpc.Channel, service: str = "") -> int | None:
    """The status that a server reports; None if none answers."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status)
    except grpc.RpcError:
        return None


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    status: int
    errors: str


class Process:
    """One service on a socket; its /metrics are off unless arguments say otherwise."""

    def __init__(self, model: Path, listen: str, *arguments: str, code: str | None = None) -> None:
        """Starts it.

        Args:
            model: Its checkpoint.
            listen: Its address.
            arguments: More flags.
            code: What is run in place of the module, by a process that imports everything itself.
        """
        self.address = listen
        flags = ["--model", str(model), "--listen", listen, "--metrics-port", "0", "--dtype", "float32", *arguments]
        kind, command = (
            (WarmProcess, ["cpu_expert_service"]) if code is None else (subprocess.Popen, [sys.executable, "-c", code])
        )
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self._process: subprocess.Popen[bytes] = kind([*command, *flags], stderr=self._errors, stdin=subprocess.DEVNULL)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def num_threads(self) -> int:
        return psutil.Process(self._process.pid).num_threads()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def outcome(self) -> Outcome:
        """Waits for the end."""
        status = self._process.wait(START_SECONDS)
        self._errors.seek(0)
        return Outcome(status, self._errors.read().decode())

    def wait_until_serving(self) -> None:
        self.wait_for_health(SERVING)

    def wait_for_health(self, status: int) -> None:
        """Waits until it reports a status."""
        deadline = time.monotonic() + START_SECONDS
        with grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            while (now := health(channel)) != status:
                assert self.is_running, self.outcome()
                assert time.monotonic() < deadline, f"it reports {now}"
                time.sleep(0.05)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._errors.close()


@contextmanager
def start(model: Path, listen: str, *arguments: str, code: str | None = None) -> Iterator[Process]:
    """A process that does not outlive the test; see Process."""
    process = Process(model, listen, *arguments, code=code)
    try:
        yield process
    finally:
        process.kill()
