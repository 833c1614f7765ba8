"""From OpenAI's messages and tools to the GPU service's chat."""

import json
from collections.abc import Sequence

from fiddler.v1 import generation_pb2
from http_gateway.errors import invalid
from http_gateway.openai.chat_request import ChatRequest, ContentPart, Message, NamedTool
from http_gateway.openai.names import Names

_MODES = {
    "auto": generation_pb2.TOOL_CHOICE_MODE_AUTO,
    "none": generation_pb2.TOOL_CHOICE_MODE_NONE,
    "required": generation_pb2.TOOL_CHOICE_MODE_REQUIRED,
}


def fill_chat(chat: generation_pb2.Chat, body: ChatRequest, names: Names) -> None:
    """Fills a chat with everything that a chat template is given.

    Raises:
        ApiError: A value does not fit its field.
    """
    fill_messages(chat, body.messages, names)
    for position, tool in enumerate(body.tools or ()):
        added, path = chat.tools.add(), f"chat.tools[{position}]."
        names.put(added, "name", tool.function.name, path)
        names.put(added, "description", tool.function.description, path)
        if tool.function.parameters is not None:
            parameters = json.dumps(tool.function.parameters, ensure_ascii=False)
            names.put(added, "parameters", parameters, path)
        names.put(added, "strict", tool.function.strict, path)
    _choose_tools(chat, body, names)
    names.put(chat, "parallel_tool_calls", body.parallel_tool_calls, "chat.")
    arguments = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        arguments.setdefault("reasoning_effort", body.reasoning_effort)
    if arguments:
        names.put(chat, "template_arguments", json.dumps(arguments, ensure_ascii=False), "chat.")
    names.put(chat, "continue_final_message", body.continue_final_message, "chat.")


def fill_messages(chat: generation_pb2.Chat, messages: Sequence[Message], names: Names) -> None:
    """Fills a chat with messages.

    Raises:
        ApiError: A value does not fit its field.
    """
    chat.SetInParent()
    for position, message in enumerate(messages):
        added, path = chat.messages.add(), f"chat.messages[{position}]."
        names.put(added, "role", message.role, path)
        _fill_content(added, message.content, names, path)
        names.put(added, "name", message.name, path)
        names.put(added, "tool_call_id", message.tool_call_id, path)
        names.put(added, "reasoning", message.reasoning_content or message.reasoning, path)
        for number, call in enumerate(message.tool_calls or ()):
            call_path = f"{path}tool_calls[{number}]."
            added_call = added.tool_calls.add()
            names.put(added_call, "id", call.id or "", call_path)
            names.put(added_call, "name", call.function.name, call_path)
            names.put(added_call, "arguments", call.function.arguments, call_path)


def _fill_content(
    added: generation_pb2.ChatMessage, content: str | list[ContentPart] | None, names: Names, path: str
) -> None:
    if content is None or isinstance(content, str):
        names.put(added, "content", content, path)
        return
    is_one = len(content) == 1  # which every template takes as a text
    for number, part in enumerate(content):
        text = part.text if part.type == "text" else part.refusal
        if text is None:
            raise invalid(f"{names.param_of(path)}content[{number}].{part.type}", "must be given")
        if is_one:
            names.put(added, "content", text, path)
        else:
            names.put(added.parts.add(), "text", text, f"{path}parts[{number}].")


def _choose_tools(chat: generation_pb2.Chat, body: ChatRequest, names: Names) -> None:
    choice = body.tool_choice
    if choice is None:
        return
    if isinstance(choice, NamedTool):
        names.put(chat.tool_choice, "name", choice.function.name, "chat.tool_choice.")
        return
    if choice == "required" and not body.tools:
        raise invalid("tool_choice", "may be 'required' only with tools")
    if body.tools:
        chat.tool_choice.mode = _MODES[choice]
