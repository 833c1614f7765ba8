"""What callers see: concurrent streams through the client and a pair."""

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.harness.rounds import ratios
from benchmarks.harness.targets import Judge
from benchmarks.serving.probe import MAX_SLOTS
from benchmarks.serving.workload import Model, prompts
from client import Client, GenerationChunk
from pair import Pair

LOADS = (1, 2, 4, 8, 16)
_BOUNDS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)


@dataclass(slots=True)
class Stream:
    """One generation as its caller sees it, in seconds of time.perf_counter()."""

    began: float
    """When the request was sent."""
    arrivals: list[float] = field(default_factory=list)
    """When each token arrived."""


def measure_load(out: Judge, model: Model, rounds: int) -> None:
    """Measures an increasing number of concurrent callers."""
    flags = ("--dtype", "bfloat16")
    slots = ("--max-slots", str(MAX_SLOTS), "--max-context", str(model.max_context))
    with (
        tempfile.TemporaryFile() as log,
        Pair(model.directory, log=log, gpu_arguments=("--device", "cpu", *flags, *slots), cpu_arguments=flags) as pair,
        Client(pair.target) as client,
    ):
        call_at_once(client, model, 1)  # a warm-up, not counted
        streams: dict[int, list[Stream]] = {load: [] for load in LOADS}
        rates: dict[int, list[float]] = {load: [] for load in LOADS}
        for number in range(rounds):
            for load in LOADS if number % 2 else reversed(LOADS):
                made = call_at_once(client, model, load)
                streams[load] += made
                rates[load].append(_rate(made))
    for load in LOADS:
        out.samples(f"serving.{model.name}.load{load}.decode", rates[load], "tokens/s")
        _report_latencies(out, f"serving.{model.name}.load{load}", streams[load])
    out.samples(f"serving.{model.name}.streams8.over_stream1", ratios(rates[8], rates[1]), "ratio")


def call_at_once(client: Client, model: Model, count: int, prompt_tokens: int | None = None) -> list[Stream]:
    """Runs `count` concurrent callers with one request each, of the model's `prompt_tokens` unless others are given."""

    def call(prompt: list[int]) -> Stream:
        stream = Stream(time.perf_counter())
        with client.generate(prompt, max_tokens=model.tokens, temperature=0, ignore_eos=True) as generation:
            for event in generation:
                if isinstance(event, GenerationChunk):
                    stream.arrivals += [time.perf_counter()] * len(event.token_ids)
        return stream

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(call, prompts(prompt_tokens or model.prompt_tokens, count)))


def _rate(streams: Sequence[Stream]) -> float:
    """Tokens per second of all streams together, while all of them decode.

    Raises:
        SystemExit: The streams never decode all at once, so the figure would mean nothing.
    """
    start = max(stream.arrivals[0] for stream in streams)
    end = min(stream.arrivals[-1] for stream in streams)
    if start >= end:
        raise SystemExit(f"{len(streams)} streams never decoded all at once: raise their tokens in workload.py")
    return sum(start < arrival <= end for stream in streams for arrival in stream.arrivals) / (end - start)


def _report_latencies(out: Judge, name: str, streams: Sequence[Stream]) -> None:
    first = [stream.arrivals[0] - stream.began for stream in streams]
    between = [later - sooner for stream in streams for sooner, later in pairwise(stream.arrivals)]
    for quantity, values in (("time_to_first_token", first), ("inter_token", between)):
        out.samples(f"{name}.{quantity}", values, "s", histogram=_histogram(values))


def _histogram(values: Sequence[float]) -> str:
    """How many values are at most each bound, cumulative as in Prometheus: "BOUND:COUNT ..."."""
    return " ".join(
        f"{bound:g}:{sum(value <= bound for value in values)}" for bound in (*_BOUNDS_SECONDS, float("inf"))
    )
