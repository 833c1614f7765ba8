"""A Prometheus server on this machine, with the rules of observability/, that scrapes given addresses."""

import shutil
import subprocess
import tempfile
import time
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from observability.generate.files import ROOT
from pair import free_port
from tests.compose.prometheus import Prometheus

PROGRAM = shutil.which("prometheus")
WAIT_SECONDS = 60.0


class PrometheusServer:
    """Runs inside a `with` block."""

    def __init__(self, jobs: Mapping[str, Sequence[str]], interval_seconds: int = 1) -> None:
        """Prepares.

        Args:
            jobs: The addresses that are scraped, HOST:PORT, by their jobs' names.
            interval_seconds: How often they are, and rules are evaluated.
        """
        self._jobs = jobs
        self._interval = f"{interval_seconds}s"
        self._directory = tempfile.TemporaryDirectory(prefix="prometheus-")
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.api = Prometheus(f"http://127.0.0.1:{self._port}")

    def __enter__(self) -> Self:
        folder = Path(self._directory.name)
        config = folder / "prometheus.yml"
        content = {
            "global": {"scrape_interval": self._interval, "evaluation_interval": self._interval},
            "rule_files": [str(ROOT / "observability" / "rules" / "*.yml")],
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": list(targets)}]}
                for name, targets in self._jobs.items()
            ],
        }
        config.write_text(yaml.safe_dump(content))
        address, data = f"127.0.0.1:{self._port}", folder / "data"
        command = [str(PROGRAM), f"--config.file={config}", f"--storage.tsdb.path={data}"]
        self._process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._is_ready():
            assert self._process.poll() is None, "Prometheus ended"
            assert time.monotonic() < deadline, "Prometheus does not answer"
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()

    def _is_ready(self) -> bool:
        try:
            num_targets = sum(map(len, self._jobs.values()))
            return self.api.total("sum(up)") == num_targets
        except (OSError, urllib.error.HTTPError):
            return False
