"""Single steps: what their experts take beside reading them once, and what is around the model."""

import itertools
from collections import defaultdict
from collections.abc import Callable
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.serving.probe import Probe, Step, probe
from benchmarks.serving.workload import Model, prompts
from benchmarks.targets import Judge
from gpu_service.request import BeamParameters, Request
from gpu_service.sampling_parameters import SamplingParameters

_BANDWIDTH = "fiddler_expert_memory_read_bytes_per_second"
_SAMPLED = SamplingParameters(temperature=0.8, top_p=0.95, seed=1)
_SHORT_TOKENS = 16


def measure_steps(out: Judge, model: Model, rounds: int) -> None:
    """Decode steps of every case, by turns."""
    with probe(model.directory, model.max_context, model.prefill_chunk) as (running, pair):
        bandwidth = _read_bandwidth(pair.cpu_metrics_port)
        out.samples(f"serving.{model.name}.read_bandwidth", [bandwidth / 1e9], "GB/s")
        steps: dict[str, list[Step]] = defaultdict(list)
        for number in range(-1, rounds):
            for case, make in _CASES.items():
                measured = _decode(running, make(model), model.steps)
                if number >= 0:
                    steps[case] += measured
        for case, measured in steps.items():
            _report(out, f"serving.{model.name}.{case}", measured, running.expert_bytes / bandwidth)
        _measure_short_prompt(out, model, running)


def _streams(count: int, sampling: SamplingParameters) -> Callable[[Model], list[Request]]:
    return lambda model: [_request(model, prompt, sampling) for prompt in prompts(model.prompt_tokens, count)]


def _beams(count: int) -> Callable[[Model], list[Request]]:
    def make(model: Model) -> list[Request]:
        (prompt,) = prompts(model.prompt_tokens, 1)
        request = _request(model, prompt, SamplingParameters())
        request.beam = BeamParameters(count)
        return [request]

    return make


_CASES = {
    "stream1": _streams(1, SamplingParameters()),
    "streams8": _streams(8, SamplingParameters()),
    "sampled8": _streams(8, _SAMPLED),
    "beam4": _beams(4),
    "beam16": _beams(16),
}


def _request(model: Model, prompt: list[int], sampling: SamplingParameters) -> Request:
    return Request(prompt, sampling, model.max_context - len(prompt), lambda event: None)


def _decode(running: Probe, requests: list[Request], num_steps: int) -> list[Step]:
    """Computes the prompts, and then so many steps in which all decode."""
    running.add(*requests)
    while any(not request.first_token_at for request in requests):
        running.step()
    steps = [running.step() for _ in range(num_steps)]
    running.cancel(*requests)
    return steps


def _report(out: Judge, name: str, steps: list[Step], seconds_per_expert: float) -> None:
    floors = [step.num_distinct_experts * seconds_per_expert for step in steps]
    distinct = sum(step.num_distinct_experts for step in steps) / len(steps)
    rows = sum(step.num_selections for step in steps) / len(steps) / distinct
    found = {"distinct_experts": round(distinct, 2), "rows_per_expert": round(rows, 2)}
    experts = [step.expert_seconds for step in steps]
    out.samples(f"{name}.experts", [1e3 * value for value in experts], "ms", **found)
    out.samples(f"{name}.floor", [1e3 * value for value in floors], "ms")
    ratios = [value / floor for value, floor in zip(experts, floors, strict=True)]
    out.samples(f"{name}.experts_over_floor", ratios, "ratio", **found)
    out.samples(f"{name}.dense", [1e3 * step.dense_seconds for step in steps], "ms")
    out.samples(f"{name}.overhead", [1e3 * step.overhead_seconds for step in steps], "ms")
    out.samples(f"{name}.overhead_over_step", [step.overhead_seconds / step.seconds for step in steps], "ratio")


def _measure_short_prompt(out: Judge, model: Model, running: Probe) -> None:
    """It comes when the first chunk of a long one is being computed."""
    lengths = model.long_prompt_tokens, _SHORT_TOKENS
    long, short = (_request(model, prompts(length, 1)[0], SamplingParameters()) for length in lengths)
    running.add(long)
    seconds, chunks = running.step().seconds, 1
    running.add(short)
    while not short.first_token_at:
        step = running.step()
        seconds += step.seconds
        chunks += step.batch.is_prompt
    running.cancel(long, short)
    more = {"long_prompt_tokens": model.long_prompt_tokens, "prefill_chunk": model.prefill_chunk}
    out.samples(f"serving.{model.name}.short_prompt.chunks", [chunks], "chunks", **more)
    out.samples(f"serving.{model.name}.short_prompt.time_to_first_token", [seconds], "s", **more)


def _read_bandwidth(port: int) -> float:
    """Bytes per second that the CPU expert service's threads read."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = itertools.chain.from_iterable(family.samples for family in families)
    return next(sample.value for sample in samples if sample.name == _BANDWIDTH)
