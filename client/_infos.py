"""What a server reports about itself, its model and its tokens, as plain typed values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # as in _errors.py
    from fiddler.v1 import generation_pb2


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a text.

    Attributes:
        token_ids: The ids, in order.
        tokens: The text of each token by itself.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The served model. The fields are documented by GetModelInfoResponse in generation.proto."""

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
    has_chat_template: bool
    is_encoder_decoder: bool
    chat_templates: tuple[str, ...]
    has_response_parser: bool
    parses_reasoning: bool
    parses_tool_calls: bool
    has_tool_template: bool
    can_require_tool_calls: bool
    dense_format: str
    dense_memory_bytes: int


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits on one request. The fields are documented by RequestLimits in generation.proto."""

    max_tokens: int
    max_n: int
    max_beams: int
    max_stop_strings: int
    max_stop_bytes: int
    max_logprobs: int
    max_message_bytes: int
    max_constraint_bytes: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The server and its load. The fields are documented by GetServerInfoResponse in generation.proto."""

    version: str
    torch_version: str
    transformers_version: str
    device: str
    expert_kernel: str
    max_slots: int
    running_requests: int
    waiting_requests: int
    uptime_seconds: float
    degraded: bool
    max_waiting: int
    used_slots: int
    kv_bytes: int
    used_kv_bytes: int
    expert_version: str
    limits: RequestLimits


def model_info_from(response: generation_pb2.GetModelInfoResponse) -> ModelInfo:
    """Converts a response. The dtype gets its usual name, e.g. "bfloat16"."""
    from fiddler.v1 import tensor_pb2

    values = {field.name: getattr(response, field.name) for field in fields(ModelInfo)}
    try:
        values["dtype"] = tensor_pb2.Dtype.Name(response.dtype).removeprefix("DTYPE_").lower()
    except ValueError:  # a dtype newer than this client
        values["dtype"] = str(response.dtype)
    values["eos_token_ids"] = tuple(response.eos_token_ids)
    values["chat_templates"] = tuple(response.chat_templates)
    return ModelInfo(**values)


def server_info_from(response: generation_pb2.GetServerInfoResponse) -> ServerInfo:
    """Converts a response."""
    values = {field.name: getattr(response, field.name) for field in fields(ServerInfo)}
    values["limits"] = RequestLimits(
        **{field.name: getattr(response.limits, field.name) for field in fields(RequestLimits)}
    )
    return ServerInfo(**values)


def tokens_from(response: generation_pb2.TokenizeResponse) -> Tokens:
    """Converts a response."""
    return Tokens(tuple(response.token_ids), tuple(response.tokens))
