"""What all answers share: their ids, numbers of tokens, reasons of their end, and log probabilities."""

import time
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from fiddler.v1 import generation_pb2
from http_gateway.errors import ApiError

_LEAST_LOGPROB = -9999.0
_FINISH_REASONS = {
    generation_pb2.FINISH_REASON_EOS: "stop",
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


@dataclass(slots=True)
class Head:
    """What begins every object of one answer.

    Attributes:
        id: The answer's id.
        object: What the object is, e.g. "chat.completion".
        model: The model's name.
        created: When the answer began, in seconds since the epoch.
    """

    id: str
    object: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def of(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """One object of the answer."""
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }


class UsageSum:
    """The numbers of tokens of an answer, which may have several generations and prompts."""

    def __init__(self) -> None:
        self._prompt: dict[int, tuple[int, int]] = {}
        self._completion: dict[int, int] = {}

    def set(self, usage: generation_pb2.Usage, *, prompt: int, choice: int) -> None:
        """Notes the numbers of one choice so far."""
        self._prompt[prompt] = usage.prompt_tokens, usage.cached_prompt_tokens
        self._completion[choice] = usage.completion_tokens

    def content(self) -> dict[str, Any]:
        """OpenAI's object. The tokens of a prompt count once, however many generations continue it."""
        prompt_tokens = sum(tokens for tokens, _ in self._prompt.values())
        completion_tokens = sum(self._completion.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(cached for _, cached in self._prompt.values())},
        }


def finish_reason(complete: generation_pb2.Complete) -> str:
    """OpenAI's name of why a generation ended.

    Raises:
        ApiError: It was ended from outside, so that there is no whole answer.
    """
    reason = complete.finish_reason
    if reason == generation_pb2.FINISH_REASON_CANCELLED:
        raise ApiError(409, "the request was aborted by another call", code="aborted")
    if reason == generation_pb2.FINISH_REASON_DEADLINE:
        raise ApiError(504, "the request took longer than it may (--request-timeout-seconds)")
    return _FINISH_REASONS.get(reason, "stop")


def stop_reason(complete: generation_pb2.Complete) -> str | int | None:
    """Which stop text, or which stop token, ended a generation; None for the model's own end."""
    if complete.HasField("stop"):
        return complete.stop
    if complete.finish_reason == generation_pb2.FINISH_REASON_STOP and complete.HasField("stop_token_id"):
        return complete.stop_token_id
    return None


def token_name(token: "generation_pb2.TokenLogprobs | generation_pb2.Alternative", *, as_ids: bool) -> str:
    """The token's text, or "token_id:123"."""
    return f"token_id:{token.token_id}" if as_ids else token.text


def finite(logprob: float) -> float:
    """A log probability that JSON can hold: OpenAI's server has -9999 for what is impossible."""
    return max(logprob, _LEAST_LOGPROB)


def progress_of(progress: generation_pb2.PromptProgress) -> dict[str, int]:
    """How much of a prompt is computed."""
    return {
        "computed_tokens": progress.computed_tokens,
        "total_tokens": progress.total_tokens,
        "cached_tokens": progress.cached_tokens,
    }


def event(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: %b\n\n" % to_json(content)


DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""
