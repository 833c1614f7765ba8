"""Prompts that come together: how long the last of them waits for its first token, and all of them for their ends."""

import tempfile
import time

from benchmarks.harness.rounds import ratios
from benchmarks.harness.targets import Judge
from benchmarks.serving.load import call_at_once
from benchmarks.serving.probe import MAX_SLOTS, Probe, probe
from benchmarks.serving.workload import Model, prompts
from client import Client
from gpu_service.engine.generation import Answer
from gpu_service.engine.request import Request
from gpu_service.sampling.outputs import Ending
from gpu_service.sampling.parameters import SamplingParameters
from pair import Pair

_COUNT = 8
_PROMPT_TOKENS = 64


def measure_together(out: Judge, model: Model, rounds: int) -> None:
    """Measures eight prompts at once, as callers see them and in the engine."""
    _measure_callers(out, model, rounds)
    _measure_engine(out, model, rounds)


def _measure_callers(out: Judge, model: Model, rounds: int) -> None:
    flags = ("--dtype", "bfloat16")
    slots = ("--max-slots", str(MAX_SLOTS), "--max-context", str(model.max_context))
    alone, last, total = [], [], []
    with (
        tempfile.TemporaryFile() as log,
        Pair(model.directory, log=log, gpu_arguments=("--device", "cpu", *flags, *slots), cpu_arguments=flags) as pair,
        Client(pair.target) as client,
    ):
        call_at_once(client, model, _COUNT, _PROMPT_TOKENS)  # a warm-up, not counted
        for _ in range(rounds):
            (stream,) = call_at_once(client, model, 1, _PROMPT_TOKENS)
            alone.append(stream.arrivals[0] - stream.began)
            streams = call_at_once(client, model, _COUNT, _PROMPT_TOKENS)
            began = min(each.began for each in streams)
            last.append(max(each.arrivals[0] for each in streams) - began)
            total.append(max(each.arrivals[-1] for each in streams) - began)
    name = f"serving.{model.name}.together{_COUNT}"
    out.samples(f"{name}.alone", alone, "s", prompt_tokens=_PROMPT_TOKENS)
    out.samples(f"{name}.last", last, "s", prompt_tokens=_PROMPT_TOKENS)
    out.samples(f"{name}.last_over_alone", ratios(last, alone), "ratio")
    out.samples(f"{name}.total", total, "s", prompt_tokens=_PROMPT_TOKENS, tokens=model.tokens)


def _measure_engine(out: Judge, model: Model, rounds: int) -> None:
    """Measures the same steps packed and apart, in one process, until each prompt has its first token."""
    packed: list[float] = []
    apart: list[float] = []
    with probe(model.directory, model.max_context) as running:
        for number in range(-1, rounds):
            for packs_spans, made in ((True, packed), (False, apart))[:: -1 if number % 2 else 1]:
                running.begin(model.prefill_chunk, packs_spans=packs_spans)
                seconds = _seconds_until_first(running, model)
                if number >= 0:
                    made.append(seconds)
    out.samples(f"serving.{model.name}.together{_COUNT}.packed_over_apart", ratios(packed, apart), "ratio")


def _seconds_until_first(running: Probe, model: Model) -> float:
    answers = [
        Answer(
            Request(
                prompt=prompt,
                sampling=SamplingParameters(),
                ending=Ending(model.max_context - len(prompt)),
                emit=lambda event: None,
            )
        )
        for prompt in prompts(_PROMPT_TOKENS, _COUNT)
    ]
    running.add(*answers)
    began = time.perf_counter()
    while any(not answer.first_token_at for answer in answers):
        running.step()
    seconds = time.perf_counter() - began
    running.cancel(*answers)
    return seconds
