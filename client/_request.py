"""Builds protobuf requests from plain arguments.

Only values that do not fit their protobuf field are refused here, by the field's path. The server judges all others.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from client._options import ChatMessage, GenerateOptions, options_of
from client._statuses import invalid
from fiddler.v1 import generation_pb2

CALL_OPTIONS = {"timeout"}
"""The generation options that gRPC takes; all others are fields of the request."""

_BEAM_STOPS = {
    False: generation_pb2.BEAM_STOP_HEURISTIC,
    True: generation_pb2.BEAM_STOP_EARLY,
    "never": generation_pb2.BEAM_STOP_NEVER,
}
_EXPECTED = {
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_DOUBLE: "a number",
    FieldDescriptor.TYPE_FLOAT: "a number",
    FieldDescriptor.TYPE_BOOL: "true or false",
    FieldDescriptor.TYPE_INT32: f"an integer from {-(2**31)} to {2**31 - 1}",
    FieldDescriptor.TYPE_UINT32: f"an integer from 0 to {2**32 - 1}",
    FieldDescriptor.TYPE_UINT64: f"an integer from 0 to {2**64 - 1}",
}


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _paths(descriptor: Any, prefix: str = "") -> Iterator[str]:
    """The paths of all values in a message except its prompt: those of the message itself, then of inner ones."""
    inner_messages = []
    for field in descriptor.fields:
        if field.containing_oneof is not None and field.containing_oneof.name == "prompt":
            continue
        if field.message_type is None or _is_map(field):
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
    """Builds a request to answer messages. The options and errors are those of generate_request."""
    request = generation_pb2.GenerateRequest()
    set_chat(request.chat, messages)
    _set_options(request, options)
    return request


def num_generations(request: generation_pb2.GenerateRequest) -> int:
    """How many generations the server returns for a request."""
    if request.HasField("beam_search"):
        return max(request.beam_search.num_return_sequences, 1)
    return max(request.n, 1)


def set_chat(chat: generation_pb2.Chat, messages: Sequence[ChatMessage]) -> None:
    """Fills a chat with messages.

    Raises:
        InvalidRequestError: They are not a list of dicts of "role" and "content", both text.
    """
    chat.SetInParent()
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise invalid("chat.messages", f"must be a list of messages, got {reprlib.repr(messages)}")
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.keys() != {"role", "content"}:
            problem = f'must be a dict of "role" and "content", got {reprlib.repr(message)}'
            raise invalid(f"chat.messages[{position}]", problem)
        added = chat.messages.add()
        for name in ("role", "content"):
            set_field(added, name, message[name], reported_as=f"chat.messages[{position}].{name}")


def set_field(message: Message, path: str, value: object, *, reported_as: str | None = None) -> None:
    """Sets the field at a path within a message.

    Raises:
        InvalidRequestError: The value does not fit the field. The error names reported_as, or else the path.
    """
    *parents, name = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
    field = message.DESCRIPTOR.fields_by_name[name]
    try:
        _setter(message, field)(value)
    except (TypeError, ValueError, AttributeError) as error:
        problem = f"must be {_expected(field)}, got {reprlib.repr(value)}"
        raise invalid(reported_as or path, problem) from error


def _set_options(request: generation_pb2.GenerateRequest, options: Mapping[str, object]) -> None:
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
    return value


def _setter(message: Message, field: Any) -> Callable[[Any], object]:
    if _is_map(field):
        return lambda values: getattr(message, field.name).update(dict(values.items()))
    if field.is_repeated:
        return lambda values: getattr(message, field.name).extend(values)
    return lambda value: setattr(message, field.name, value)


def _expected(field: Any) -> str:
    if _is_map(field):
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return f"a dict, each key {_EXPECTED[key.type]}, each value {_EXPECTED[value.type]}"
    many = "a list, each item " if field.is_repeated else ""
    return many + _EXPECTED.get(field.type, f"a value for {field.name}")
