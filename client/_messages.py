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
    """One of the request's stop tokens or stop texts was generated, or the output is complete by its constraint."""
    CANCELLED = 4
    """The caller cancelled."""
    DEADLINE = 5
    """The caller's deadline passed."""
    TOOL_CALLS = 6
    """The answer ended and calls functions."""

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
class Usage:
    """Numbers of tokens.

    Attributes:
        prompt_tokens: Tokens in the prompt, special tokens included.
        completion_tokens: Tokens generated so far.
        cached_prompt_tokens: Tokens of the prompt that were reused from an earlier request.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call of a function.

    Attributes:
        index: The index of the call within the answer.
        id: Identifies the call. Empty except in the first piece, as is the name.
        name: The function's name.
        arguments: More of the arguments, which are together the text of a JSON object.
    """

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class MessageDelta:
    """A piece of the answer to a chat.

    Attributes:
        content: More of the content.
        reasoning: More of the reasoning.
        tool_calls: More of the calls of functions.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How far the prompt is computed, if requested.

    Attributes:
        computed_tokens: Its tokens that are computed, including cached_tokens.
        total_tokens: All its tokens.
        cached_tokens: Its tokens that need not be computed.
    """

    computed_tokens: int
    total_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """Newly generated tokens.

    Attributes:
        index: Which of the request's generations the tokens continue; 0 if there is one.
        token_ids: The ids, in order.
        text: Text that can no longer change. It may be empty, and it may lag behind the ids.
        logprobs: One for each of token_ids, if requested.
        usage: The numbers of tokens so far, if requested.
        delta: What the chunk adds to the answer to a chat; None if the prompt is not a chat, and in an echo.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    usage: Usage | None = None
    delta: MessageDelta | None = None


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
        stop_token_id: The end-of-sequence or stop token that ended it, if any.
        message: Of a beam that answers a chat: the whole answer; otherwise None.
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
    stop_token_id: int | None = None
    message: MessageDelta | None = None


Event = GenerationChunk | Complete | PromptLogprobs | BestBeam | PromptProgress
"""What iterating a generation yields."""


def event_from(response: generation_pb2.GenerateResponse) -> Event | None:
    """Converts a response; None if its event is newer than this client."""
    match response.WhichOneof("event"):
        case "chunk":
            chunk = response.chunk
            logprobs = tuple(map(_logprobs, chunk.logprobs))
            return GenerationChunk(
                chunk.index,
                tuple(chunk.token_ids),
                chunk.text,
                logprobs=logprobs,
                usage=_usage(chunk.usage) if chunk.HasField("usage") else None,
                delta=_delta(chunk.delta) if chunk.HasField("delta") else None,
            )
        case "complete":
            return complete_from(response.complete)
        case "prompt":
            return PromptLogprobs(tuple(map(_logprobs, response.prompt.tokens)))
        case "beam":
            return BestBeam(tuple(response.beam.token_ids), response.beam.text, response.beam.score)
        case "progress":
            progress = response.progress
            return PromptProgress(progress.computed_tokens, progress.total_tokens, progress.cached_tokens)
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
        stop_token_id=complete.stop_token_id if complete.HasField("stop_token_id") else None,
        message=_delta(complete.message) if complete.HasField("message") else None,
    )


def _usage(usage: generation_pb2.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens)


def _delta(delta: generation_pb2.MessageDelta) -> MessageDelta:
    calls = tuple(ToolCallDelta(call.index, call.id, call.name, call.arguments) for call in delta.tool_calls)
    return MessageDelta(delta.content, delta.reasoning, calls)


def _logprobs(token: generation_pb2.TokenLogprobs) -> TokenLogprobs:
    top = tuple(Alternative(each.token_id, each.logprob, each.text) for each in token.top)
    return TokenLogprobs(token.token_id, token.logprob if token.HasField("logprob") else None, top, token.text)
