"""What a server answers, as plain typed values."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
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
    """One of the request's stop tokens was made."""
    CANCELLED = 4
    """The caller cancelled."""
    DEADLINE = 5
    """The caller's deadline passed."""

    @classmethod
    def _missing_(cls, value: object) -> FinishReason:
        return cls.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens, as they are made.

    Attributes:
        index: Which of the request's generations they continue: 0 where there is one.
        token_ids: The ids, in order.
        text: Text that has become certain. It may be empty, and may lag the ids.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str


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
    """

    index: int
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that is served. What each field says is in GetModelInfoResponse of generation.proto."""

    name: str
    model_type: str
    checkpoint_fingerprint: str
    dtype: str
    vocab_size: int
    max_context_tokens: int
    eos_token_ids: tuple[int, ...]
    num_layers: int
    num_moe_layers: int
    num_experts: int
    num_experts_per_token: int
    dense_bytes: int
    expert_bytes: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The server and what it is doing. What each field says is in GetServerInfoResponse of generation.proto."""

    version: str
    torch_version: str
    transformers_version: str
    device: str
    expert_kernel: str
    max_slots: int
    running_requests: int
    waiting_requests: int
    uptime_seconds: float


def event_from(response: generation_pb2.GenerateResponse) -> Chunk | Complete | None:
    """The event that a response brings, None where it is of a kind that this client is too old to know."""
    match response.WhichOneof("event"):
        case "chunk":
            return Chunk(response.chunk.index, tuple(response.chunk.token_ids), response.chunk.text)
        case "complete":
            return complete_from(response.complete)
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
    )


def model_info_from(response: generation_pb2.GetModelInfoResponse) -> ModelInfo:
    """The model's description, with the dtype by its usual name, e.g. "bfloat16"."""
    from fiddler.v1 import tensor_pb2

    values = {field.name: getattr(response, field.name) for field in fields(ModelInfo)}
    try:
        values["dtype"] = tensor_pb2.Dtype.Name(response.dtype).removeprefix("DTYPE_").lower()
    except ValueError:  # this client is too old to know it
        values["dtype"] = str(response.dtype)
    values["eos_token_ids"] = tuple(response.eos_token_ids)
    return ModelInfo(**values)


def server_info_from(response: generation_pb2.GetServerInfoResponse) -> ServerInfo:
    """The server's description."""
    return ServerInfo(**{field.name: getattr(response, field.name) for field in fields(ServerInfo)})
