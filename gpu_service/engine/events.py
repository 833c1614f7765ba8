"""What the engine reports of a request while it computes it. Plain values, from the engine's thread to any other."""

from dataclasses import dataclass

from gpu_service.sampling.outputs import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Token:
    """A generation has one token more."""

    index: int
    """The index of the generation within its request."""
    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt is computed and its log probabilities are known."""

    logprobs: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class Progress:
    """More of the prompt is computed. It replaces the one reported before."""

    computed_tokens: int
    """Including the cached ones."""
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Best:
    """The best beam so far. It replaces the one reported before."""

    token_ids: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Finished:
    """One generation has ended. No event of its index follows."""

    index: int
    reason: FinishReason
    completion_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    cached_prompt_tokens: int = 0
    stop: str | None = None
    """The stop text that ended it."""
    stop_token_id: int | None = None
    """The token that ended it, if one did."""
    score: float | None = None
    """A beam's score."""
    token_ids: tuple[int, ...] = ()
    """A beam's tokens, which no earlier event has reported."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has failed. No event follows."""

    error: Exception


Event = Token | Prompt | Progress | Best | Finished | Failed
