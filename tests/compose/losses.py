"""The phases in which the pair is broken, and the end. They follow those of phases.py, on the same stack."""

import os
import signal
import time

from client.health import ask_health
from fiddler.v1 import experts_pb2
from tests.compose import panels
from tests.compose.load import Callers
from tests.compose.panels import Snapshot
from tests.compose.phases import COSTS_FILE, Phases
from tests.compose.stack import OWN_IMAGES, ComposeError, image, run, wait

_EXPERT_SERVICE = experts_pb2.DESCRIPTOR.services_by_name["ExpertService"].full_name
_LONG_WINDOW = "5m"
_STANDSTILL_SECONDS = 0.3


class Losses:
    """The phases, and the state that they share."""

    def __init__(self, phases: Phases) -> None:
        """Takes over the stack.

        Args:
            phases: The phases before.
        """
        self._phases = phases
        self.stack = phases.stack
        self.prometheus = phases.prometheus
        self.idle: Snapshot = {}

    def all_remote(self) -> str:
        """Restarts the GPU service without resident experts, so that losing the CPU expert service has an effect."""
        self.stack.compose("exec", "-T", "gpu-service", "rm", COSTS_FILE)  # costs are measured again
        self.stack.change(FIDDLER_GPU_GPU_EXPERT_MEMORY="auto")
        self.stack.up("gpu-service")
        self.stack.wait_until_healthy("gpu-service")
        self.prometheus.wait_for_scrapes()
        panels.check_moved("slots", self._phases.idle, panels.snapshot(self.prometheus))
        self.idle = panels.snapshot(self.prometheus, _LONG_WINDOW)
        self._phases.check_tokens()
        return ""

    def kill(self) -> str:
        """The CPU expert service is killed during generations: they continue, and the restart policy restarts it."""
        facts = self.stack.inspect("cpu-expert-service")
        with Callers(self.stack.target, 2) as callers:
            time.sleep(2)
            _kill(facts["State"]["Pid"])
            killed = time.monotonic()
            wait("the restart policy restarts it", lambda: self._restarts() > facts["RestartCount"])
            wait("the pair is whole", self._is_whole)
            seconds = time.monotonic() - killed
            time.sleep(2)
        ends = callers.done().ends
        self._phases.check_tokens()
        return f"used again after {seconds:.1f} s; {len(ends)} generations continued"

    def _restarts(self) -> int:
        return int(self.stack.inspect("cpu-expert-service")["RestartCount"])

    def _is_whole(self) -> bool:
        return (
            self.stack.is_healthy("cpu-expert-service") and ask_health(self.stack.target, _EXPERT_SERVICE) == "SERVING"
        )

    def stopped(self) -> str:
        """The CPU expert service is stopped: a log line, panels and an alert show it, and tokens are the same."""
        self.stack.compose("stop", "cpu-expert-service")
        wait("it is lost", lambda: ask_health(self.stack.target, _EXPERT_SERVICE) == "NOT_SERVING")
        self._phases.check_tokens()
        line = "CPU expert service lost; computing its experts here"
        wait("the log reports the loss", lambda: line in self.stack.logs("gpu-service"))
        wait("Prometheus has scraped it", lambda: self.prometheus.total("fiddler_degraded") == 1)
        wait("the alert is pending", lambda: "FiddlerDegraded" in self._alerts())
        lost = panels.snapshot(self.prometheus, _LONG_WINDOW)
        moved = panels.check_moved("loss", self.idle, lost)
        self.stack.up("cpu-expert-service")
        wait("the pair is whole", self._is_whole)
        self._phases.check_tokens()
        return f"{moved} queries changed"

    def _alerts(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.prometheus.get("alerts")["alerts"]}

    def down(self) -> str:
        """Services exit in time when stopped, and leave no socket behind."""
        containers = {service: self.stack.inspect(service)["Id"] for service in OWN_IMAGES}
        self.stack.compose("stop")
        for service, container in containers.items():
            status = run("docker", "inspect", "--format", "{{.State.ExitCode}}", container).strip()
            if status != "0":
                raise ComposeError(f"{service} ended with status {status}")
        self.stack.down()
        volume = f"{self.stack.project}_sockets"
        listing = ["docker", "run", "--rm", "-v", f"{volume}:/run/fiddler", "--entrypoint", "ls", image("gpu-service")]
        if left := run(*listing, "-A", "/run/fiddler").split():
            raise ComposeError(f"the volume of sockets still has {left}")
        return ""


def _kill(pid: int) -> None:
    """Kills a process of a container. It is paused first, so that a message is waiting for its answer."""
    _signal(pid, signal.SIGSTOP)
    time.sleep(_STANDSTILL_SECONDS)
    _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except PermissionError:  # not root: use a container in the host's process namespace
        code = f"import os; os.kill({pid}, {int(number)})"
        run("docker", "run", "--rm", "--pid", "host", "--entrypoint", "python", image("gpu-service"), "-c", code)
