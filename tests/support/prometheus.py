"""A Prometheus server on this machine, with the rules of observability/, that scrapes given addresses.

It is the program on PATH, or, if the environment variable IMAGE_VARIABLE names an image, Docker's container of it.
"""

import os
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
from tests.compose.prometheus import Prometheus
from tests.support.ports import free_port

IMAGE_VARIABLE = "FIDDLER_TEST_PROMETHEUS_IMAGE"
WAIT_SECONDS = 120.0
_RULES = ROOT / "observability" / "rules"


def is_available() -> bool:
    """Whether there is a Prometheus to run."""
    return bool(os.environ.get(IMAGE_VARIABLE) or shutil.which("prometheus"))


def _program(folder: Path) -> list[str]:
    """The beginning of the command; a container sees this host's network, the rules and the folder."""
    image = os.environ.get(IMAGE_VARIABLE)
    if not image:
        return ["prometheus"]
    mounts = ["--volume", f"{folder}:{folder}", "--volume", f"{_RULES}:{_RULES}:ro"]
    owner = ["--user", f"{os.getuid()}:{os.getgid()}"]
    return ["docker", "run", "--rm", "--network", "host", *owner, *mounts, "--entrypoint", "/bin/prometheus", image]


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
            "rule_files": [str(_RULES / "*.yml")],
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": list(targets)}]}
                for name, targets in self._jobs.items()
            ],
        }
        config.write_text(yaml.safe_dump(content))
        address, data = f"127.0.0.1:{self._port}", folder / "data"
        command = [*_program(folder), f"--config.file={config}", f"--storage.tsdb.path={data}"]
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
        self._process.terminate()  # which Docker's client passes on to the container
        self._process.wait(WAIT_SECONDS)
        self._directory.cleanup()

    def _is_ready(self) -> bool:
        try:
            num_targets = sum(map(len, self._jobs.values()))
            # on a busy machine an answer may take longer than the second that a scrape may take
            return self.api.total("sum(max_over_time(up[2m]))") == num_targets
        except (OSError, urllib.error.HTTPError):
            return False
