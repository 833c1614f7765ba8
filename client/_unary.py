"""The calls with one request and one response, as both clients make them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from client._infos import ModelInfo, ServerInfo, Tokens, model_info_from, server_info_from, tokens_from
from client._options import ChatMessage
from client._requests.chat import set_chat
from client._requests.fields import set_field
from client._statuses import invalid
from fiddler.v1 import generation_pb2

_Result = TypeVar("_Result", covariant=True)


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[_Result]):
    """One call.

    Attributes:
        method: The method of GenerationService.
        request: The request.
        result: What the client returns for a response.
    """

    method: str
    request: Message
    result: Callable[[Any], _Result]


def abort(request_id: str) -> UnaryCall[bool]:
    """Ends a generation.

    Raises:
        InvalidRequestError: The request id is not text.
    """
    request = generation_pb2.AbortRequest()
    set_field(request, "request_id", request_id)
    return UnaryCall("Abort", request, lambda response: bool(response.aborted))


def abort_all(request_ids: Sequence[str]) -> UnaryCall[tuple[str, ...]]:
    """Ends several generations.

    Raises:
        InvalidRequestError: They are not a list of texts.
    """
    request = generation_pb2.AbortRequest()
    set_field(request, "request_ids", [request_ids] if isinstance(request_ids, str) else request_ids)
    return UnaryCall("Abort", request, lambda response: tuple(response.aborted_ids))


def tokenize(
    prompt: str | Sequence[ChatMessage],
    *,
    add_special_tokens: bool | None,
    chat_template: str | None,
    tools: Sequence[Mapping[str, object]] | None = None,
) -> UnaryCall[Tokens]:
    """Turns a text, or messages and tools, into tokens.

    Raises:
        InvalidRequestError: A value does not fit its field.
    """
    request = generation_pb2.TokenizeRequest()
    if isinstance(prompt, str):
        set_field(request, "text", prompt)
        if chat_template is not None:
            raise invalid("chat.template", "must be unset without a chat")
    else:
        set_chat(request.chat, prompt, {"tools": tools})
        if chat_template is not None:
            set_field(request, "chat.template", chat_template)
    if add_special_tokens is not None:
        set_field(request, "add_special_tokens", add_special_tokens)
    return UnaryCall("Tokenize", request, tokens_from)


def detokenize(token_ids: Sequence[int], *, skip_special_tokens: bool | None) -> UnaryCall[str]:
    """Turns token ids into text.

    Raises:
        InvalidRequestError: A value does not fit its field.
    """
    request = generation_pb2.DetokenizeRequest()
    set_field(request, "token_ids", token_ids)
    if skip_special_tokens is not None:
        set_field(request, "skip_special_tokens", skip_special_tokens)
    return UnaryCall("Detokenize", request, lambda response: str(response.text))


def model_info() -> UnaryCall[ModelInfo]:
    """Asks about the model that is served."""
    return UnaryCall("GetModelInfo", generation_pb2.GetModelInfoRequest(), model_info_from)


def server_info() -> UnaryCall[ServerInfo]:
    """Asks about the server and its load."""
    return UnaryCall("GetServerInfo", generation_pb2.GetServerInfoRequest(), server_info_from)
