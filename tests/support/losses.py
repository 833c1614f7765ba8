"""Kills and restarts the CPU expert service of a pair under load, and records what its generations noticed."""

import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from client import Client, ClientError, DeadlineError, GenerationChunk
from client.health import ask_health
from fiddler.v1 import experts_pb2
from pair import Pair

EXPERTS = "cpu_expert_service"
_EXPERT_SERVICE = experts_pb2.DESCRIPTOR.services_by_name["ExpertService"].full_name
_POLL_SECONDS = 0.01
_PATIENCE_SECONDS = 60.0


def tokens_of(client: Client, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The token ids of a prompt's greedy continuation."""
    messages = client.generate(prompt, max_tokens=num_tokens, temperature=0, timeout=_PATIENCE_SECONDS)
    return [token for message in messages if isinstance(message, GenerationChunk) for token in message.token_ids]


def metric(pair: Pair, name: str, **labels: str) -> float:
    """The sum of those samples of a metric of the GPU service that have these labels."""
    with urlopen(f"http://127.0.0.1:{pair.gpu_metrics_port}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())


def in_use(pair: Pair) -> bool:
    """Whether the GPU service reports that it uses the CPU expert service."""
    return ask_health(pair.target, _EXPERT_SERVICE) == "SERVING"


def wait_until(condition: Callable[[], bool], seconds: float = _PATIENCE_SECONDS) -> float:
    """Waits until a condition holds; returns that time.monotonic()."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not hold in time"
        time.sleep(_POLL_SECONDS)
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class Loss:
    """The times of one loss, as time.monotonic()."""

    killed_at: float
    noticed_at: float
    """When the GPU service reported the loss."""
    serving_at: float
    """When the restarted service reported that it is serving."""
    used_at: float
    """When the GPU service used it again."""

    @property
    def recovery_seconds(self) -> float:
        """From the return of the service until it was used again."""
        return max(0.0, self.used_at - self.serving_at)


def lose(pair: Pair, delay_seconds: float = 0.0) -> Loss:
    """Kills the CPU expert service, restarts it after a delay, and waits until it is used again."""
    killed_at = time.monotonic()
    pair.stop(EXPERTS, signal.SIGKILL)
    noticed_at = wait_until(lambda: not in_use(pair))
    time.sleep(delay_seconds)
    pair.start(EXPERTS)
    serving_at = wait_until(lambda: pair.is_serving(pair.experts))
    return Loss(
        killed_at=killed_at,
        noticed_at=noticed_at,
        serving_at=serving_at,
        used_at=wait_until(lambda: in_use(pair)),
    )


def lose_at_random(pair: Pair, times: int, *, seed: int, longest_seconds: float) -> list[Loss]:
    """Kills the service several times, each at a random moment after it was used again."""
    moments = random.Random(seed)
    losses = []
    for _ in range(times):
        time.sleep(moments.uniform(0, longest_seconds))
        losses.append(lose(pair, moments.uniform(0, longest_seconds)))
    return losses


@dataclass
class Generations:
    """Repeats generations of several prompts at a time, within `with Generations(...)`.

    Each generation is compared with the tokens of the same prompt without a loss.
    """

    target: str
    prompts: Sequence[Sequence[int]]
    """The prompts, one for each generation that runs at a time."""
    expected: Sequence[Sequence[int]]
    """The expected token ids of each prompt."""
    num_right: int = 0
    """How many generations had the expected tokens."""
    wrong: list[str] = field(default_factory=list)
    """Descriptions of generations with other tokens."""
    failed: list[str] = field(default_factory=list)
    """Descriptions of generations that failed."""
    hung: list[str] = field(default_factory=list)
    """Descriptions of generations that took more than a minute."""
    _arrivals: list[list[float]] = field(init=False)
    _threads: list[threading.Thread] = field(init=False)
    _enough: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._arrivals = [[] for _ in self.prompts]
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(len(self.prompts))]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: all(self._arrivals))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def stall_seconds(self, moment: float) -> float:
        """How long it took from a time.monotonic() until every prompt had another token."""
        return max(
            next((arrival for arrival in arrivals if arrival > moment), time.monotonic()) - moment
            for arrivals in self._arrivals
        )

    def _run(self, index: int) -> None:
        with Client(self.target) as client:
            while not self._enough.is_set():
                self._generate(client, index)

    def _generate(self, client: Client, index: int) -> None:
        expected = list(self.expected[index])
        tokens: list[int] = []
        outcome, what = self.failed, ""
        try:
            for message in client.generate(
                self.prompts[index], max_tokens=len(expected), temperature=0, timeout=_PATIENCE_SECONDS
            ):
                if isinstance(message, GenerationChunk):
                    tokens += message.token_ids
                    self._arrivals[index].append(time.monotonic())
        except DeadlineError:
            outcome, what = self.hung, f"{len(tokens)} tokens in {_PATIENCE_SECONDS:g} s"
        except ClientError as error:
            what = str(error)
        else:
            outcome, what = self.wrong, f"{tokens} instead of {expected}"
        with self._lock:
            if tokens == expected:
                self.num_right += 1
            else:
                outcome.append(f"prompt {index}: {what}")
