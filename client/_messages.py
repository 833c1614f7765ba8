"""What a server streams of a generation, as plain typed values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # as in _errors.py
    from fiddler.v1 import generation_pb2


class FinishReason(enum.IntEnum):
    """Why a generation ended. The numbers are the proto's."""

    UNSPECIFIED = 0
    """The server gave none, or one that this client is too old to know."""
    EOS = 1
    """The model made its end-of-sequence token."""
    LENGTH = 2
    """max_tokens were made, or the context is full."""
    STOP = 3
    """One of the request's stop tokens or stop texts was made."""
    CANCELLED = 4
    """The caller cancelled."""
    DEADLINE = 5
    """The caller's deadline passed."""

    @classmethod
    def _missing_(cls, value: object) -> FinishReason:
        return cls.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have been.

    Attributes:
        token_id: The token.
        logprob: The natural logarithm of its probability.
        text: Its text, alone.
    """

    token_id: int
    logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log probability of a token, and of the likeliest tokens in its place.

    Attributes:
        token_id: The token.
        logprob: The natural logarithm of its probability; None for the first token of a prompt.
        top: The likeliest tokens, likeliest first; the token itself may be among them.
    """

    token_id: int
    logprob: float | None
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """Tokens, as they are made.

    Attributes:
        index: Which of the request's generations they continue: 0 where there is one.
        token_ids: The ids, in order.
        text: Text that has become certain. It may be empty, and may lag the ids.
        logprobs: One for each of token_ids, where they were asked for.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The prompt's log probabilities, which come first where they were asked for.

    Attributes:
        tokens: One for each token of the prompt.
    """

    tokens: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class BestBeam:
    """The best beam so far, where it was asked for. It replaces the one before.

    Attributes:
        token_ids: All ids generated in it.
        text: Their text.
        score: The sum of their log probabilities, divided by the length penalty.
    """

    token_ids: tuple[int, ...]
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Complete:
    """How a generation ended.

    Attributes:
        index: Which of the request's generations ended.
        finish_reason: Why it ended.
        prompt_tokens: Tokens in the prompt, special tokens included.
        completion_tokens: Tokens generated, the one that ended the generation included.
        queue_seconds: From the request's arrival until it was first computed on, as the server saw it.
        prefill_seconds: From then until its first token.
        decode_seconds: From its first token until its last.
        cached_prompt_tokens: Tokens of the prompt that an earlier request had computed already.
        stop: The stop text that ended it, if one did.
        score: Of a beam: the sum of its tokens' log probabilities, divided by the length penalty.
        token_ids: Of a beam: its ids, which no chunk brought.
        text: Of a beam: its text.
    """

    index: int
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    cached_prompt_tokens: int = 0
    stop: str | None = None
    score: float | None = None
    token_ids: tuple[int, ...] = ()
    text: str = ""


Event = GenerationChunk | Complete | PromptLogprobs | BestBeam
"""What a generation brings."""


def event_from(response: generation_pb2.GenerateResponse) -> Event | None:
    """The event that a response brings, None where it is of a kind that this client is too old to know."""
    match response.WhichOneof("event"):
        case "chunk":
            chunk = response.chunk
            return GenerationChunk(
                chunk.index, tuple(chunk.token_ids), chunk.text, tuple(map(_logprobs, chunk.logprobs))
            )
        case "complete":
            return complete_from(response.complete)
        case "prompt":
            return PromptLogprobs(tuple(map(_logprobs, response.prompt.tokens)))
        case "beam":
            return BestBeam(tuple(response.beam.token_ids), response.beam.text, response.beam.score)
    return None


def complete_from(complete: generation_pb2.Complete) -> Complete:
    """How the generation ended."""
    return Complete(
        index=complete.index,
        finish_reason=FinishReason(complete.finish_reason),
        prompt_tokens=complete.usage.prompt_tokens,
        completion_tokens=complete.usage.completion_tokens,
        queue_seconds=complete.timings.queue_seconds,
        prefill_seconds=complete.timings.prefill_seconds,
        decode_seconds=complete.timings.decode_seconds,
        cached_prompt_tokens=complete.usage.cached_prompt_tokens,
        stop=complete.stop if complete.HasField("stop") else None,
        score=complete.score if complete.HasField("score") else None,
        token_ids=tuple(complete.token_ids),
        text=complete.text,
    )


def _logprobs(token: generation_pb2.TokenLogprobs) -> TokenLogprobs:
    top = tuple(Alternative(each.token_id, each.logprob, each.text) for each in token.top)
    return TokenLogprobs(token.token_id, token.logprob if token.HasField("logprob") else None, top)
