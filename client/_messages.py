"""The events of a generation that a server streams, as plain typed values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # as in _errors.py
    from fiddler.v1 import generation_pb2


class FinishReason(enum.IntEnum):
    """Why a generation ended. The numbers are the proto's."""

    UNSPECIFIED = 0
    """The server gave no reason, or one that is newer than this client."""
    EOS = 1
    """The model generated its end-of-sequence token."""
    LENGTH = 2
    """max_tokens were generated, or the context is full."""
    STOP = 3
    """One of the request's stop tokens or stop texts was generated."""
    CANCELLED = 4
    """The caller cancelled."""
    DEADLINE = 5
    """The caller's deadline passed."""

    @classmethod
    def _missing_(cls, value: object) -> FinishReason:
        return cls.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have been generated instead.

    Attributes:
        token_id: The token.
        logprob: The natural logarithm of its probability.
        text: The text of the token by itself.
    """

    token_id: int
    logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log probability of a token, and of the likeliest tokens at its position.

    Attributes:
        token_id: The token.
        logprob: The natural logarithm of its probability; None for the first token of a prompt.
        top: The likeliest tokens, likeliest first; the token itself may be among them.
        text: The text of the token by itself.
    """

    token_id: int
    logprob: float | None
    top: tuple[Alternative, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """Newly generated tokens.

    Attributes:
        index: Which of the request's generations the tokens continue; 0 if there is one.
        token_ids: The ids, in order.
        text: Text that can no longer change. It may be empty, and it may lag behind the ids.
        logprobs: One for each of token_ids, if requested.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The log probabilities of the prompt, or of a part of it. They precede all other events, if requested.

    Attributes:
        tokens: One for each token.
    """

    tokens: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class BestBeam:
    """The best beam so far, if requested. It replaces the previous one.

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
        queue_seconds: From the request's arrival at the server until its computation began.
        prefill_seconds: From then until its first token.
        decode_seconds: From its first token until its last.
        cached_prompt_tokens: Tokens of the prompt that were reused from an earlier request.
        stop: The stop text that ended it, if any.
        score: Of a beam: the sum of its tokens' log probabilities, divided by the length penalty; otherwise None.
        token_ids: Of a beam: its ids, which no chunk contains; otherwise empty.
        text: Of a beam: its text; otherwise empty.
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
"""What iterating a generation yields."""


def event_from(response: generation_pb2.GenerateResponse) -> Event | None:
    """Converts a response; None if its event is newer than this client."""
    match response.WhichOneof("event"):
        case "chunk":
            chunk = response.chunk
            logprobs = tuple(map(_logprobs, chunk.logprobs))
            return GenerationChunk(chunk.index, tuple(chunk.token_ids), chunk.text, logprobs=logprobs)
        case "complete":
            return complete_from(response.complete)
        case "prompt":
            return PromptLogprobs(tuple(map(_logprobs, response.prompt.tokens)))
        case "beam":
            return BestBeam(tuple(response.beam.token_ids), response.beam.text, response.beam.score)
    return None


def complete_from(complete: generation_pb2.Complete) -> Complete:
    """Converts a message."""
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
    return TokenLogprobs(token.token_id, token.logprob if token.HasField("logprob") else None, top, token.text)
