"""Single steps: the time of their experts compared with reading them once, and the overhead around the model."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.harness.results import Field
from benchmarks.harness.rounds import ratios
from benchmarks.harness.targets import Judge
from benchmarks.serving.probe import Probe, Step, probe
from benchmarks.serving.workload import Model, prompts
from gpu_service.engine.generation import Answer
from gpu_service.engine.request import Request
from gpu_service.sampling.outputs import Ending
from gpu_service.sampling.parameters import BeamParameters, SamplingParameters

_SAMPLED = SamplingParameters(temperature=0.8, top_p=0.95, seed=1)
_SHORT_TOKENS = 16
_PAUSE_SECONDS = 0.01  # until the threads that have computed sleep


@dataclass(frozen=True, slots=True)
class _Measured:
    step: Step
    bytes_per_second: float
    """Read bandwidth of the memory around the step."""


def measure_steps(out: Judge, model: Model, rounds: int) -> None:
    """Measures decode steps of every case in turn."""
    with probe(model.directory, model.max_context) as running:
        steps: dict[str, list[_Measured]] = defaultdict(list)
        for number in range(-1, rounds):
            running.begin(model.prefill_chunk)
            for case, make in _CASES.items():
                measured = _decode(running, make(model), model.steps)
                if number >= 0:
                    steps[case] += measured
        bandwidths = {each.bytes_per_second / 1e9: None for measured in steps.values() for each in measured}
        out.samples(f"serving.{model.name}.read_bandwidth", list(bandwidths), "GB/s")
        for case, measured in steps.items():
            _report(out, f"serving.{model.name}.{case}", measured, running.expert_bytes)
        _measure_short_prompt(out, model, running)
        _measure_long_prompt(out, model, running, rounds)


def _streams(count: int, sampling: SamplingParameters) -> Callable[[Model], list[Answer]]:
    return lambda model: [_answer(model, prompt, sampling) for prompt in prompts(model.prompt_tokens, count)]


def _beams(count: int) -> Callable[[Model], list[Answer]]:
    def make(model: Model) -> list[Answer]:
        (prompt,) = prompts(model.prompt_tokens, 1)
        return [_answer(model, prompt, SamplingParameters(), BeamParameters(count))]

    return make


_CASES = {
    "stream1": _streams(1, SamplingParameters()),
    "streams8": _streams(8, SamplingParameters()),
    "sampled8": _streams(8, _SAMPLED),
    "beam4": _beams(4),
    "beam16": _beams(16),
}


def _answer(
    model: Model, prompt: list[int], sampling: SamplingParameters, beam: BeamParameters | None = None
) -> Answer:
    ending = Ending(model.max_context - len(prompt))
    return Answer(Request(prompt=prompt, sampling=sampling, ending=ending, emit=lambda event: None, beam=beam))


def _decode(running: Probe, answers: list[Answer], num_steps: int) -> list[_Measured]:
    """Computes the prompts, then `num_steps` steps in which all decode."""
    running.add(*answers)
    while any(not answer.first_token_at for answer in answers):
        running.step()
    before = _read(running)
    steps = [running.step() for _ in range(num_steps)]
    # before and after, since the bandwidth of a shared machine changes from one moment to the next
    bandwidth = statistics.mean([before, _read(running)])
    running.cancel(*answers)
    return [_Measured(step, bandwidth) for step in steps]


def _read(running: Probe) -> float:
    time.sleep(_PAUSE_SECONDS)
    return running.read_bytes_per_second()


def _report(out: Judge, name: str, measured: list[_Measured], expert_bytes: float) -> None:
    steps = [each.step for each in measured]
    floors = [each.step.num_distinct_experts * expert_bytes / each.bytes_per_second for each in measured]
    distinct = sum(step.num_distinct_experts for step in steps) / len(steps)
    rows = sum(step.num_selections for step in steps) / len(steps) / distinct
    found = {"distinct_experts": round(distinct, 2), "rows_per_expert": round(rows, 2)}
    read = {"megabytes": round(distinct * expert_bytes / 1e6, 1), **found}
    experts = [step.expert_seconds for step in steps]
    out.samples(f"{name}.experts", [1e3 * value for value in experts], "ms", **found)
    out.samples(f"{name}.floor", [1e3 * value for value in floors], "ms", **read)
    out.samples(f"{name}.experts_over_floor", ratios(experts, floors), "ratio", **found)
    out.samples(f"{name}.kernel", [1e3 * step.kernel_seconds for step in steps], "ms", **found)
    out.samples(f"{name}.dense", [1e3 * step.dense_seconds for step in steps], "ms")
    out.samples(f"{name}.overhead", [1e3 * step.overhead_seconds for step in steps], "ms")
    out.samples(f"{name}.overhead_over_step", [step.overhead_seconds / step.seconds for step in steps], "ratio")


def _measure_short_prompt(out: Judge, model: Model, running: Probe) -> None:
    """Measures a short prompt that arrives while the first chunk of a long one is computed."""
    for name, alone_chunk in (("short_prompt", None), ("short_prompt_grown", model.long_prompt_tokens)):
        running.begin(model.prefill_chunk, alone_chunk)
        lengths = model.long_prompt_tokens, _SHORT_TOKENS
        long, short = (_answer(model, prompts(length, 1)[0], SamplingParameters()) for length in lengths)
        running.add(long)
        seconds, chunks = running.step().seconds, 1
        running.add(short)
        while not short.first_token_at:
            step = running.step()
            seconds += step.seconds
            chunks += step.batch.is_prompt
        running.cancel(long, short)
        more: dict[str, Field] = {"long_prompt_tokens": model.long_prompt_tokens, **_chunks(model, alone_chunk)}
        out.samples(f"serving.{model.name}.{name}.chunks", [chunks], "chunks", **more)
        out.samples(f"serving.{model.name}.{name}.time_to_first_token", [seconds], "s", **more)


def _measure_long_prompt(out: Judge, model: Model, running: Probe, rounds: int) -> None:
    """Measures a prompt that is alone with larger chunks, with its experts computed by the CPU."""
    rates: dict[int | None, list[float]] = {None: [], model.long_prompt_tokens: []}
    for number in range(rounds):
        for alone_chunk, made in list(rates.items())[:: -1 if number % 2 else 1]:
            running.begin(model.prefill_chunk, alone_chunk)
            answer = _answer(model, prompts(model.long_prompt_tokens, 1)[0], SamplingParameters())
            running.add(answer)
            seconds = 0.0
            while not answer.first_token_at:
                seconds += running.step().seconds
            running.cancel(answer)
            made.append(model.long_prompt_tokens / seconds)
    for name, alone_chunk in (("chunked", None), ("grown", model.long_prompt_tokens)):
        more = _chunks(model, alone_chunk)
        out.samples(f"serving.{model.name}.long_prompt.{name}", rates[alone_chunk], "tokens/s", **more)
    out.samples(
        f"serving.{model.name}.long_prompt.grown_over_chunked",
        ratios(rates[model.long_prompt_tokens], rates[None]),
        "ratio",
    )


def _chunks(model: Model, alone_chunk: int | None) -> dict[str, Field]:
    return {"prefill_chunk": model.prefill_chunk, "prefill_chunk_alone": alone_chunk or model.prefill_chunk}
