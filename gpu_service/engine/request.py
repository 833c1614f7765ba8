"""The words of the domain: a request, its sequences, what it brings, and how it ends."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpu_service.sampling.outputs import Ending, FinishReason, TokenLogprobs
from gpu_service.sampling.parameters import BeamParameters, SamplingParameters

if TYPE_CHECKING:
    from gpu_service.engine.generation import Sequence
    from gpu_service.sampling.beam_search import BeamSearch
    from gpu_service.text.stop_strings import StopStrings

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Token:
    """One token was made."""

    index: int
    """Which of the request's generations it continues."""
    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt's log probabilities, once it is computed."""

    logprobs: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class Best:
    """The best beam so far; it replaces the one before."""

    token_ids: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Finished:
    """One generation ended; nothing of its index follows."""

    index: int
    reason: FinishReason
    completion_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    cached_prompt_tokens: int = 0
    stop: str | None = None
    """The stop text that ended it."""
    score: float | None = None
    """Of a beam."""
    token_ids: tuple[int, ...] = ()
    """Of a beam, whose tokens no event brought."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request failed; nothing follows."""

    error: Exception


Event = Token | Prompt | Best | Finished | Failed


@dataclass(eq=False, slots=True)
class Request:
    """What a caller asked, and how far it is. After submission only the engine's thread touches it."""

    prompt: list[int]
    sampling: SamplingParameters
    max_tokens: int
    emit: Callable[[Event], None]
    """Called from the engine's thread; must not block."""
    eos_ids: frozenset[int] = frozenset()
    """Empty where they are to be ignored."""
    stop_ids: frozenset[int] = frozenset()
    stop: "StopStrings | None" = None
    min_tokens: int = 0
    n: int = 1
    beam: BeamParameters | None = None
    logprobs: int | None = None
    """How many alternatives; None: no log probabilities."""
    prompt_logprobs: int | None = None
    priority: int = 0
    start_token_id: int | None = None
    """What its output begins with, where the prompt is the input of an encoder."""
    request_id: str = ""
    number: int = field(default_factory=lambda: next(_numbers))
    sequences: "list[Sequence]" = field(default_factory=list)
    """One for each row that it takes; there once it is being run."""
    search: "BeamSearch | None" = None
    prompt_entries: list[TokenLogprobs] = field(default_factory=list)
    """The prompt's log probabilities, as far as they are computed."""
    cached_prompt_tokens: int = 0
    """Tokens of the prompt whose keys and values another request had left."""
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    first_token_at: float | None = None

    @property
    def ending(self) -> Ending:
        """When one of its generations ends by its tokens."""
        return Ending(self.max_tokens, eos_ids=self.eos_ids, stop_ids=self.stop_ids, min_tokens=self.min_tokens)

    @property
    def preceding(self) -> list[int]:
        """The tokens that its output goes on from, which penalties count: the prompt, or a decoder's start token."""
        return self.prompt if self.start_token_id is None else [self.start_token_id]

    @property
    def num_rows(self) -> int:
        """Rows of the cache that it takes: one for each generation or beam."""
        return self.n if self.beam is None else self.beam.num_beams

    @property
    def max_length(self) -> int:
        """Tokens that one of its rows may come to hold."""
        return len(self.prompt) + self.max_tokens

    def stage_seconds(self, last_token_at: float | None) -> tuple[float, float, float]:
        """Seconds until it was computed on, from then to the first token, and from there to the last one.

        A stage that was not reached took 0.
        """
        now = time.monotonic()
        started = self.started_at or now
        first = self.first_token_at or (self.started_at and now) or started
        return started - self.submitted_at, first - started, (last_token_at or first) - first

    def finished_beam(
        self, index: int, token_ids: tuple[int, ...], score: float, reason: FinishReason | None
    ) -> Finished:
        """The last event of one of its beams; one that did not end by itself was ended by its length."""
        return Finished(
            index,
            reason or FinishReason.LENGTH,
            len(token_ids),
            *self.stage_seconds(self.sequences[0].last_token_at),
            cached_prompt_tokens=self.cached_prompt_tokens,
            score=score,
            token_ids=token_ids,
        )
