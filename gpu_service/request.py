"""The words of the domain: a request, what it brings, and how it ends."""

import enum
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gpu_service.sampling_parameters import SamplingParameters

_numbers = itertools.count(1)


class FinishReason(enum.Enum):
    """Why a generation ended."""

    EOS = "eos"
    LENGTH = "length"
    STOP = "stop"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Token:
    """One token was made."""

    token_id: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The generation ended; nothing follows."""

    reason: FinishReason
    completion_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The generation failed; nothing follows."""

    error: Exception


Event = Token | Finished | Failed


@dataclass(eq=False, slots=True)
class Request:
    """One generation: what was asked, and how far it is. After submission only the engine's thread touches it."""

    prompt: list[int]
    sampling: SamplingParameters
    max_tokens: int
    eos_ids: frozenset[int]
    stop_ids: frozenset[int]
    emit: Callable[[Event], None]
    """Called from the engine's thread; must not block."""
    number: int = field(default_factory=lambda: next(_numbers))
    output: list[int] = field(default_factory=list)
    num_computed: int = 0
    """Tokens whose keys and values are in the cache."""
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None

    def finish_reason(self) -> FinishReason | None:
        """Why the request is over after its latest token; None while it is not."""
        if not self.output:
            return None
        if self.output[-1] in self.eos_ids:
            return FinishReason.EOS
        if self.output[-1] in self.stop_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.output) >= self.max_tokens else None

    def finished(self, reason: FinishReason) -> Finished:
        """The request's last event, with the seconds that each stage took; a stage not reached took 0."""
        now = time.monotonic()
        started = self.started_at or now
        first = self.first_token_at or (self.started_at and now) or started
        last = self.last_token_at or first
        return Finished(reason, len(self.output), started - self.submitted_at, first - started, last - first)
