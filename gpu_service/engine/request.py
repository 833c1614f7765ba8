"""The words of the domain: a request, its sequences, what it brings, and how it ends."""

import enum
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from gpu_service.sampling_parameters import SamplingParameters

if TYPE_CHECKING:
    from gpu_service.beam import BeamSearch
    from gpu_service.sampling import Sampler
    from gpu_service.stop_strings import StopMatcher, StopStrings

_numbers = itertools.count(1)


class FinishReason(enum.Enum):
    """Why a generation ended."""

    EOS = "eos"
    LENGTH = "length"
    STOP = "stop"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's log probability and the likeliest tokens in its place."""

    token_id: int
    logprob: float | None
    """None for a prompt's first token."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log probability), likeliest first."""


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


@dataclass(frozen=True, slots=True)
class BeamParameters:
    """How beams are searched: transformers' meanings."""

    num_beams: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    stream_best: bool = False


@dataclass(eq=False, slots=True)
class Sequence:
    """One generation of a request, or one of its beams: a row of the cache. Only the engine's thread touches it."""

    request: "Request"
    index: int
    sampler: "Sampler | None" = None
    """None for a beam."""
    matcher: "StopMatcher | None" = None
    output: list[int] = field(default_factory=list)
    num_computed: int = 0
    """Tokens whose keys and values are in the cache."""
    row: int = -1
    """Of the cache; -1 where it has none."""
    is_finished: bool = False
    last_token_at: float | None = None

    def finish_reason(self) -> FinishReason | None:
        """Why it is over after its latest token; None while it is not. Stop texts are the matcher's."""
        if self.output[-1] in self.request.eos_ids:
            return FinishReason.EOS
        if self.output[-1] in self.request.stop_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.output) >= self.request.max_tokens else None

    def finished(self, reason: FinishReason, stop: str | None = None) -> Finished:
        """Its last event."""
        return Finished(
            self.index,
            reason,
            len(self.output),
            *self.request.stage_seconds(self.last_token_at),
            cached_prompt_tokens=self.request.cached_prompt_tokens,
            stop=stop,
        )


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
    sequences: list[Sequence] = field(default_factory=list)
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
