"""The phases of the test on one stack, in order. Each raises ComposeError where something is not as it should be."""

import os
import signal
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from client import Chunk, Client
from client.health import ask_health
from fiddler.v1 import experts_pb2
from observability.generate.unplotted import UNPLOTTED
from tests.compose import panels
from tests.compose.dashboards import metrics_of, panel_queries
from tests.compose.load import COUNTERS, PAIRS, Callers, grown, read
from tests.compose.panels import Snapshot
from tests.compose.prometheus import Prometheus
from tests.compose.stack import OWN_IMAGES, SERVICES, ComposeError, Stack, image, run, wait

_EXPERT_SERVICE = experts_pb2.DESCRIPTOR.services_by_name["ExpertService"].full_name
_PROMPT = "It was a fine morning in the country, and"
_NUM_TOKENS = 60
_LOAD_SECONDS = 20.0
_LONG_WINDOW = "5m"
_STANDSTILL_SECONDS = 0.3
_INTEGRALS = ("fiddler_generation_tokens_total", "fiddler_prompt_tokens_total")


class Phases:
    """What one phase leaves for the next."""

    def __init__(self, stack: Stack) -> None:
        """Does nothing yet."""
        self.stack = stack
        self.prometheus = Prometheus(stack.prometheus_url)
        self.text = ""
        self.idle: Snapshot = {}
        self.idle_long: Snapshot = {}

    def build(self) -> str:
        """The images, from the files as they are."""
        self.stack.compose("build", *SERVICES)
        return ""

    def rules(self) -> str:
        """Prometheus' own tool finds nothing wrong, and the rules' tests pass."""
        observability = Path(__file__).parents[2] / "observability"
        tests = sorted(path.name for path in observability.glob("tests/*.yml"))
        promtool = ["docker", "run", "--rm", "--network", "none", "-v", f"{observability}:/observability:ro"]
        promtool += ["-w", "/observability/tests" if tests else "/observability", "--entrypoint", "/bin/promtool"]
        promtool.append(image("prometheus"))
        run(*promtool, "check", "config", "/observability/prometheus.yml")
        if tests:
            run(*promtool, "test", "rules", *tests)
        return f"{len(tests)} files of tests"

    def start(self) -> str:
        """Everything but Grafana, until it is healthy."""
        began = time.monotonic()
        self.stack.up(*SERVICES)
        self.stack.wait_until_healthy("cpu-expert-service", "gpu-service")
        seconds = time.monotonic() - began
        self.stack.wait_until_healthy("prometheus")
        return f"both services healthy {seconds:.1f} s after `up`"

    def processes(self) -> str:
        """Nobody is root, no root file system can be written, and the socket is its owner's alone."""
        for service in SERVICES:
            facts = self.stack.inspect(service)
            users = run("docker", "top", facts["Id"], "-eo", "uid,pid,args").splitlines()[1:]
            if not users or any(line.split()[0] in ("0", "root") for line in users):
                raise ComposeError(f"{service} has processes of root: {users}")
            host = facts["HostConfig"]
            if not host["ReadonlyRootfs"] or host["CapDrop"] != ["ALL"] or host["Privileged"]:
                raise ComposeError(f"{service} may do more than it must")
            for bindings in facts["NetworkSettings"]["Ports"].values():
                if any(binding["HostIp"] != "127.0.0.1" for binding in bindings or []):
                    raise ComposeError(f"{service} can be reached from other hosts: {bindings}")
        mode = self.stack.compose("exec", "-T", "gpu-service", "stat", "-c", "%a %u", "/run/fiddler").split()
        if mode != ["700", "10001"]:
            raise ComposeError(f"the socket's directory has mode and owner {mode}")
        return ""

    def idle_panels(self) -> str:
        """Prometheus scrapes both and has the rules; what the panels show while nothing happens."""
        wait("both services are scraped", lambda: self.prometheus.total("sum(up{job=~'.*_service'})") == 2)
        groups = self.prometheus.get("rules")["groups"]
        bad = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"]
        alerts = [rule for group in groups for rule in group["rules"] if rule["type"] == "alerting"]
        if bad or not alerts:
            raise ComposeError(f"{len(alerts)} alerts are loaded; rules that fail: {bad}")
        firing = [a["labels"]["alertname"] for a in self.prometheus.get("alerts")["alerts"] if a["state"] == "firing"]
        if firing:
            raise ComposeError(f"alerts without a cause: {firing}")
        # rates need four scrapes
        wait("there are rates", lambda: self.prometheus.total("min(count_over_time(up[5m]))") >= 5)
        self.idle = panels.snapshot(self.prometheus)
        return f"{len(alerts)} alerts, {len(self.idle)} queries"

    def generate(self) -> str:
        """The published port gives transformers' own tokens."""
        from tests.end_to_end.reference import generate, load
        from tests.pairs import DEMO

        with Client(self.stack.target) as client:
            prompt = client.tokenize(_PROMPT).token_ids
            tokens = self._tokens(client)
            self.text = client.generate(_PROMPT, max_tokens=_NUM_TOKENS, temperature=0).text()
        expected, _ = generate(load(DEMO), prompt, _NUM_TOKENS)
        if tokens != expected:
            raise ComposeError(f"generated {tokens}, where transformers has {expected}")
        return f"{len(tokens)} tokens as transformers'"

    @staticmethod
    def _tokens(client: Client) -> list[int]:
        events = client.generate(_PROMPT, max_tokens=_NUM_TOKENS, temperature=0, ignore_eos=True)
        return [token for event in events if isinstance(event, Chunk) for token in event.token_ids]

    def load(self) -> str:
        """A load whose tokens are known: exact in the counters, and seen in the panels."""
        before, pairs = read(self.prometheus, COUNTERS), self._pairs()
        began = time.monotonic()
        with Callers(self.stack.target) as callers:
            time.sleep(_LOAD_SECONDS)
            during = panels.snapshot(self.prometheus)
        load = callers.done()
        expected, counted = load.expected(), grown(before, read(self.prometheus, COUNTERS))
        if counted != expected:
            raise ComposeError(f"counted {counted}, where the load was {expected}")
        ours, theirs = zip(*self._pairs().values(), strict=True)
        if ours != theirs or any(now <= then for now, (then, _) in zip(ours, pairs.values(), strict=True)):
            raise ComposeError(f"the services disagree on {list(PAIRS)}: {ours}, {theirs}")
        after = panels.snapshot(self.prometheus)
        panels.check_data(during)
        moved = panels.check_moved("load", self.idle, during, after)
        panels.check_constant(self.idle, during, {"never", "loss"})
        ratios = self._integrals(expected, time.monotonic() - began)
        return (
            f"{expected['tokens']} tokens, {expected['selections of layer 0']} selections in each layer, exact; "
            f"{moved} queries moved; panels over counters {ratios}"
        )

    def _pairs(self) -> dict[str, tuple[float, float]]:
        self.prometheus.wait_for_scrapes()
        return {name: (self.prometheus.total(a), self.prometheus.total(b)) for name, (a, b) in PAIRS.items()}

    def _integrals(self, expected: dict[str, int], seconds: float) -> str:
        wait("the load has left the panels' window", lambda: self._rate() == 0)
        counts = dict(zip(_INTEGRALS, (expected["tokens"], expected["prompt tokens"]), strict=True))
        counts["fiddler_expert_selections_by_expert_total"] = 4 * expected["selections of layer 0"]
        window = int(seconds) + 45
        ratios = [
            panels.check_integral(self.prometheus, metric, count, window + int(time.monotonic() % 1))
            for metric, count in counts.items()
        ]
        return ", ".join(f"{ratio:.2f}" for ratio in ratios)

    def _rate(self) -> float:
        return self.prometheus.total("sum(rate(fiddler_generation_tokens_total[20s]))")

    def exported(self) -> str:
        """Every metric is on a panel, or listed with the reason why not."""
        records = {
            rule["name"]: rule["query"]
            for group in self.prometheus.get("rules")["groups"]
            for rule in group["rules"]
            if rule["type"] == "recording"
        }
        plotted = set().union(*(metrics_of(query.expression) for query in panel_queries()))
        for name in plotted & records.keys():
            plotted |= metrics_of(records[name])
        exported = self._exported("GPU_METRICS_PORT") | self._exported("CPU_METRICS_PORT")
        unseen, stale = exported - plotted - UNPLOTTED.keys(), UNPLOTTED.keys() - exported | UNPLOTTED.keys() & plotted
        if unseen or stale:
            raise ComposeError(f"on no panel and not in UNPLOTTED: {sorted(unseen)}; wrongly there: {sorted(stale)}")
        return f"{len(exported)} metrics, {len(UNPLOTTED)} of them on no panel"

    def _exported(self, port: str) -> set[str]:
        from urllib.request import urlopen

        with urlopen(f"http://127.0.0.1:{self.stack.ports[port]}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        suffixes = {"counter": "_total", "info": "_info"}
        return {
            family.name + suffixes.get(family.type, "") for family in families if not family.name.endswith("_created")
        }

    def all_remote(self) -> str:
        """The GPU service anew, with no expert of its own, so that losing the CPU expert service is felt."""
        self.stack.change(FIDDLER_GPU_GPU_EXPERT_MEMORY="auto")
        self.stack.up("gpu-service")
        self.stack.wait_until_healthy("gpu-service")
        self.prometheus.wait_for_scrapes()
        self.idle_long = panels.snapshot(self.prometheus, _LONG_WINDOW)
        self._check_tokens()
        return ""

    def kill(self) -> str:
        """The CPU expert service's process is killed amid generations: they go on, and the restart policy acts."""
        facts = self.stack.inspect("cpu-expert-service")
        with Callers(self.stack.target, 2) as callers:
            time.sleep(2)
            _kill(facts["State"]["Pid"])
            killed = time.monotonic()
            wait("the restart policy acts", lambda: self._restarts() > facts["RestartCount"])
            wait("the pair is whole", self._is_whole)
            seconds = time.monotonic() - killed
            time.sleep(2)
        ends = callers.done().ends
        self._check_tokens()
        return f"used again after {seconds:.1f} s; {len(ends)} generations went on"

    def _restarts(self) -> int:
        return int(self.stack.inspect("cpu-expert-service")["RestartCount"])

    def _is_whole(self) -> bool:
        return (
            self.stack.is_healthy("cpu-expert-service") and ask_health(self.stack.target, _EXPERT_SERVICE) == "SERVING"
        )

    def _check_tokens(self) -> None:
        with Client(self.stack.target) as client:
            text = client.generate(_PROMPT, max_tokens=_NUM_TOKENS, temperature=0).text()
        if text != self.text:
            raise ComposeError(f"generated {text!r}, where it was {self.text!r}")

    def stopped(self) -> str:
        """The CPU expert service stopped: a line in the log, panels and an alert that show it, and the same tokens."""
        self.stack.compose("stop", "cpu-expert-service")
        wait("it is lost", lambda: ask_health(self.stack.target, _EXPERT_SERVICE) == "NOT_SERVING")
        self._check_tokens()
        line = "the CPU expert service is lost; going on without it"
        wait("the log says so", lambda: line in self.stack.logs("gpu-service"))
        wait("Prometheus knows", lambda: self.prometheus.total("fiddler_degraded") == 1)
        wait("the alert is on its way", lambda: "FiddlerDegraded" in self._alerts())
        lost = panels.snapshot(self.prometheus, _LONG_WINDOW)
        moved = panels.check_moved("loss", self.idle_long, lost)
        self.stack.up("cpu-expert-service")
        wait("the pair is whole", self._is_whole)
        self._check_tokens()
        return f"{moved} queries moved"

    def _alerts(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.prometheus.get("alerts")["alerts"]}

    def down(self) -> str:
        """Services end by themselves in time, and leave no socket behind."""
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
    """Kills a process of a container; it stands still before, so that a message waits for an answer by then."""
    _signal(pid, signal.SIGSTOP)
    time.sleep(_STANDSTILL_SECONDS)
    _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except PermissionError:  # not root: the same user in the host's process namespace may
        code = f"import os; os.kill({pid}, {int(number)})"
        run("docker", "run", "--rm", "--pid", "host", "--entrypoint", "python", image("gpu-service"), "-c", code)
