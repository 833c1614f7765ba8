"""How far requests are computed: answers and their generations.

Only the engine's thread changes these objects. Imports no torch.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpu_service.engine.events import Finished
from gpu_service.engine.request import Request
from gpu_service.model_runner.rope_angles import Angles
from gpu_service.sampling.outputs import FinishReason, TokenLogprobs

if TYPE_CHECKING:
    from gpu_service.sampling.beam_search import BeamSearch
    from gpu_service.sampling.constraint import Constraint
    from gpu_service.sampling.sampler import Sampler
    from gpu_service.text.stop_strings import StopMatcher

_BY_TOKEN = frozenset({FinishReason.EOS, FinishReason.STOP})
GROWTH_TOKENS = 256
"""For how many more tokens memory is reserved at a time for an output of unknown length."""


@dataclass(eq=False, slots=True)
class Generation:
    """One generation of an answer, or one of its beams: it has one KV row."""

    answer: "Answer"
    index: int
    sampler: "Sampler | None" = None
    """None for a beam."""
    matcher: "StopMatcher | None" = None
    constraint: "Constraint | None" = None
    output: list[int] = field(default_factory=list)
    num_computed: int = 0
    """Tokens whose keys and values are in the cache."""
    angles: Angles = ()
    """The angles of RoPE that its keys have; see `RopeAngles`."""
    row: int = -1
    """Its KV row; -1 if it has none."""
    is_finished: bool = False
    last_token_at: float | None = None

    @property
    def num_to_compute(self) -> int:
        """Tokens whose keys and values must be in the cache before its latest token is computed."""
        return len(self.request.prompt) + max(0, len(self.output) - 1)

    @property
    def is_behind(self) -> bool:
        """Whether tokens of it are known that are not computed, besides its latest."""
        return bool(self.output) and self.num_computed <= self.num_to_compute

    @property
    def request(self) -> Request:
        """The request that it belongs to."""
        return self.answer.request

    @property
    def preceding_decode(self) -> Sequence[int]:
        """The tokens to compute before it decodes: its prompt, and what it had generated if its row was taken away."""
        return [*self.request.prompt, *self.output[:-1]] if self.output else self.request.prompt

    def finished(self, reason: FinishReason, stop: str | None = None) -> Finished:
        """Its last event; `stop` is the stop text that ended it."""
        by_token = reason in _BY_TOKEN and stop is None and self.output[-1] in self.request.ending.end_ids
        return Finished(
            self.index,
            reason,
            len(self.output),
            *self.answer.stage_seconds(self.last_token_at),
            cached_prompt_tokens=self.answer.cached_prompt_tokens,
            stop=stop,
            stop_token_id=self.output[-1] if by_token else None,
        )


@dataclass(eq=False, slots=True)
class Answer:
    """How far a request is computed."""

    request: Request
    generations: list[Generation] = field(init=False)
    """One for each KV row that it needs."""
    search: "BeamSearch | None" = None
    prompt_entries: list[TokenLogprobs] = field(default_factory=list)
    """The prompt's log probabilities, as far as they are computed."""
    cached_prompt_tokens: int = 0
    """Tokens of the prompt whose keys and values another request had left in the cache."""
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    first_token_at: float | None = None
    grows: bool = field(init=False)
    """Whether memory is reserved for it as it grows; see Request.grows."""
    reserved_length: int = field(init=False)
    """Tokens for which each of its KV rows has memory."""

    def __post_init__(self) -> None:
        self.grows = self.request.grows
        self.reserved_length = self.next_reservation(len(self.request.prompt))
        self.generations = [Generation(self, index) for index in range(self.request.num_rows)]

    def next_reservation(self, num_tokens: int) -> int:
        """The length to reserve for rows that hold so many tokens and will hold more."""
        longest = self.request.max_length
        return min(longest, num_tokens + GROWTH_TOKENS) if self.grows else longest

    @property
    def is_finished(self) -> bool:
        """Whether all its generations have ended."""
        return all(generation.is_finished for generation in self.generations)

    def stage_seconds(self, last_token_at: float | None) -> tuple[float, float, float]:
        """Seconds until computing began, from then to the first token, and from there to the last token.

        A stage that was not reached took 0.
        """
        now = time.monotonic()
        started = self.started_at or now
        first = self.first_token_at or (self.started_at and now) or started
        return started - self.submitted_at, first - started, (last_token_at or first) - first

    def finished_beam(
        self, index: int, token_ids: tuple[int, ...], *, score: float, reason: FinishReason | None
    ) -> Finished:
        """The last event of one of its beams. Without a reason of its own, its length ended it."""
        return Finished(
            index,
            reason or FinishReason.LENGTH,
            len(token_ids),
            *self.stage_seconds(self.generations[0].last_token_at),
            cached_prompt_tokens=self.cached_prompt_tokens,
            stop_token_id=token_ids[-1] if reason in _BY_TOKEN and token_ids else None,
            score=score,
            token_ids=token_ids,
        )
