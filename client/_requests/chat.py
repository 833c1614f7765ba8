"""Fills the chat of a request from plain messages, tools and options. OpenAI's forms of them are taken as well."""

import reprlib
from collections.abc import Mapping, Sequence

from client._options import ChatMessage
from client._requests.fields import json_text, set_field
from client._statuses import invalid
from fiddler.v1 import generation_pb2

CHAT_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls", "template_arguments", "continue_final_message")
"""The options of ChatOptions that GenerateOptions lacks. They are fields of the chat."""

_MESSAGE_KEYS = {"role", "content", "reasoning", "tool_calls", "tool_call_id", "name"}
_MODES = {
    "auto": generation_pb2.TOOL_CHOICE_MODE_AUTO,
    "none": generation_pb2.TOOL_CHOICE_MODE_NONE,
    "required": generation_pb2.TOOL_CHOICE_MODE_REQUIRED,
}


def set_chat(
    chat: generation_pb2.Chat, messages: Sequence[ChatMessage], options: Mapping[str, object] | None = None
) -> None:
    """Fills a chat with messages.

    Args:
        chat: The chat, empty so far.
        messages: See ChatMessage.
        options: Those of CHAT_OPTIONS. One that is None stays unset.

    Raises:
        InvalidRequestError: A value does not fit its field.
    """
    chat.SetInParent()
    for position, message in enumerate(_list("chat.messages", messages, "messages")):
        _set_message(chat.messages.add(), message, f"chat.messages[{position}]")
    given = {name: value for name, value in (options or {}).items() if value is not None}
    for position, tool in enumerate(_list("chat.tools", given.get("tools", []), "tools")):
        _set_tool(chat.tools.add(), tool, f"chat.tools[{position}]")
    if "tool_choice" in given:
        _set_tool_choice(chat.tool_choice, given["tool_choice"])
    if (arguments := given.get("template_arguments")) is not None:
        _set_json(chat, "template_arguments", arguments, "chat.template_arguments")
    for name in ("parallel_tool_calls", "continue_final_message"):
        if name in given:
            set_field(chat, name, given[name], reported_as=f"chat.{name}")


def _set_message(message: generation_pb2.ChatMessage, value: object, path: str) -> None:
    if not isinstance(value, Mapping) or "role" not in value:
        problem = f'must be a dict with a "role", and usually "content", got {reprlib.repr(value)}'
        raise invalid(path, problem)
    if unknown := value.keys() - _MESSAGE_KEYS:
        raise invalid(path, f"has no field {min(map(str, unknown))!r}; it may have {', '.join(sorted(_MESSAGE_KEYS))}")
    set_field(message, "role", value["role"], reported_as=f"{path}.role")
    content = value.get("content")
    if isinstance(content, str):
        message.content = content
    elif content is not None:
        for position, part in enumerate(_list(f"{path}.content", content, "parts")):
            text = _text_of_part(part, f"{path}.content[{position}]")
            set_field(message.parts.add(), "text", text, reported_as=f"{path}.content[{position}]")
    for name in ("reasoning", "tool_call_id", "name"):
        if value.get(name) is not None:
            set_field(message, name, value[name], reported_as=f"{path}.{name}")
    for position, call in enumerate(_list(f"{path}.tool_calls", value.get("tool_calls") or [], "calls")):
        _set_tool_call(message.tool_calls.add(), call, f"{path}.tool_calls[{position}]")


def _text_of_part(part: object, path: str) -> object:
    if isinstance(part, Mapping):
        if part.get("type", "text") != "text" or "text" not in part:
            raise invalid(path, f'must be text or {{"type": "text", "text": ...}}, got {reprlib.repr(part)}')
        return part["text"]
    return part


def _set_tool_call(call: generation_pb2.ToolCall, value: object, path: str) -> None:
    function = _function(value, path)
    set_field(call, "name", function.get("name"), reported_as=f"{path}.name")
    if isinstance(value, Mapping) and value.get("id") is not None:
        set_field(call, "id", value["id"], reported_as=f"{path}.id")
    _set_json(call, "arguments", function.get("arguments", {}), f"{path}.arguments")


def _set_tool(tool: generation_pb2.Tool, value: object, path: str) -> None:
    function = _function(value, path)
    set_field(tool, "name", function.get("name"), reported_as=f"{path}.name")
    if function.get("description") is not None:
        set_field(tool, "description", function["description"], reported_as=f"{path}.description")
    if function.get("parameters") is not None:
        _set_json(tool, "parameters", function["parameters"], f"{path}.parameters")
    if function.get("strict") is not None:
        set_field(tool, "strict", function["strict"], reported_as=f"{path}.strict")


def _set_tool_choice(choice: generation_pb2.ToolChoice, value: object) -> None:
    path = "chat.tool_choice"
    if isinstance(value, str) and value in _MODES:
        choice.mode = _MODES[value]
    elif isinstance(value, Mapping):
        set_field(choice, "name", _function(value, path).get("name"), reported_as=path)
    else:
        problem = f'must be {", ".join(map(repr, _MODES))} or {{"name": ...}}, got {reprlib.repr(value)}'
        raise invalid(path, problem)


def _function(value: object, path: str) -> Mapping[str, object]:
    """The dict with the function's name: the value itself, or within it in OpenAI's form."""
    function = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(function, Mapping):
        raise invalid(path, f'must be a dict with a "name", got {reprlib.repr(value)}')
    return function


def _set_json(
    message: generation_pb2.Chat | generation_pb2.Tool | generation_pb2.ToolCall, name: str, value: object, path: str
) -> None:
    set_field(message, name, value if isinstance(value, str) else json_text(value, path), reported_as=path)


def _list(path: str, value: object, what: str) -> Sequence[object]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise invalid(path, f"must be a list of {what}, got {reprlib.repr(value)}")
    return value
