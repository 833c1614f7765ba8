"""The command line; what is measured is said in the package."""

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import benchmarks.metrics
from benchmarks.metrics.timed_service import CALLS, SECONDS
from benchmarks.results import report
from benchmarks.targets import Judge, Target
from client import Client
from client.top.rates import Growth, increase
from client.top.scrape import Endpoint, Exposition
from fiddler import process
from pair import Pair
from tests import checkpoints
from tests.large_checkpoint import write_mixtral

_DEMO = Path(__file__).parents[2] / "models" / "demo"
_DECODED = {"demo": 128, "mixtral_2_layers": 32}
_TIMEOUT_SECONDS = 10.0
_SERVICES = ("gpu_service", "cpu_expert_service")
_MOST = 0.01

TARGETS = {f"metrics.{model}.counting_over_step": Target(_MOST, at_least=False) for model in _DECODED}


class _TimedPair(Pair):
    """Services with a clock around what counts."""

    def _spawn(self, service: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.metrics.timed_service", service, *arguments]
        return subprocess.Popen(command, env=self._environment, stderr=self._log, stdin=subprocess.DEVNULL)


def main() -> None:
    """Runs the benchmark."""
    process.prepare()
    with (
        report(benchmarks.metrics.__doc__, ("--rounds", 15), ("--checkpoint", "")) as (out, arguments),
        tempfile.TemporaryDirectory(prefix="fiddler-") as temporary,
    ):
        judge = Judge(out, TARGETS)
        directory = Path(arguments.checkpoint or temporary) / "mixtral_2_layers"
        if not (directory / "tokenizer.json").exists():
            directory.mkdir(parents=True, exist_ok=True)
            write_mixtral(directory, hidden=4096, inner=14336, num_layers=2, num_heads=32, vocab_size=32000)
            checkpoints.write_tokenizer(directory)
        for name, model in (("demo", _DEMO), ("mixtral_2_layers", directory)):
            _measure(judge, name, model, arguments.rounds)
        judge.summarise()


def _measure(judge: Judge, name: str, model: Path, rounds: int) -> None:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with (
        tempfile.TemporaryFile() as log,
        _TimedPair(model, log=log, gpu_arguments=("--device", "cpu")) as pair,
        Client(pair.target) as client,
    ):
        endpoints = _endpoints(pair)
        for number in range(-1, rounds):  # the first warms up
            scraped = [_scrape(endpoint) for endpoint in endpoints]
            prompt = [3 + (position * 37 + number * 11) % 250 for position in range(16)]
            client.generate(prompt, max_tokens=_DECODED[name], ignore_eos=True, temperature=1.0, seed=number + 1).text()
            grown = [
                increase(before, _scrape(endpoint)[0]) for (before, _), endpoint in zip(scraped, endpoints, strict=True)
            ]
            if number >= 0:
                _add(found, grown, [seconds for _, seconds in scraped])
    for (what, unit), values in found.items():
        judge.samples(f"metrics.{name}.{what}", values, unit)


def _add(found: dict[tuple[str, str], list[float]], grown: Sequence[Growth], scrapes: Sequence[float]) -> None:
    steps = _value(grown[0], "fiddler_step_seconds_count", phase="decode")
    step = _value(grown[0], "fiddler_step_seconds_sum", phase="decode") / steps
    found["step", "s"].append(step)
    # the prompt's own step counts as much as any other
    counting = [_value(each, f"{SECONDS}_total") / (steps + 1) for each in grown]
    for service, growth, seconds, scrape in zip(_SERVICES, grown, counting, scrapes, strict=True):
        found[f"{service}.counting", "s"].append(seconds)
        found[f"{service}.calls", "calls"].append(_value(growth, f"{CALLS}_total") / (steps + 1))
        found[f"{service}.scrape", "s"].append(scrape)
    found["counting_over_step", "ratio"].append(sum(counting) / step)


def _endpoints(pair: Pair) -> list[Endpoint]:
    ports = (pair.gpu_metrics_port, pair.cpu_metrics_port)
    return [Endpoint(service, service, f"127.0.0.1:{port}") for service, port in zip(_SERVICES, ports, strict=True)]


def _scrape(endpoint: Endpoint) -> tuple[Exposition, float]:
    began = time.perf_counter()
    exposition = endpoint.scrape(_TIMEOUT_SECONDS)
    return exposition, time.perf_counter() - began


def _value(growth: Growth, name: str, **labels: str) -> float:
    value = growth.value(name, **labels)
    assert value is not None, name
    return value


if __name__ == "__main__":
    main()
