"""A model for tests of the engine: its likeliest next token is the last token plus one, modulo the vocabulary."""

import queue
from collections.abc import Sequence
from typing import Any

import torch

from gpu_service.engine.events import Event, Failed, Finished, Token
from gpu_service.engine.generation import Answer
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.engine.prefill_chunks import PrefillChunks
from gpu_service.engine.scheduler import Scheduler
from gpu_service.model_runner.forward_input import Span
from tests.support.requests import request_of

VOCAB = 100


class NoCache:
    """A RowStorage that stores nothing and remembers which rows were cleared."""

    is_divisible = True

    def __init__(self) -> None:
        self.cleared: list[int] = []

    def copy(self, *_: int, **__: int) -> None: ...

    def swap(self, *_: int) -> None: ...

    def reshape(self, *_: Any) -> None: ...

    def clear(self, row: int, stop: int) -> None:
        self.cleared.append(row)


class CountingModel:
    """Counts up from the last token. Tests make it fail.

    Attributes:
        error: Raised by the next steps.
        nan_after: The token after which logits are NaN.
        non_finite_after: The token after which a row's experts are reported as non-finite.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self) -> None:
        self.cache = NoCache()
        self._non_finite: set[int] = set()
        self.error: BaseException | None = None
        self.nan_after = -1
        self.non_finite_after = -1
        self.steps = 0

    def scheduler(
        self, max_slots: int = 4, max_waiting: int = 1, chunk: int = 8, *, packs_spans: bool = True
    ) -> Scheduler:
        budget = KvBudget(num_tokens=10**9, token_bytes=1, max_rows=max_slots, max_length=10**9 // max_slots)
        return Scheduler(
            self.cache,
            budget,
            max_waiting=max_waiting,
            chunks=PrefillChunks.uniform(chunk),
            packs_spans=packs_spans,
        )

    def compute(self, spans: Sequence[Span]) -> torch.Tensor:
        self.steps += 1
        if self.error:
            raise self.error
        self._non_finite = {number for number, span in enumerate(spans) if self.non_finite_after in span.token_ids}
        tokens = [token for span in spans for token in span.token_ids[len(span.token_ids) - span.num_logits :]]
        kept = torch.tensor(tokens, dtype=torch.int64)
        logits = torch.nn.functional.one_hot((kept + 1) % VOCAB, VOCAB).float() * 9
        # a little for the token after that, so that beams have a choice
        logits += torch.nn.functional.one_hot((kept + 2) % VOCAB, VOCAB).float() * 7
        logits[kept == self.nan_after] = torch.nan
        return logits

    def take_non_finite(self) -> set[int]:
        rows, self._non_finite = self._non_finite, set()
        return rows


class Reader:
    """One request, its answer for tests without an engine, and its events."""

    def __init__(self, prompt: Sequence[int], max_tokens: int = 5, eos: int = -1, **more: Any) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.request = request_of(prompt, max_tokens, emit=self.events.put, eos_ids=[eos], **more)
        self.answer = Answer(self.request)

    def all(self) -> list[Event]:
        """The events so far."""
        return [self.events.get() for _ in range(self.events.qsize())]

    def read(self) -> tuple[list[int], Finished | Failed]:
        """Waits for the end of a request of one generation and returns its tokens and its last event."""
        tokens: list[int] = []
        while True:
            event = self.events.get(timeout=20)
            if isinstance(event, Finished | Failed):
                return tokens, event
            if isinstance(event, Token):
                tokens.append(event.token_id)
