"""What is measured, and how: requests of random tokens to a server that has nothing else to do."""

import random
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from client import Client, ClientError, Complete, ModelInfo
from fiddler_checkup.bench.counters import Counters, Readings


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurement.

    Attributes:
        prompt: Tokens of each prompt.
        generated: Tokens that each stream generates; 1 measures the prompt alone.
        streams: Requests at one time.
        beams: Beams of the request; 1 for none.
    """

    prompt: int
    generated: int
    streams: int = 1
    beams: int = 1

    @property
    def name(self) -> str:
        """For the table: "prefill 512", "decode 128 x 4", "decode 128, 4 beams"."""
        if self.generated == 1:
            return f"prefill {self.prompt}"
        if self.beams > 1:
            return f"decode {self.generated}, {self.beams} beams"
        return f"decode {self.generated}" + (f" x {self.streams}" if self.streams > 1 else "")

    @property
    def is_prefill(self) -> bool:
        """Whether the prompt's tokens are counted, not the generated ones."""
        return self.generated == 1

    @property
    def rows(self) -> int:
        """Tokens that one step computes when it decodes."""
        return self.streams * self.beams


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a case gave: the median of several rounds.

    Attributes:
        case: The case.
        tokens_per_second: Of all streams together.
        spread: The lowest and the highest round, in tokens per second.
        seconds_per_step: Of one step of decoding, or of the whole prompt.
        counters: What the services counted meanwhile, of all rounds.
        steps: Steps of decoding in all rounds.
    """

    case: Case
    tokens_per_second: float
    spread: tuple[float, float]
    seconds_per_step: float
    counters: Counters
    steps: int


def standard_cases(model: ModelInfo, *, prompt: int, generated: int, streams: Sequence[int], beams: int) -> list[Case]:
    """The cases for a model, cut to its context."""
    room = model.max_context_tokens
    prompt = max(1, min(prompt, room - 1))
    short = max(1, min(16, room // 4))
    generated = max(2, min(generated, room - short))
    cases = [Case(prompt=prompt, generated=1)]
    cases += [Case(prompt=short, generated=generated, streams=count) for count in streams]
    if beams > 1:
        cases.append(Case(prompt=short, generated=generated, beams=beams))
    return cases


def measure(
    client: Client, readings: Readings, case: Case, *, model: ModelInfo, rounds: int, generator: random.Random
) -> Measurement:
    """Measures one case after a round that is not counted.

    Raises:
        ClientError: A request failed.
    """
    _round(client, replace(case, generated=min(case.generated, 4)), model, generator)
    before = readings.read()
    rates, seconds = [], []
    for _ in range(rounds):
        took = _round(client, case, model, generator)
        tokens = case.prompt * case.streams if case.is_prefill else (case.generated - 1) * case.rows
        rates.append(tokens / took)
        seconds.append(took)
    steps = rounds if case.is_prefill else rounds * (case.generated - 1)
    return Measurement(
        case=case,
        tokens_per_second=statistics.median(rates),
        spread=(min(rates), max(rates)),
        seconds_per_step=statistics.median(seconds) / (1 if case.is_prefill else case.generated - 1),
        counters=readings.read() - before,
        steps=steps,
    )


def _round(client: Client, case: Case, model: ModelInfo, generator: random.Random) -> float:
    """Seconds from the first prompt's beginning, or from the first generated token, to the last stream's end."""
    # different prompts each time, so that no keys and values of earlier ones are used again
    prompts = [[generator.randrange(model.vocab_size) for _ in range(case.prompt)] for _ in range(case.streams)]
    ends: list[tuple[float, float]] = []
    errors: list[ClientError] = []

    def work(prompt: list[int]) -> None:
        try:
            complete = _generate(client, case, prompt)
        except ClientError as error:
            errors.append(error)
            return
        now = time.monotonic()
        seconds = complete.prefill_seconds if case.is_prefill else complete.decode_seconds
        ends.append((now - seconds, now))

    threads = [threading.Thread(target=work, args=(prompt,), daemon=True) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    # of several streams the first begins while others are in their prompts: the time of all of them counts
    return max(end for _, end in ends) - min(begin for begin, _ in ends)


def _generate(client: Client, case: Case, prompt: list[int]) -> Complete:
    if case.beams > 1:
        generation = client.generate(
            prompt, max_tokens=case.generated, min_tokens=case.generated, ignore_eos=True, num_beams=case.beams
        )
    else:
        generation = client.generate(prompt, max_tokens=case.generated, ignore_eos=True, temperature=0)
    with generation:
        *_, last = (event for event in generation if isinstance(event, Complete))
    return last
