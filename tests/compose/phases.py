"""The phases of the test on one stack, in order. Each raises ComposeError if a check fails.

Phases that break the pair are in losses.py.
"""

import json
import time
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

from client import Client, GenerationChunk
from observability.generate.unplotted import UNPLOTTED
from tests.compose import panels
from tests.compose.dashboards import metrics_of, panel_queries
from tests.compose.load import COUNTERS, PAIRS, Callers, grown, read
from tests.compose.panels import Snapshot
from tests.compose.prometheus import Prometheus
from tests.compose.stack import ROOT, SERVICES, ComposeError, Stack, image, run, wait

_PROMPT = "It was a fine morning in the country, and"
_NUM_TOKENS = 60
_LOAD_SECONDS = 20.0
_PATIENCE_SECONDS = 180.0
_SCRAPES_SECONDS = 11.0  # two scrapes, so that what they count is within a rate's window
COSTS_FILE = "/var/cache/fiddler/costs.json"
"""The costs file in the GPU service's container."""
_GIVE_COSTS = f"""
import json, pathlib
path = pathlib.Path("{COSTS_FILE}")
content = json.loads(path.read_text())
content["measurements"] |= {{"cpu": [[1, 2e-3]], "gpu": [[1, 1e-4]], "hop": [[1, 3e-4]], "transfer": [5e-3]}}
path.write_text(json.dumps(content))
"""
_SERVING_SECONDS = 'time() - max(process_start_time_seconds{job=~"gpu_service|cpu_expert_service"})'
_IDLE_SECONDS = 30.0  # the start of the services, then four scrapes
_INTEGRALS = ("fiddler_generation_tokens_total", "fiddler_prompt_tokens_total")


class Phases:
    """The phases, and the state that they share."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.prometheus = Prometheus(stack.prometheus_url)
        self.text = ""
        self.idle: Snapshot = {}

    def build(self) -> str:
        """Builds the images."""
        self.stack.compose("build", *SERVICES)
        with_gpu = Stack(self.stack.project, ROOT / "compose.gpu.yaml")
        with_gpu.compose("config", "--quiet")  # the most that can be checked without a GPU
        return ""

    def rules(self) -> str:
        """Promtool accepts the configuration, and the rules' tests pass."""
        observability = ROOT / "observability"
        tests = sorted(path.name for path in observability.glob("tests/*.yml"))
        promtool = ["docker", "run", "--rm", "--network", "none", "-v", f"{observability}:/observability:ro"]
        promtool += ["-w", "/observability/tests" if tests else "/observability", "--entrypoint", "/bin/promtool"]
        promtool.append(image("prometheus"))
        run(*promtool, "check", "config", "/observability/prometheus.yml")
        if tests:
            run(*promtool, "test", "rules", *tests)
        return f"{len(tests)} files of tests"

    def start(self) -> str:
        """Starts everything but Grafana, and waits until it is healthy."""
        began = time.monotonic()
        self.stack.up(*SERVICES)
        self.stack.wait_until_healthy("cpu-expert-service", "gpu-service")
        seconds = time.monotonic() - began
        self.stack.wait_until_healthy("http-gateway", "prometheus")
        return f"both services healthy {seconds:.1f} s after `up`"

    def costs(self) -> str:
        """Sets costs like those of large experts, with which experts are streamed and swapped."""
        self.stack.compose("exec", "-T", "gpu-service", "python", "-c", _GIVE_COSTS)
        self.stack.compose("restart", "gpu-service")
        self.stack.wait_until_healthy("gpu-service")
        return ""

    def processes(self) -> str:
        """No process is root's, root file systems are read-only, and only its owner can use the socket."""
        for service in SERVICES:
            facts = self.stack.inspect(service)
            users = run("docker", "top", facts["Id"], "-eo", "uid,pid,args").splitlines()[1:]
            if not users or any(line.split()[0] in ("0", "root") for line in users):
                raise ComposeError(f"{service} has processes of root: {users}")
            host = facts["HostConfig"]
            if not host["ReadonlyRootfs"] or host["CapDrop"] != ["ALL"] or host["Privileged"]:
                raise ComposeError(f"{service} has more privileges than it needs")
            for bindings in facts["NetworkSettings"]["Ports"].values():
                if any(binding["HostIp"] != "127.0.0.1" for binding in bindings or []):
                    raise ComposeError(f"{service} can be reached from other hosts: {bindings}")
        mode = self.stack.compose("exec", "-T", "gpu-service", "stat", "-c", "%a %u", "/run/fiddler").split()
        if mode != ["700", "10001"]:
            raise ComposeError(f"the socket's directory has mode and owner {mode}")
        return ""

    def idle_panels(self) -> str:
        """Prometheus scrapes both services and loads the rules; records what the panels show without load."""
        wait("both services are scraped", lambda: self.prometheus.total("sum(up{job=~'.*_service'})") == 2)
        groups = self.prometheus.get("rules")["groups"]
        bad = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"]
        alerts = [rule for group in groups for rule in group["rules"] if rule["type"] == "alerting"]
        if bad or not alerts:
            raise ComposeError(f"{len(alerts)} alerts are loaded; failing rules: {bad}")
        firing = [a["labels"]["alertname"] for a in self.prometheus.get("alerts")["alerts"] if a["state"] == "firing"]
        if firing:
            raise ComposeError(f"alerts fire without a cause: {firing}")
        wait("rates have data", lambda: self.prometheus.total(_SERVING_SECONDS) > _IDLE_SECONDS)
        self.idle = panels.snapshot(self.prometheus)
        return f"{len(alerts)} alerts, {len(self.idle)} queries"

    def generate(self) -> str:
        """Generates through the published port the same tokens as transformers."""
        from transformers.utils import logging

        from tests.support.pairs import DEMO
        from tests.support.reference import generate, load

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        with Client(self.stack.target) as client:
            prompt = client.tokenize(_PROMPT).token_ids
            tokens = self._tokens(client)
            self.text = client.generate(_PROMPT, max_tokens=_NUM_TOKENS, temperature=0).text()
        expected, _ = generate(load(DEMO), prompt, _NUM_TOKENS)
        if tokens != expected:
            raise ComposeError(f"generated {tokens}, but transformers {expected}")
        return f"{len(tokens)} tokens, the same as transformers'"

    @staticmethod
    def _tokens(client: Client) -> list[int]:
        events = client.generate(_PROMPT, max_tokens=_NUM_TOKENS, temperature=0, ignore_eos=True)
        return [token for event in events if isinstance(event, GenerationChunk) for token in event.token_ids]

    def http(self) -> str:
        """The page and OpenAI's API answer on the published port, with the text that gRPC gives."""
        page = self._http("/").decode()
        if "<title>fiddler</title>" not in page:
            raise ComposeError(f"the page is {page[:200]!r}")
        model = json.loads(self._http("/v1/models"))["data"][0]["id"]
        body = {"prompt": _PROMPT, "max_tokens": _NUM_TOKENS, "temperature": 0, "model": model}
        text = json.loads(self._http("/v1/completions", body))["choices"][0]["text"]
        if text != self.text:
            raise ComposeError(f"HTTP gave {text!r}, but gRPC {self.text!r}")
        streamed = {**body, "stream": True}
        if b"data: [DONE]" not in self._http("/v1/completions", streamed):
            raise ComposeError("the streamed answer has no end")
        chat = {"messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 4}
        answer = json.loads(self._http("/v1/chat/completions", chat))["choices"][0]
        if answer["finish_reason"] != "length":
            raise ComposeError(f"the chat's answer is {answer}")
        time.sleep(_SCRAPES_SECONDS)
        panels.check_http_data(panels.snapshot(self.prometheus))
        layers = json.loads(self._http("/experts"))["layers"]
        if not layers:
            raise ComposeError("/experts has no layers")
        return f"the page has {len(page)} characters; {len(layers)} layers of experts"

    def _http(self, path: str, body: dict[str, object] | None = None) -> bytes:
        content = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.stack.http_url}{path}", content, {"content-type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def check_tokens(self) -> None:
        """Raises ComposeError if the generated text differs from the first one."""
        with Client(self.stack.target) as client:
            text = client.generate(_PROMPT, max_tokens=_NUM_TOKENS, temperature=0).text()
        if text != self.text:
            raise ComposeError(f"generated {text!r}, but {self.text!r} before")

    def load(self) -> str:
        """Runs a load of known tokens: counters must match exactly, and panels must show it."""
        before, pairs = read(self.prometheus, COUNTERS), self._pairs()
        began = time.monotonic()
        with Callers(self.stack.target) as callers:
            during = self._shown_under_load()
        load = callers.done()
        expected, counted = load.expected(), grown(before, read(self.prometheus, COUNTERS))
        if counted != expected:
            raise ComposeError(f"counted {counted}, but the load was {expected}")
        for name, (ours, theirs) in self._pairs().items():
            ours_before, theirs_before = pairs[name]
            if ours - ours_before != theirs - theirs_before or ours <= ours_before:
                raise ComposeError(
                    f"{name}: one service counted {ours - ours_before:g}, the other {theirs - theirs_before:g}"
                )
        after = panels.snapshot(self.prometheus)
        moved = panels.check_moved("load", self.idle, during, after)
        panels.check_constant(self.idle, during, {"never", "loss"})
        ratios = self._integrals(expected, time.monotonic() - began)
        return (
            f"{expected['tokens']} tokens, {expected['selections of layer 0']} selections in each layer, exact; "
            f"{moved} queries changed; panels over counters {ratios}"
        )

    def _shown_under_load(self) -> Snapshot:
        """What the panels show once each has data. On a busy machine that takes more than one window of rates."""
        deadline = time.monotonic() + _LOAD_SECONDS + _PATIENCE_SECONDS
        while True:
            time.sleep(_LOAD_SECONDS)
            shown = panels.snapshot(self.prometheus)
            try:
                panels.check_data(shown)
            except ComposeError:
                if time.monotonic() > deadline:
                    raise
            else:
                return shown

    def _pairs(self) -> dict[str, tuple[float, float]]:
        self.prometheus.wait_for_scrapes()
        return {name: (self.prometheus.total(a), self.prometheus.total(b)) for name, (a, b) in PAIRS.items()}

    def _integrals(self, expected: dict[str, int], seconds: float) -> str:
        wait("the load is outside the panels' window", lambda: self._rate() == 0)
        counts = dict(zip(_INTEGRALS, (expected["tokens"], expected["prompt tokens"]), strict=True))
        counts["fiddler_expert_selections_by_expert_total"] = 4 * expected["selections of layer 0"]
        window = int(seconds) + 45
        ratios = [
            panels.check_integral(self.prometheus, metric, expected=count, seconds=window + int(time.monotonic() % 1))
            for metric, count in counts.items()
        ]
        return ", ".join(f"{ratio:.2f}" for ratio in ratios)

    def _rate(self) -> float:
        return self.prometheus.total("sum(rate(fiddler_generation_tokens_total[20s]))")

    def exported(self) -> str:
        """Every metric is on a panel, or listed with the reason."""
        records = {
            rule["name"]: rule["query"]
            for group in self.prometheus.get("rules")["groups"]
            for rule in group["rules"]
            if rule["type"] == "recording"
        }
        plotted = set().union(*(metrics_of(query.expression) for query in panel_queries()))
        for name in plotted & records.keys():
            plotted |= metrics_of(records[name])
        exported = set().union(
            *(self._exported(port) for port in ("GPU_METRICS_PORT", "CPU_METRICS_PORT", "HTTP_PORT"))
        )
        unseen, stale = exported - plotted - UNPLOTTED.keys(), UNPLOTTED.keys() - exported | UNPLOTTED.keys() & plotted
        if unseen or stale:
            raise ComposeError(
                f"on no panel, not in UNPLOTTED: {sorted(unseen)}; wrongly in UNPLOTTED: {sorted(stale)}"
            )
        return f"{len(exported)} metrics, {len(UNPLOTTED)} of them on no panel"

    def _exported(self, port: str) -> set[str]:
        with urlopen(f"http://127.0.0.1:{self.stack.ports[port]}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        suffixes = {"counter": "_total", "info": "_info"}
        return {
            family.name + suffixes.get(family.type, "") for family in families if not family.name.endswith("_created")
        }
