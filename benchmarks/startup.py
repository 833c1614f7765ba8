"""`python -m benchmarks.startup`: seconds until both services serve models/demo, by stage.

startup.pair.serving             from the start of the first process until both services have logged that they serve
startup.SERVICE.STAGE            one stage of a service, from its log
startup.SERVICE.import.PACKAGE   importing a package's own modules, without those that they import; profiled separately
startup.checkpoint.STEP          opening the checkpoint and computing its fingerprint, without a service

The first run is not counted: the page cache is warm from the second run on.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness.results import Append, Out, Report, report
from fiddler import process
from tools.command_line import run

_MODEL = Path(__file__).parents[1] / "models" / "demo"
_PROFILED_RUNS = 3
_NAMED_SECONDS = 0.02  # packages that take less are summed up as "others"
_IMPORTS = {
    "cpu_expert_service": "cpu_expert_service.server",
    # transformers imports a family's module and its tokenizers when it loads the model
    "gpu_service": "gpu_service.server, transformers.models.mixtral.modeling_mixtral, transformers.models.auto",
}
_IMPORT_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")

Events = dict[tuple[str, str], dict[str, Any]]
"""Log lines by service and event, with "at" in seconds since the epoch."""


def main(
    out: Out = None,
    append: Append = False,
    runs: Annotated[int, typer.Option(help="Starts that are counted.")] = 5,
) -> None:
    """Runs the benchmark."""
    process.prepare()
    with report(out, append) as results:
        stages = [_stages(*_start()) for _ in range(1 + runs)][1:]
        for name in stages[0]:
            results.samples(f"startup.{name}", [start[name] for start in stages], "s")
        for service, modules in _IMPORTS.items():
            _report_imports(results, service, [_profile_imports(modules) for _ in range(_PROFILED_RUNS)])
        _report_checkpoint(results)


def _start() -> tuple[float, Events]:
    """Starts a pair and stops it; returns the time of the start and what the services logged."""
    from pair import Pair

    with tempfile.TemporaryFile() as log:
        started = time.time()
        with Pair(_MODEL, log=log, gpu_arguments=["--device", "cpu"]):
            pass
        log.seek(0)
        lines = [json.loads(line) for line in log if line.startswith(b"{")]
    for line in lines:
        line["at"] = datetime.fromisoformat(line["timestamp"]).timestamp()
    return started, {(line["logger"], line["event"]): line for line in lines}


def _stages(started: float, events: Events) -> dict[str, float]:
    """Seconds by stage. Both services start at the same time, so their stages overlap."""

    def at(service: str, event: str) -> float:
        return float(events[service, event]["at"]) - started

    cpu_opened = at("cpu_expert_service", "reading experts")
    cpu_serving = at("cpu_expert_service", "serving")
    gpu_opened = at("gpu_service", "waiting for the CPU expert service")
    loaded = at("gpu_service", "model loaded")
    load_seconds = float(events["gpu_service", "model loaded"]["seconds"])
    warm = at("gpu_service", "warm-up done")
    warm_seconds = float(events["gpu_service", "warm-up done"]["seconds"])
    gpu_serving = at("gpu_service", "serving")
    return {
        "pair.serving": max(cpu_serving, gpu_serving),
        # imports of Python, grpc and torch; opening the checkpoint; binding the socket
        "cpu_expert_service.until_bound": cpu_opened,
        "cpu_expert_service.prefault": cpu_serving - cpu_opened,
        "cpu_expert_service.serving": cpu_serving,
        "gpu_service.until_bound": gpu_opened,
        "gpu_service.load": load_seconds,
        # the rest of the wait for the other service after the model is loaded
        "gpu_service.handshake": max(0.0, warm - warm_seconds - loaded),
        "gpu_service.warm_up": warm_seconds,
        "gpu_service.serving": gpu_serving,
    }


def _profile_imports(modules: str) -> dict[str, float]:
    """Seconds to import each top-level package's own modules, in a fresh process."""
    code = f"from fiddler import process; process.prepare(); import {modules}"
    command = [sys.executable, "-X", "importtime", "-c", code]
    finished = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)
    seconds: dict[str, float] = defaultdict(float)
    for line in finished.stderr.splitlines():
        if match := _IMPORT_LINE.match(line):
            package = match[2].split(".")[0]
            seconds["python" if package in sys.stdlib_module_names else package] += int(match[1]) / 1e6
    return seconds


def _report_imports(out: Report, service: str, starts: list[dict[str, float]]) -> None:
    out.samples(f"startup.{service}.imports", [sum(start.values()) for start in starts], "s")
    medians = {package: statistics.median(start[package] for start in starts) for package in starts[0]}
    slowest = sorted(medians, key=lambda package: -medians[package])
    named = [package for package in slowest if medians[package] > _NAMED_SECONDS]
    for package in named:
        out.samples(f"startup.{service}.import.{package}", [start[package] for start in starts], "s")
    others = [sum(start.values()) - sum(start[package] for package in named) for start in starts]
    out.samples(f"startup.{service}.import.others", others, "s")


def _report_checkpoint(out: Report) -> None:
    from fiddler.checkpoint import Checkpoint

    steps: dict[str, Callable[[], object]] = {
        "open": lambda: Checkpoint.open(_MODEL).close(),
        "open_and_fingerprint": lambda: Checkpoint.open(_MODEL).fingerprint,
    }
    for name, step in steps.items():
        samples = []
        for _ in range(20):
            started = time.perf_counter()
            step()
            samples.append(time.perf_counter() - started)
        out.samples(f"startup.checkpoint.{name}", samples, "s")


if __name__ == "__main__":
    run(main, __doc__)
