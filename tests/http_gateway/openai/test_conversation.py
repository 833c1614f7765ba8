"""Messages and tools as the GPU service takes them."""

import json
from typing import Any

import pytest

from fiddler.v1 import generation_pb2
from http_gateway.errors import ApiError
from http_gateway.openai.chat_request import ChatRequest
from http_gateway.openai.translation import chat_request
from tests.support.http_gateways import HELLO

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"z": {"type": "string"}, "a": {}}},
    },
}


def chat(**fields: Any) -> generation_pb2.Chat:
    return chat_request(ChatRequest.model_validate({"messages": HELLO, **fields})).request.chat


def test_a_conversation_with_a_call_and_its_result() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"z": "é"}'}}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": " brief"}]},
        {"role": "user", "content": [{"type": "text", "text": "Rain?"}], "name": "Ann"},
        {"role": "assistant", "content": None, "reasoning_content": "look", "tool_calls": [call]},
        {"role": "tool", "content": "no", "tool_call_id": "call_1"},
    ]
    system, user, assistant, tool = chat(messages=messages).messages
    assert ([part.text for part in system.parts], system.content) == (["Be", " brief"], "")
    assert not user.parts
    assert (user.content, user.name) == ("Rain?", "Ann")
    assert (assistant.content, assistant.reasoning) == ("", "look")
    (called,) = assistant.tool_calls
    assert (called.id, called.name, called.arguments) == ("call_1", "weather", '{"z": "é"}')
    assert (tool.role, tool.content, tool.tool_call_id) == ("tool", "no", "call_1")


def test_tools_keep_the_order_of_their_keys() -> None:
    (tool,) = chat(tools=[TOOL]).tools
    assert (tool.name, tool.description) == ("weather", "The weather of a place")
    assert list(json.loads(tool.parameters)["properties"]) == ["z", "a"]
    (bare,) = chat(tools=[{"type": "function", "function": {"name": "f"}}]).tools
    assert not bare.HasField("parameters")
    assert not bare.HasField("description")


@pytest.mark.parametrize(
    ("choice", "mode"),
    [
        ("auto", generation_pb2.TOOL_CHOICE_MODE_AUTO),
        ("none", generation_pb2.TOOL_CHOICE_MODE_NONE),
        ("required", generation_pb2.TOOL_CHOICE_MODE_REQUIRED),
    ],
)
def test_the_choice_of_tools(choice: str, mode: Any) -> None:
    assert chat(tools=[TOOL], tool_choice=choice).tool_choice.mode == mode


def test_a_named_tool_and_no_tools() -> None:
    named = chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "weather"}})
    assert named.tool_choice.name == "weather"
    assert not chat(tool_choice="auto").HasField("tool_choice")
    assert not chat().HasField("parallel_tool_calls")
    assert chat(tools=[TOOL], parallel_tool_calls=False).HasField("parallel_tool_calls")
    strict = {"type": "function", "function": {"name": "weather", "strict": True}}
    assert [tool.strict for tool in chat(tools=[TOOL, strict]).tools] == [False, True]
    with pytest.raises(ApiError, match="tool_choice"):
        chat(tool_choice="required")


def test_arguments_of_the_template() -> None:
    arguments = chat(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low").template_arguments
    assert json.loads(arguments) == {"enable_thinking": False, "reasoning_effort": "low"}
    assert not chat().HasField("template_arguments")
    assert chat(continue_final_message=True).continue_final_message
