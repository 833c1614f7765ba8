"""Turns a chat into what a chat template takes. An error names the field."""

import json
import re
import reprlib
from collections.abc import Iterator
from typing import Any

from fiddler.v1 import generation_pb2
from gpu_service.errors import QueueFullError, RequestError
from gpu_service.text.chat_template import ChatTemplateError, LostMessageError, UnknownTemplateError
from gpu_service.text.template_pool import PoolBusyError
from gpu_service.text.tokenizer import Tokenizer

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_MODES = (
    generation_pb2.TOOL_CHOICE_MODE_AUTO,
    generation_pb2.TOOL_CHOICE_MODE_NONE,
    generation_pb2.TOOL_CHOICE_MODE_REQUIRED,
)
_OWN_ARGUMENTS = ("add_generation_prompt", "continue_final_message", "tools", "messages")


def render(chat: generation_pb2.Chat, tokenizer: Tokenizer) -> str:
    """The prompt of a chat, with the beginning of an answer, or with the end of its last message left open.

    Raises:
        RequestError: A field is wrong.
        QueueFullError: Too many chats are being rendered.
    """
    messages = [_message(message, f"chat.messages[{position}]") for position, message in enumerate(chat.messages)]
    arguments = template_arguments(chat)
    if chat.continue_final_message:
        if chat.messages[-1].role != "assistant":
            raise RequestError("chat.continue_final_message", "the last message must be the assistant's")
        arguments |= {"continue_final_message": True, "add_generation_prompt": False}
    template = chat.template if chat.HasField("template") else None
    try:
        return tokenizer.render(messages, template=template, tools=tools_of(chat, tokenizer), **arguments)
    except UnknownTemplateError as error:
        raise RequestError("chat.template", str(error)) from None
    except LostMessageError as error:
        raise RequestError(f"chat.messages[{error.position}].content", str(error)) from None
    except PoolBusyError as error:
        raise QueueFullError(str(error)) from None
    except ChatTemplateError as error:
        raise RequestError("chat.messages", f"the model's chat template refuses them: {error}") from None


def tools_of(chat: generation_pb2.Chat, tokenizer: Tokenizer) -> list[dict[str, Any]] | None:
    """The tools as templates take them; None if the model is to know none.

    Raises:
        RequestError: A field is wrong.
    """
    tools = [_tool(tool, f"chat.tools[{position}]") for position, tool in enumerate(chat.tools)]
    mode = _mode_of(chat)
    if not tools or mode == generation_pb2.TOOL_CHOICE_MODE_NONE:
        return None
    if not tokenizer.has_tool_template:
        raise RequestError("chat.tools", "the model's chat template does not write tools")
    return tools


def demanded(chat: generation_pb2.Chat) -> list[int]:
    """The positions of the tools of which the answer must call one; empty if it need not call any.

    Raises:
        RequestError: A field is wrong.
    """
    if _mode_of(chat) == generation_pb2.TOOL_CHOICE_MODE_REQUIRED:
        if not chat.tools:
            raise RequestError("chat.tool_choice", "a call can be demanded only with chat.tools")
        return list(range(len(chat.tools)))
    if chat.tool_choice.WhichOneof("choice") != "name":
        return []
    name = chat.tool_choice.name
    found = [position for position, tool in enumerate(chat.tools) if tool.name == name]
    if not found:
        raise RequestError("chat.tool_choice", f"no tool of chat.tools is named {reprlib.repr(name)}")
    return found[:1]


def _mode_of(chat: generation_pb2.Chat) -> generation_pb2.ToolChoiceMode.ValueType:
    """Whether calls are possible, and demanded. A function's name counts as AUTO: `demanded` knows it.

    Raises:
        RequestError: The field is wrong.
    """
    if not chat.HasField("tool_choice") or chat.tool_choice.WhichOneof("choice") == "name":
        return generation_pb2.TOOL_CHOICE_MODE_AUTO
    mode = chat.tool_choice.mode
    if chat.tool_choice.WhichOneof("choice") is None or mode not in _MODES:
        raise RequestError("chat.tool_choice", "must be TOOL_CHOICE_MODE_AUTO, _NONE, _REQUIRED or a name")
    return mode


def is_parallel(chat: generation_pb2.Chat) -> bool:
    """Whether an answer may have several calls."""
    return chat.parallel_tool_calls or not chat.HasField("parallel_tool_calls")


def template_arguments(chat: generation_pb2.Chat) -> dict[str, Any]:
    """The further arguments of the template.

    Raises:
        RequestError: They are not a JSON object, or would replace what is set otherwise.
    """
    if not chat.HasField("template_arguments"):
        return {}
    arguments = _json_object(chat.template_arguments, "chat.template_arguments")
    for name in _OWN_ARGUMENTS:
        if name in arguments:
            raise RequestError("chat.template_arguments", f"{name} may not be among them")
    return arguments


def texts_of(chat: generation_pb2.Chat) -> Iterator[str]:
    """All texts that may come to be in the prompt."""
    for message in chat.messages:
        yield from (message.role, message.content, message.reasoning, message.name, message.tool_call_id)
        yield from (part.text for part in message.parts)
        for call in message.tool_calls:
            yield from (call.name, call.arguments)
    for tool in chat.tools:
        yield from (tool.name, tool.description, tool.parameters)


def _message(message: generation_pb2.ChatMessage, path: str) -> dict[str, Any]:
    if not message.role:
        raise RequestError(f"{path}.role", "must not be empty")
    content: Any = message.content
    if message.parts:
        if message.content:
            raise RequestError(f"{path}.parts", "must be empty if there is content")
        for position, part in enumerate(message.parts):
            if part.WhichOneof("part") is None:
                raise RequestError(f"{path}.parts[{position}]", "must be set: text")
        content = [{"type": "text", "text": part.text} for part in message.parts]
    found: dict[str, Any] = {"role": message.role, "content": content}
    if message.HasField("reasoning"):
        found["reasoning_content"] = message.reasoning
    if message.tool_calls:
        found["tool_calls"] = [
            _tool_call(call, f"{path}.tool_calls[{position}]") for position, call in enumerate(message.tool_calls)
        ]
    for name in ("tool_call_id", "name"):
        if message.HasField(name):
            found[name] = getattr(message, name)
    return found


def _tool_call(call: generation_pb2.ToolCall, path: str) -> dict[str, Any]:
    if not call.name:
        raise RequestError(f"{path}.name", "must not be empty")
    # templates write the arguments themselves, so that they are given as an object
    arguments = _json_object(call.arguments, f"{path}.arguments") if call.arguments else {}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool(tool: generation_pb2.Tool, path: str) -> dict[str, Any]:
    if not _NAME.fullmatch(tool.name):
        raise RequestError(f"{path}.name", "must be 1 to 128 letters, digits and any of _.:-")
    function: dict[str, Any] = {"name": tool.name}
    if tool.HasField("description"):
        function["description"] = tool.description
    if tool.HasField("parameters"):
        function["parameters"] = _json_object(tool.parameters, f"{path}.parameters")
    return {"type": "function", "function": function}


def _json_object(text: str, path: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(path, f"must be the text of a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(path, "must be the text of a JSON object")
    return value
