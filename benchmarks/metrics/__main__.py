"""`python -m benchmarks.metrics`: the cost of counting metrics in a decode step.

metrics.MODEL.step                 seconds between two tokens of one sequence, as the caller receives them
metrics.MODEL.step_uncounted       the same while neither service counts
metrics.MODEL.counting_over_step   the time that counting adds over the step without it, round by round; target: 0.01
metrics.MODEL.SERVICE.scrape       seconds until /metrics has answered, which formats all values
metrics.MODEL.counting             the same in seconds
metrics.FORM.format                CPU seconds that formatting takes for a model of that form; target: 0.05
metrics.FORM.series                how many series its experts have; further, the bytes of a compressed answer, those
                                   that the service keeps, and what Prometheus takes, if it is on PATH

MODEL is demo (models/demo, whose steps are far shorter than those of a model that is larger than a GPU),
mixtral_2_layers (two layers of Mixtral-8x7B's shape; benchmarks.end_to_end shares its --checkpoint) or qwen3_form (48
layers of 128 experts as in Qwen3-30B-A3B, with tiny matrices: its steps are too short for a share to say anything, but
it counts and exports as much as the real one). Both services are real, but their counting functions can be switched off
(switched_service.py). Single additions within other code stay on. Every round generates the same tokens with and
without counting. FORM is the form of a published model, whose series are formatted without a model.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.request import ProxyHandler, Request, build_opener

import typer

from benchmarks.harness import mixtral
from benchmarks.harness.disk import check_missing
from benchmarks.harness.results import Append, Checkpoint, Out, report
from benchmarks.harness.targets import Judge, Target
from benchmarks.metrics import many_experts
from client import Client, GenerationChunk
from fiddler import process
from pair import Pair
from tests.support import checkpoints
from tools.command_line import run

_DEMO = Path(__file__).parents[2] / "models" / "demo"
_DECODED = {"demo": 128, "mixtral_2_layers": 24, "qwen3_form": 32}
_SERIES = "series"
_PAUSE_SECONDS = 0.2  # until the signal has arrived and threads sleep
_TIMEOUT_SECONDS = 10.0
_MOST = 0.01
_OPENER = build_opener(ProxyHandler({}))  # whatever proxy the environment names

TARGETS = {
    **{
        f"metrics.{model}.counting_over_step": Target(_MOST, at_least=False)
        for model in _DECODED
        if model != "qwen3_form"
    },
    **many_experts.TARGETS,
}


class _SwitchedPair(Pair):
    """A pair whose services can stop and resume counting."""

    def _spawn(self, service: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.metrics.switched_service", service, *arguments]
        return subprocess.Popen(command, env=self._environment, stderr=self._log, stdin=subprocess.DEVNULL)

    def switch(self) -> None:
        """Stops counting in both services, or resumes it."""
        for service in self.processes.values():
            service.send_signal(signal.SIGUSR1)
        time.sleep(_PAUSE_SECONDS)


def _known(models: str) -> str:
    if unknown := set(models.split(",")) - {*_DECODED, _SERIES}:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: known are {', '.join([*_DECODED, _SERIES])}")
    return models


def main(
    out: Out = None,
    append: Append = False,
    rounds: Annotated[int, typer.Option(help="Rounds with and without counting.")] = 25,
    models: Annotated[
        str, typer.Option(callback=_known, help=f"Names between commas; {_SERIES} is what needs no model.")
    ] = ",".join([*_DECODED, _SERIES]),
    checkpoint: Checkpoint = None,
) -> None:
    """Runs the benchmark."""
    process.prepare()
    if mixtral.NAME in models.split(","):
        check_missing(checkpoint, {mixtral.NAME: mixtral.NUM_BYTES}, remedy=mixtral.REMEDY)
    with report(out, append) as results, tempfile.TemporaryDirectory(prefix="fiddler-") as temporary:
        judge = Judge(results, TARGETS)
        for name in models.split(","):
            if name == _SERIES:
                many_experts.measure(judge, rounds)
            else:
                _measure(judge, name, _checkpoint(name, checkpoint or Path(temporary)), rounds=rounds)
        judge.summarise()


def _checkpoint(name: str, folder: Path) -> Path:
    """A model's checkpoint, which is written into the folder if it is not there."""
    if name == "demo":
        return _DEMO
    directory = folder / name
    if name == mixtral.NAME:
        return mixtral.write(directory)
    if not (directory / "tokenizer.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        many_experts.write_qwen3_form(directory)
        checkpoints.write_tokenizer(directory)
    return directory


def _measure(judge: Judge, name: str, model: Path, *, rounds: int) -> None:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with (
        tempfile.TemporaryFile() as log,
        _SwitchedPair(model, log=log, gpu_arguments=("--device", "cpu")) as pair,
        Client(pair.target) as client,
    ):
        for number in range(-1, rounds):  # the first round is the warm-up
            counted = _step_seconds(client, number, _DECODED[name])
            pair.switch()
            uncounted = _step_seconds(client, number, _DECODED[name])
            pair.switch()
            if number >= 0:
                found["step", "s"].append(counted)
                found["step_uncounted", "s"].append(uncounted)
        steps, uncounted_steps = found["step", "s"], found["step_uncounted", "s"]
        # compared with the mean of the steps before and after, so that a slowing machine does not look like a cost
        pairs = [
            ((before + after) / 2, uncounted)
            for before, after, uncounted in zip(steps, steps[1:], uncounted_steps, strict=False)
        ]
        found["counting_over_step", "ratio"] = [counted / uncounted - 1 for counted, uncounted in pairs]
        found["counting", "s"] = [counted - uncounted for counted, uncounted in pairs]
        for service, port in (("gpu_service", pair.gpu_metrics_port), ("cpu_expert_service", pair.cpu_metrics_port)):
            found[f"{service}.scrape", "s"] = [_scrape_seconds(port) for _ in range(rounds)]
    for (what, unit), values in found.items():
        judge.samples(f"metrics.{name}.{what}", values, unit)


def _step_seconds(client: Client, number: int, num_tokens: int) -> float:
    """Mean seconds between two tokens. The same number gives the same tokens."""
    prompt = [3 + (position * 37 + number * 11) % 250 for position in range(16)]
    arrivals = []
    with client.generate(
        prompt, max_tokens=num_tokens, ignore_eos=True, temperature=1.0, seed=number + 1
    ) as generation:
        for event in generation:
            if isinstance(event, GenerationChunk):
                arrivals += [time.perf_counter()] * len(event.token_ids)
    return (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)


def _scrape_seconds(port: int) -> float:
    """Until /metrics has answered as it answers Prometheus, compressed. Nothing is parsed."""
    request = Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept-Encoding": "gzip"})
    began = time.perf_counter()
    with _OPENER.open(request, timeout=_TIMEOUT_SECONDS) as answer:
        answer.read()
    return time.perf_counter() - began


if __name__ == "__main__":
    run(main, __doc__)
