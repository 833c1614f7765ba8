"""`python -m benchmarks.overload`: what callers get when they ask for more than can be computed.

overload.MODEL.capacity                    requests per second of callers that wait for each other, twice as many as
                                           there are slots
overload.MODEL.deadline                    s after which a caller leaves: --patience times the mean time of those
overload.MODEL.loadN.offered               requests per second that arrive, at N times the capacity
overload.MODEL.loadN.goodput               requests per second that were read to the end within their deadline, until
                                           the last one has ended
overload.MODEL.loadN.goodput_over_load1    the goodput over that at the capacity, round by round
overload.MODEL.loadN.refused               the share of requests that were refused, with RESOURCE_EXHAUSTED
overload.MODEL.loadN.expired               the share that was accepted and not finished in time
overload.MODEL.loadN.failed                the share that ended in any other way
overload.MODEL.loadN.time_to_first_token   s of those that were served in time; p95 and p99 are further fields
overload.MODEL.loadN.time_to_refusal       s of those that were refused

Requests arrive at random moments (Poisson), whether or not earlier ones were answered. One in five has a long prompt.
MODEL is demo (models/demo), through a pair in bfloat16 on the CPU; each round has all loads in turn. --tiny tries the
benchmark out on a small model.
"""

from fiddler import process

process.prepare()  # as in the services

import asyncio  # noqa: E402
import random  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated  # noqa: E402

import typer  # noqa: E402

from benchmarks.harness.open_loop import closed_loop, open_loop  # noqa: E402
from benchmarks.harness.results import Append, Out, quantile, report  # noqa: E402
from benchmarks.harness.rounds import ratios  # noqa: E402
from benchmarks.harness.targets import Judge, Target  # noqa: E402
from client import AsyncClient, BusyError, ClientError, DeadlineError, GenerationChunk  # noqa: E402
from pair import Pair  # noqa: E402
from tests.support.pairs import DEMO, write_tiny  # noqa: E402
from tools.command_line import run  # noqa: E402

LOADS = (1, 2, 4)
TARGETS = {f"overload.demo.load{load}.goodput_over_load1": Target(0.8) for load in LOADS[1:]}
_MAX_SLOTS = 8
_SHORT_PROMPT, _LONG_PROMPT, _LONG_SHARE = 24, 240, 0.2
_FEWEST_TOKENS, _MOST_TOKENS = 16, 64
_TOKENS = range(3, 250)  # every vocabulary has them
_LEAST_DEADLINE_SECONDS = 1.0
_PATIENCE_SECONDS = 120.0  # of the closed loop's callers


@dataclass(frozen=True, slots=True)
class Call:
    """How one request ended, as its caller saw it, in seconds from when it was sent."""

    outcome: str
    """good, refused, expired or failed."""
    seconds: float
    first_seconds: float | None
    """Until its first token."""


class _Callers:
    """Sends requests of random sizes."""

    def __init__(self, client: AsyncClient, seed: int) -> None:
        self._client = client
        self.chance = random.Random(seed)
        self.timeout_seconds = _PATIENCE_SECONDS

    async def call(self, number: int) -> Call:
        """Sends one request and reads it to the end, or until the deadline."""
        length = _LONG_PROMPT if self.chance.random() < _LONG_SHARE else _SHORT_PROMPT
        prompt = self.chance.choices(_TOKENS, k=length)
        max_tokens = self.chance.randint(_FEWEST_TOKENS, _MOST_TOKENS)
        began, first, outcome = time.monotonic(), None, "good"
        try:
            async with self._client.generate(
                prompt, max_tokens=max_tokens, temperature=0, ignore_eos=True, timeout=self.timeout_seconds
            ) as generation:
                async for event in generation:
                    if first is None and isinstance(event, GenerationChunk):
                        first = time.monotonic() - began
        except BusyError:
            outcome = "refused"
        except DeadlineError:
            outcome = "expired"
        except ClientError:
            outcome = "failed"
        return Call(outcome, time.monotonic() - began, first)


def main(
    out: Out = None,
    append: Append = False,
    seconds: Annotated[float, typer.Option(help="How long each load lasts in each round.")] = 18.0,
    rounds: Annotated[int, typer.Option(help="Rounds through all loads.")] = 3,
    patience: Annotated[float, typer.Option(help="A caller's deadline over the mean time at capacity.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Of the requests and the moments of their arrival.")] = 0,
    tiny: Annotated[bool, typer.Option("--tiny", help="Only a small model, to try the benchmark out.")] = False,
) -> None:
    """Runs the benchmark."""
    with report(out, append) as results, tempfile.TemporaryDirectory(prefix="fiddler-") as temporary:
        name, directory = ("tiny", write_tiny(Path(temporary) / "tiny")) if tiny else ("demo", DEMO)
        judge = Judge(results, TARGETS)
        flags = ("--dtype", "float32" if tiny else "bfloat16")
        gpu_arguments = ("--device", "cpu", *flags, "--max-slots", str(_MAX_SLOTS), "--max-context", "512")
        with (
            tempfile.TemporaryFile() as log,
            Pair(directory, log=log, gpu_arguments=gpu_arguments, cpu_arguments=flags) as pair,
        ):
            asyncio.run(_measure(judge, f"overload.{name}", pair.target, seconds, rounds, patience=patience, seed=seed))
        judge.summarise()


async def _measure(
    out: Judge, name: str, target: str, seconds: float, rounds: int, *, patience: float, seed: int
) -> None:
    async with AsyncClient(target) as client:
        callers = _Callers(client, seed)
        await closed_loop(callers.call, callers=_MAX_SLOTS, seconds=seconds / 6)  # a warm-up, not counted
        calls, took = await closed_loop(callers.call, callers=2 * _MAX_SLOTS, seconds=seconds)
        capacity = sum(call.outcome == "good" for call in calls) / took
        callers.timeout_seconds = max(
            _LEAST_DEADLINE_SECONDS, patience * statistics.mean(call.seconds for call in calls)
        )
        out.samples(f"{name}.capacity", [capacity], "requests/s")
        out.samples(f"{name}.deadline", [callers.timeout_seconds], "s")
        all_calls: dict[int, list[Call]] = {load: [] for load in LOADS}
        goodput: dict[int, list[float]] = {load: [] for load in LOADS}
        for number in range(rounds):
            for load in LOADS if number % 2 else reversed(LOADS):
                began = time.monotonic()
                made = await open_loop(callers.call, per_second=load * capacity, seconds=seconds, chance=callers.chance)
                all_calls[load] += made
                goodput[load].append(sum(call.outcome == "good" for call in made) / (time.monotonic() - began))
    for load in LOADS:
        _report(out, f"{name}.load{load}", all_calls[load], rounds * seconds)
        out.samples(f"{name}.load{load}.goodput", goodput[load], "requests/s")
        if load > 1:
            out.samples(f"{name}.load{load}.goodput_over_load1", ratios(goodput[load], goodput[1]), "ratio")


def _report(out: Judge, name: str, calls: Sequence[Call], seconds: float) -> None:
    out.samples(f"{name}.offered", [len(calls) / seconds], "requests/s")
    for outcome in ("refused", "expired", "failed"):
        out.samples(f"{name}.{outcome}", [sum(call.outcome == outcome for call in calls) / max(1, len(calls))], "ratio")
    first = sorted(call.first_seconds for call in calls if call.outcome == "good" and call.first_seconds is not None)
    refused = sorted(call.seconds for call in calls if call.outcome == "refused")
    for quantity, values in (("time_to_first_token", first), ("time_to_refusal", refused)):
        if values:
            tail = {f"p{percent}": round(quantile(values, percent / 100), 4) for percent in (95, 99)}
            out.samples(f"{name}.{quantity}", values, "s", **tail)


if __name__ == "__main__":
    run(main, __doc__)
