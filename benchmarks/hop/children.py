"""The client's and the server's process of a variant."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.hop.variants import Variant

_PROCESS_SETTINGS = ("GRPC_EXPERIMENTS", "OMP_WAIT_POLICY")


class ChildError(Exception):
    """A child process ended early, or printed something unexpected."""


class Ends:
    """A server's and a client's process, which run inside a `with Ends(...) as ends:` block."""

    def __init__(self, variant: Variant, directory: Path) -> None:
        """Starts the server; entering the block starts the client."""
        self.variant = variant
        self._directory = directory
        self._server = self._start("server")
        self._client: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._expect_ready("server", self._server)
            self._client = self._start("client")
            self._expect_ready("client", self._client)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def measure(self, message: str, count: int) -> list[tuple[float, float]]:
        """Seconds of `submit` and of the whole round trip, `count` times."""
        assert self._client is not None, "measure() is for a `with` block"
        assert self._client.stdin is not None
        self._client.stdin.write(json.dumps([message, count]) + "\n")
        self._client.stdin.flush()
        line = self._read(self._client)
        if not line:
            raise ChildError(f"{self.variant.name}: the client ended with status {self._client.wait()}")
        return [(submit, round_trip) for submit, round_trip in json.loads(line)]

    def close(self) -> None:
        """Ends both."""
        for process in (self._client, self._server):
            if process is not None:
                process.kill()
                process.wait()

    def _start(self, end: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name not in _PROCESS_SETTINGS}
        command = [sys.executable, "-m", f"benchmarks.hop.{end}", self.variant.to_json(), str(self._directory)]
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def _expect_ready(self, end: str, process: subprocess.Popen[str]) -> None:
        if self._read(process) != "ready\n":
            raise ChildError(f"{self.variant.name}: the {end} ended with status {process.wait()}")

    @staticmethod
    def _read(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()
