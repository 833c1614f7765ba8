"""The services of compose.yaml with the test's own project name, ports and image tags."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fiddler.transport.ports import reserve

ROOT = Path(__file__).parents[2]
SERVICES = ("cpu-expert-service", "gpu-service", "http-gateway", "prometheus")
"""The services that are started: all but Grafana."""
OWN_IMAGES = ("cpu-expert-service", "gpu-service", "http-gateway")
VERSION = "compose-test"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PORTS = ("HTTP_PORT", "GPU_SERVICE_PORT", "GPU_METRICS_PORT", "CPU_METRICS_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")


class ComposeError(AssertionError):
    """A command or a check failed."""


def run(*command: str, environment: Mapping[str, str] | None = None, timeout_seconds: float = 900) -> str:
    """Runs a command and returns its standard output.

    Raises:
        ComposeError: It failed. The message has everything that it printed.
    """
    done = attempt(*command, environment=environment, timeout_seconds=timeout_seconds)
    if done.returncode:
        raise ComposeError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def attempt(
    *command: str, environment: Mapping[str, str] | None = None, timeout_seconds: float = 900
) -> subprocess.CompletedProcess[str]:
    """Runs a command that may fail."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_seconds, check=False
    )
    # docker compose prints escape sequences even without a terminal
    done.stdout, done.stderr = _ESCAPES.sub("", done.stdout), _ESCAPES.sub("", done.stderr)
    return done


def wait(what: str, condition: Callable[[], bool], *, timeout_seconds: float = 120, poll_seconds: float = 0.5) -> float:
    """Waits until a condition holds, and returns the seconds of the wait.

    Raises:
        ComposeError: Time ran out.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_seconds:
            raise ComposeError(f"not within {timeout_seconds:g} s: {what}")
        time.sleep(poll_seconds)
    return time.monotonic() - began


def _free_ports(count: int) -> list[int]:
    """Different ports, which are not held: what publishes them may be a proxy that wants them to itself."""
    held = [reserve() for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in held]
    for each in held:
        each.close()
    return ports


class Stack:
    """One project. The user's environment does not reach compose.yaml."""

    def __init__(self, project: str, *overrides: Path, **settings: str) -> None:
        """Chooses ports. Nothing is started yet.

        Args:
            project: The name. Stacks of the same name are the same project.
            overrides: Files to apply after compose.yaml.
            settings: Environment variables that compose.yaml reads.
        """
        self.project = project
        self.ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        files = [ROOT / "compose.yaml", *overrides]
        self._command = ["docker", "compose", "--ansi", "never", "--project-name", project]
        self._command += [part for file in files for part in ("--file", str(file))]
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        kept |= {name: value for name, value in os.environ.items() if name.startswith(("DOCKER_", "BUILDX_", "XDG_"))}
        ports = {name: str(port) for name, port in self.ports.items()}
        self._environment = {**kept, **ports, "FIDDLER_VERSION": VERSION, **settings}

    def change(self, **settings: str) -> None:
        """Changes settings from the next `up` on."""
        self._environment |= settings

    @property
    def target(self) -> str:
        """The GPU service's address on this host."""
        return f"127.0.0.1:{self.ports['GPU_SERVICE_PORT']}"

    @property
    def http_url(self) -> str:
        """The HTTP gateway's URL on this host."""
        return f"http://127.0.0.1:{self.ports['HTTP_PORT']}"

    @property
    def prometheus_url(self) -> str:
        """Prometheus' URL on this host."""
        return f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}"

    def compose(self, *arguments: str) -> str:
        """Runs docker compose with these arguments, as `run` does."""
        return run(*self._command, *arguments, environment=self._environment)

    def attempt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs docker compose with these arguments, and allows it to fail."""
        return attempt(*self._command, *arguments, environment=self._environment)

    def up(self, *services: str) -> None:
        """Starts services. Those that they depend on are healthy when this returns."""
        self.compose("up", "--detach", "--no-build", "--pull", "never", *services)

    def down(self, *arguments: str) -> None:
        """Removes the containers."""
        self.compose("down", "--remove-orphans", *arguments)

    def logs(self, *services: str) -> str:
        """Returns everything that the services printed."""
        return self.compose("logs", "--no-color", "--no-log-prefix", *services)

    def inspect(self, service: str) -> Any:
        """Returns the engine's description of a service's container."""
        container = self.compose("ps", "--all", "--quiet", service).strip()
        if not container:
            raise ComposeError(f"{service} has no container")
        return json.loads(run("docker", "inspect", container))[0]

    def is_healthy(self, service: str) -> bool:
        """Whether the service runs and its health check succeeds."""
        state = self.inspect(service)["State"]
        return bool(state["Running"] and state["Health"]["Status"] == "healthy")

    def wait_until_healthy(self, *services: str, timeout_seconds: float = 240) -> None:
        """Waits for compose.yaml's health checks."""
        for service in services:
            wait(f"{service} is healthy", partial(self.is_healthy, service), timeout_seconds=timeout_seconds)


def image(service: str) -> str:
    """The name of a service's image in the test."""
    return f"fiddler-{service}:{VERSION}"
