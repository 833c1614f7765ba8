"""`python -m benchmarks.routing`: the metrics of a real pair while the topic of its load changes.

routing.costs     the costs in seconds that placement was given
routing.sample    one each second: a snapshot of `python -m client.top`, with rates over that second, and the seconds
                  since the load began
routing.topic     a topic, and the seconds at which the load changed to it
routing.view      a snapshot some seconds after the change, with rates over ten seconds: what the terminal shows

models/demo continues openings of scripture, then of a database manual, three at a time. The GPU service runs on the
CPU, with slots for 10 of the 32 experts. Moving such small experts would never pay, so placement starts from given
costs: like those of large experts on a GPU, they make a slot valuable and a copy expensive. They decide which experts
are resident and when they are swapped. Which experts are chosen depends on model and text alone, and everything counted
is real. Speeds of this run say nothing about a GPU.

`python -m benchmarks.routing.plot` draws docs/routing.svg and docs/top.svg from the results.
"""

import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

from benchmarks.harness.results import Append, Out, Report, report
from benchmarks.traces.record import OPENINGS
from client import Client
from client.metrics.monitor import Monitor
from client.metrics.scrape import Endpoint
from client.metrics.snapshot import Snapshot
from fiddler import process
from pair import Pair
from tools.command_line import run

_MODEL = Path(__file__).parents[2] / "models" / "demo"
_SLOTS_GIB = "0.0028"  # 10 experts
_COSTS = {"cpu": 2e-3, "gpu": 1e-4, "transfer": 5e-3, "hop": 3e-4}
"""Seconds of one expert with one row on either side, of a copy, and of a message."""
_CONCURRENT = 3
_OUTPUT_TOKENS = 160
_ROUNDS = 2
_TEMPERATURE = 0.8
_INTERVAL_SECONDS = 1.0
_VIEW_WINDOW_SECONDS = 10.0
_VIEW_AFTER_SECONDS = 12.0
_HALF_LIFE_SECONDS = 30.0


def main(out: Out = None, append: Append = False) -> None:
    """Runs the benchmark."""
    process.prepare()
    with (
        report(out, append) as results,
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryFile() as log,
    ):
        costs = _given_costs(Path(directory) / "costs.json", log)
        results.record("routing.costs", **_COSTS)
        with _pair(costs, log) as pair, _Load(pair.target) as load:
            _watch(pair, load, results)


def _pair(costs: Path, log: IO[bytes]) -> Pair:
    arguments = ("--device", "cpu", "--gpu-expert-memory", _SLOTS_GIB, "--costs", str(costs))
    return Pair(_MODEL, gpu_arguments=arguments, log=log)


def _given_costs(path: Path, log: IO[bytes]) -> Path:
    """Lets a pair write its costs file, and replaces the costs by the given ones."""
    with _pair(path, log):
        pass
    content = json.loads(path.read_text())
    given: dict[str, object] = {side: [[1, _COSTS[side]]] for side in ("cpu", "gpu", "hop")}
    content["measurements"] |= {**given, "transfer": [_COSTS["transfer"]]}
    path.write_text(json.dumps(content))
    return path


class _Load:
    """Generates on one topic after the other, in threads.

    Attributes:
        began: Seconds of the monotonic clock by topic; only topics that have begun.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._thread = threading.Thread(target=self._run)
        self.began: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether there is more to generate."""
        return self._thread.is_alive()

    def _run(self) -> None:
        with Client(self._target) as client, ThreadPoolExecutor(_CONCURRENT) as threads:

            def generate(seed: int, opening: str) -> None:
                generation = client.generate(
                    opening, max_tokens=_OUTPUT_TOKENS, temperature=_TEMPERATURE, seed=seed, ignore_eos=True
                )
                generation.text()

            for topic, openings in OPENINGS.items():
                self.began[topic] = time.monotonic()
                # each opening several times, with different seeds
                list(threads.map(generate, range(_ROUNDS * len(openings)), _ROUNDS * openings))


def _watch(pair: Pair, load: _Load, out: Report) -> None:
    started = time.monotonic()
    view: Snapshot | None = None
    with _monitor(pair, _INTERVAL_SECONDS) as each_second, _monitor(pair, _VIEW_WINDOW_SECONDS) as as_in_terminal:
        each_second.sample()
        while load.is_running:
            time.sleep(_INTERVAL_SECONDS)
            seconds = time.monotonic() - started
            out.record("routing.sample", seconds=seconds, **dataclasses.asdict(each_second.sample()))
            snapshot = as_in_terminal.sample()
            latest_change = max(load.began.values())
            if len(load.began) < len(OPENINGS) or time.monotonic() < latest_change + _VIEW_AFTER_SECONDS:
                view = snapshot
    for topic, began in load.began.items():
        out.record("routing.topic", topic=topic, seconds=max(0.0, began - started))
    if view is not None:
        out.record("routing.view", **dataclasses.asdict(view))


@contextmanager
def _monitor(pair: Pair, window_seconds: float) -> Iterator[Monitor]:
    with Monitor(
        Endpoint("--gpu", "gpu_service", f"127.0.0.1:{pair.gpu_metrics_port}"),
        Endpoint("--cpu", "cpu_expert_service", f"127.0.0.1:{pair.cpu_metrics_port}"),
        interval_seconds=_INTERVAL_SECONDS,
        window_seconds=window_seconds,
        half_life_seconds=_HALF_LIFE_SECONDS,
        timeout_seconds=10.0,
    ) as monitor:
        yield monitor


if __name__ == "__main__":
    run(main, __doc__)
