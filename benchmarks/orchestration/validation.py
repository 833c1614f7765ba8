"""Compares the simulator with the figures that Fiddler's authors publish for their two machines.

Published in the README of efeslab/fiddler of February 2024: speed-ups in the text, and rates read off the bar chart.
They are means over prompts and outputs of several lengths; the rates include the prompt's time (their
benchmarks/latency.py).
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.orchestration.costs import System
from benchmarks.orchestration.strategies.deepspeed import DeepSpeed
from benchmarks.orchestration.strategies.fiddler import Fiddler, FiddlerAsReleased
from benchmarks.orchestration.strategies.mixtral_offloading import MixtralOffloading
from benchmarks.orchestration.strategies.server import Server
from benchmarks.orchestration.workloads import popularity, workloads
from benchmarks.traces import Trace

MODEL = "mixtral_8x7b"
_PROMPTS = (16, 32, 64, 128)
_OUTPUTS = (16, 32, 64, 128, 256, 512)
_STRATEGIES: tuple[type[Server], ...] = (FiddlerAsReleased, MixtralOffloading, DeepSpeed, Fiddler)
_RATES = {"quadro_rtx_6000": 2.5, "l4": 2.8}
_SPEEDUPS = {
    "quadro_rtx_6000": {MixtralOffloading.name: 8.2, DeepSpeed.name: 19.4},
    "l4": {MixtralOffloading.name: 10.1, DeepSpeed.name: 22.5},
}
MACHINES = tuple(_RATES)


@dataclass(frozen=True)
class Comparison:
    """A published figure and the simulator's."""

    strategy: str
    simulated: float
    """Mean tokens per second over all lengths."""
    decode_only: float
    """The same without the prompts' time."""
    published: float | None
    """None: the paper does not have the strategy."""


def compare(system: System, trace: Trace) -> Iterator[Comparison]:
    """Compares the paper's strategies, and Fiddler's algorithm with this repository's kernels, on one machine."""
    fiddler = _RATES[system.machine.name]
    for kind in _STRATEGIES:
        timings = list(_timings(kind(system, popularity(trace)), trace))
        rate = statistics.mean(
            output / (prompt_seconds + output * token_seconds)
            for prompt_seconds, token_seconds in timings
            for output in _OUTPUTS
        )
        decode_only = statistics.mean(1 / token_seconds for _, token_seconds in timings)
        if kind is FiddlerAsReleased:
            published = fiddler
        elif kind.name in _SPEEDUPS[system.machine.name]:
            published = fiddler / _SPEEDUPS[system.machine.name][kind.name]
        else:
            published = None
        yield Comparison(kind.name, rate, decode_only, published)


def _timings(server: Server, trace: Trace) -> Iterator[tuple[float, float]]:
    """Seconds of a prompt of each length, and of a token after it."""
    request = workloads(quick=True)[0].requests(trace)[0]
    for tokens in _PROMPTS:
        began = server.now
        server.prompt(request.prompt.split(tokens)[0])
        prompt_seconds, began = server.now - began, server.now
        for number, batch in enumerate(request.steps, 1):
            server.decode(batch, context=tokens + number)
        # a token takes as long in longer outputs: the growing cache is negligible compared with the experts
        yield prompt_seconds, (server.now - began) / len(request.steps)
