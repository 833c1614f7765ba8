"""Builds protobuf requests from plain arguments.

Only values that do not fit their protobuf field are refused here, by the field's path. The server judges all others.
"""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from client._options import ChatMessage, GenerateOptions, options_of
from client._requests.chat import CHAT_OPTIONS, set_chat
from client._requests.fields import is_map, json_text, set_field
from client._statuses import invalid
from fiddler.v1 import generation_pb2

CALL_OPTIONS = {"timeout"}
"""The generation options that gRPC takes; all others are fields of the request."""

_BEAM_STOPS = {
    False: generation_pb2.BEAM_STOP_HEURISTIC,
    True: generation_pb2.BEAM_STOP_EARLY,
    "never": generation_pb2.BEAM_STOP_NEVER,
}


def _paths(descriptor: Any, prefix: str = "") -> Iterator[str]:
    """The paths of all values in a message except its prompt: those of the message itself, then of inner ones."""
    inner_messages = []
    for field in descriptor.fields:
        if field.containing_oneof is not None and field.containing_oneof.name == "prompt":
            continue
        if field.message_type is None or is_map(field):
            yield prefix + field.name
        else:
            inner_messages.append(field)
    for field in inner_messages:
        yield from _paths(field.message_type, f"{prefix}{field.name}.")


def _fields_by_option() -> dict[str, str]:
    path_by_name: dict[str, str] = {}
    for path in _paths(generation_pb2.GenerateRequest.DESCRIPTOR):
        path_by_name.setdefault(path.rpartition(".")[2], path)
    options = options_of(GenerateOptions).items()
    return {name: option.field or path_by_name[name] for name, (_, option) in options if name not in CALL_OPTIONS}


_CONSTRAINTS = [field.name for field in generation_pb2.GenerateRequest.DESCRIPTOR.oneofs_by_name["constraint"].fields]
FIELDS = _fields_by_option()
"""The path of the request's field that each option sets: the field of its name, unless the option states another."""


def generate_request(prompt: str | Sequence[int], options: Mapping[str, object]) -> generation_pb2.GenerateRequest:
    """Builds a request to continue a prompt.

    Args:
        prompt: Text or token ids.
        options: Those of GenerateOptions. An option that is None stays unset, so that the server's default applies.

    Raises:
        InvalidRequestError: A value does not fit its field.
        TypeError: An option is unknown.
    """
    request = generation_pb2.GenerateRequest()
    for name, path in FIELDS.items():
        if path.startswith("chat.") and options.get(name) is not None:
            raise invalid(path, "must be unset without a chat")
    if isinstance(prompt, bytes | bytearray):  # would pass as a sequence of integers
        raise invalid("prompt", "must be text or a sequence of token ids, got bytes")
    if isinstance(prompt, str):
        set_field(request, "text", prompt)
    else:
        request.token_ids.SetInParent()  # sends an empty list too, for the server to refuse
        set_field(request, "token_ids.ids", prompt)
    _set_options(request, options)
    return request


def chat_request(messages: Sequence[ChatMessage], options: Mapping[str, object]) -> generation_pb2.GenerateRequest:
    """Builds a request to answer messages. The options are those of ChatOptions; the errors as of generate_request."""
    request = generation_pb2.GenerateRequest()
    set_chat(request.chat, messages, {name: options.get(name) for name in CHAT_OPTIONS})
    _set_options(request, {name: value for name, value in options.items() if name not in CHAT_OPTIONS})
    return request


def num_generations(request: generation_pb2.GenerateRequest) -> int:
    """How many generations the server returns for a request."""
    if request.HasField("beam_search"):
        return max(request.beam_search.num_return_sequences, 1)
    return max(request.n, 1)


def _set_options(request: generation_pb2.GenerateRequest, options: Mapping[str, object]) -> None:
    constraints = [name for name in _CONSTRAINTS if options.get(name) is not None]
    if len(constraints) > 1:
        raise invalid(FIELDS[constraints[1]], f"must be unset with {constraints[0]}: a request has one constraint")
    for name, value in options.items():
        if name in CALL_OPTIONS:
            continue
        if name not in FIELDS:
            raise TypeError(f"{name!r} is not an option of a generation; GenerateOptions lists them")
        if value is not None:
            set_field(request, FIELDS[name], _protobuf_value(name, value))


def _protobuf_value(name: str, value: object) -> object:
    """The value of an option as its field takes it."""
    if name == "stop" and isinstance(value, str):
        return [value]
    if name == "early_stopping":
        # The type is checked too, since 1 == True would be found.
        if not isinstance(value, bool | str) or value not in _BEAM_STOPS:
            raise invalid(FIELDS[name], f"must be False, True or 'never', got {reprlib.repr(value)}")
        return _BEAM_STOPS[value]
    if name == "json_schema" and not isinstance(value, str):
        return json_text(value, FIELDS[name])
    if name == "choice" and isinstance(value, str):  # would pass as a sequence of characters
        raise invalid(FIELDS[name], f"must be a list, each item text, got {reprlib.repr(value)}")
    return value
