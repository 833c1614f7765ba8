"""The command line; what is measured is said in the package."""

import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import benchmarks.metrics
from benchmarks.harness.results import report
from benchmarks.harness.targets import Judge, Target
from client import Chunk, Client
from client.top.scrape import Endpoint
from fiddler import process
from pair import Pair
from tests.support import checkpoints
from tests.support.large_checkpoint import write_mixtral

_DEMO = Path(__file__).parents[2] / "models" / "demo"
_DECODED = {"demo": 128, "mixtral_2_layers": 24}
_PAUSE_SECONDS = 0.2  # for the signal, and until threads sleep
_TIMEOUT_SECONDS = 10.0
_MOST = 0.01

TARGETS = {f"metrics.{model}.counting_over_step": Target(_MOST, at_least=False) for model in _DECODED}


class _SwitchedPair(Pair):
    """Services that stop counting, and begin again."""

    def _spawn(self, service: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.metrics.switched_service", service, *arguments]
        return subprocess.Popen(command, env=self._environment, stderr=self._log, stdin=subprocess.DEVNULL)

    def switch(self) -> None:
        """Has both count no more, or again."""
        for service in self.processes.values():
            service.send_signal(signal.SIGUSR1)
        time.sleep(_PAUSE_SECONDS)


def main() -> None:
    """Runs the benchmark."""
    process.prepare()
    with (
        report(
            benchmarks.metrics.__doc__, ("--rounds", 25), ("--models", ",".join(_DECODED)), ("--checkpoint", "")
        ) as (out, arguments),
        tempfile.TemporaryDirectory(prefix="fiddler-") as temporary,
    ):
        judge = Judge(out, TARGETS)
        for name in arguments.models.split(","):
            model = _DEMO if name == "demo" else _mixtral(Path(arguments.checkpoint or temporary) / name)
            _measure(judge, name, model, arguments.rounds)
        judge.summarise()


def _mixtral(directory: Path) -> Path:
    if not (directory / "tokenizer.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_mixtral(directory, hidden=4096, inner=14336, num_layers=2, num_heads=32, vocab_size=32000)
        checkpoints.write_tokenizer(directory)
    return directory


def _measure(judge: Judge, name: str, model: Path, rounds: int) -> None:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with (
        tempfile.TemporaryFile() as log,
        _SwitchedPair(model, log=log, gpu_arguments=("--device", "cpu")) as pair,
        Client(pair.target) as client,
    ):
        for number in range(-1, rounds):  # the first warms up
            counted = _step_seconds(client, number, _DECODED[name])
            pair.switch()
            uncounted = _step_seconds(client, number, _DECODED[name])
            pair.switch()
            if number >= 0:
                found["step", "s"].append(counted)
                found["step_uncounted", "s"].append(uncounted)
        steps, uncounted_steps = found["step", "s"], found["step_uncounted", "s"]
        # beside the mean of the ones before and after, lest a machine that becomes slower looks like a cost
        found["counting_over_step", "ratio"] = [
            (before + after) / 2 / uncounted - 1
            for before, after, uncounted in zip(steps, steps[1:], uncounted_steps, strict=False)
        ]
        for service, port in (("gpu_service", pair.gpu_metrics_port), ("cpu_expert_service", pair.cpu_metrics_port)):
            endpoint = Endpoint(service, service, f"127.0.0.1:{port}")
            found[f"{service}.scrape", "s"] = [_scrape_seconds(endpoint) for _ in range(rounds)]
    for (what, unit), values in found.items():
        judge.samples(f"metrics.{name}.{what}", values, unit)


def _step_seconds(client: Client, number: int, num_tokens: int) -> float:
    """Mean seconds between two tokens; the same tokens for the same number."""
    prompt = [3 + (position * 37 + number * 11) % 250 for position in range(16)]
    arrivals = []
    with client.generate(
        prompt, max_tokens=num_tokens, ignore_eos=True, temperature=1.0, seed=number + 1
    ) as generation:
        for event in generation:
            if isinstance(event, Chunk):
                arrivals += [time.perf_counter()] * len(event.token_ids)
    return (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)


def _scrape_seconds(endpoint: Endpoint) -> float:
    began = time.perf_counter()
    endpoint.scrape(_TIMEOUT_SECONDS)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
