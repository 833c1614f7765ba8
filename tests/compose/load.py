"""A load whose tokens are counted here, which gives the expected values of the counters."""

import threading
from dataclasses import dataclass

from client import Client, Complete, InvalidRequestError
from tests.compose.prometheus import Prometheus
from tests.compose.stack import ComposeError

NUM_CALLERS = 8
MAX_SLOTS = 4
"""Fewer than the callers, so that some requests wait."""
_NUM_TOKENS = 120
_EXPERTS_PER_TOKEN = 2  # models/demo
# long enough to be cached, so that later prompts share it
_PREFIX = "It was a fine morning in the country, and the windows of the house had been open since the sun rose, when "

COUNTERS = {
    "generations": 'sum(fiddler_requests_total{finish_reason="length",status="OK"})',
    "refused": 'sum(fiddler_requests_total{finish_reason="error",status="INVALID_ARGUMENT"})',
    "prompt tokens": "sum(fiddler_prompt_tokens_total)",
    "cached prompt tokens": "sum(fiddler_cached_prompt_tokens_total)",
    "tokens": "sum(fiddler_generation_tokens_total)",
    **{
        f"selections of layer {layer}": f'sum(fiddler_expert_selections_total{{layer="{layer}"}})' for layer in range(4)
    },
    **{
        f"selections by expert of layer {layer}": f'sum(fiddler_expert_selections_by_expert_total{{layer="{layer}"}})'
        for layer in range(4)
    },
}
"""Queries that count a load."""
PAIRS = {
    "messages": ("sum(fiddler_expert_call_seconds_count)", 'sum(fiddler_expert_requests_total{code="OK"})'),
    "bytes sent": (
        'sum(fiddler_expert_call_bytes_total{direction="sent"})',
        "sum(fiddler_expert_received_bytes_total)",
    ),
    "bytes received": (
        'sum(fiddler_expert_call_bytes_total{direction="received"})',
        "sum(fiddler_expert_sent_bytes_total)",
    ),
    "rows": ("sum(fiddler_expert_call_rows_sum)", "sum(fiddler_expert_rows_total)"),
}
"""Queries of the same quantity, counted by the GPU service and by the CPU expert service."""


@dataclass
class Load:
    """The generations of a load."""

    ends: list[Complete]
    num_refused: int
    """Number of requests for more tokens than the context holds."""

    def expected(self) -> dict[str, int]:
        """The expected growth of each of COUNTERS."""
        prompts = sum(end.prompt_tokens for end in self.ends)
        cached = sum(end.cached_prompt_tokens for end in self.ends)
        tokens = sum(end.completion_tokens for end in self.ends)
        # neither the last token of a generation nor cached tokens are computed
        selections = _EXPERTS_PER_TOKEN * (prompts - cached + tokens - len(self.ends))
        return {
            "generations": len(self.ends),
            "refused": self.num_refused,
            "prompt tokens": prompts,
            "cached prompt tokens": cached,
            "tokens": tokens,
            **{name: selections for name in COUNTERS if name.startswith("selections")},
        }


class Callers:
    """Threads that generate, one generation after another, inside a `with` block."""

    def __init__(self, target: str, num_callers: int = NUM_CALLERS) -> None:
        self._target = target
        self._stop = threading.Event()
        self._ends: list[list[Complete]] = [[] for _ in range(num_callers)]
        self._num_refused = [0] * num_callers
        self._errors: list[str] = []
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(num_callers)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def done(self) -> Load:
        """Returns the load. Call it after the `with` block.

        Raises:
            ComposeError: A generation failed.
        """
        if self._errors:
            raise ComposeError(f"{len(self._errors)} generations failed: {self._errors[0]}")
        return Load([end for ends in self._ends for end in ends], sum(self._num_refused))

    def _call(self, number: int) -> None:
        try:
            with Client(self._target) as client:
                while not self._stop.is_set():
                    prompt = f"{_PREFIX}{number} {len(self._ends[number])}"
                    events = client.generate(
                        prompt, max_tokens=_NUM_TOKENS, ignore_eos=True, temperature=1.0, seed=number, timeout=300
                    )
                    self._ends[number] += [event for event in events if isinstance(event, Complete)]
                    self._num_refused[number] += _is_refused(client)
        except Exception as error:  # raised by done()
            self._errors.append(f"{type(error).__name__}: {error}")


def _is_refused(client: Client) -> bool:
    try:
        client.generate("It was", max_tokens=10**6).text()
    except InvalidRequestError:
        return True
    return False


def read(prometheus: Prometheus, queries: dict[str, str]) -> dict[str, float]:
    """Waits for scrapes, and returns the queries' totals."""
    prometheus.wait_for_scrapes()
    return {name: prometheus.total(query) for name, query in queries.items()}


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """The growth of each value."""
    return {name: after[name] - before[name] for name in before}
