"""What a chat template is given of a chat, and what is refused by its field."""

from typing import Any

import pytest

from fiddler.v1.generation_pb2 import (
    TOOL_CHOICE_MODE_AUTO,
    TOOL_CHOICE_MODE_NONE,
    TOOL_CHOICE_MODE_REQUIRED,
    Chat,
    ChatMessage,
    ContentPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from gpu_service.api.requests.chats import demanded, render, texts_of
from gpu_service.errors import RequestError
from gpu_service.text.chat_template import ChatTemplates


class _Tokenizer:
    """Renders with one Jinja template."""

    def __init__(self, source: str, has_tool_template: bool = True) -> None:
        self._templates = ChatTemplates({"default": source}, {})
        self.has_tool_template = has_tool_template

    def render(self, messages: Any, *, template: str | None = None, tools: Any = None, **arguments: Any) -> str:
        return self._templates.choose(template, has_tools=tools is not None).render(messages, tools=tools, **arguments)


_SOURCE = (
    "{% if tools %}[{% for tool in tools %}{{ tool | tojson }}{% endfor %}]{% endif %}"
    "{% for m in messages %}{{ m.role }}{% if m.name %}({{ m.name }}){% endif %}"
    "{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}:"
    "{% if m.reasoning_content %}<{{ m.reasoning_content }}>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}!{{ call.id }} {{ call.function.name }} {{ call.function.arguments | tojson }}"
    "{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% if enable_thinking is defined and not enable_thinking %}no{% endif %}"
    "{% endif %}"
)
_USER = ChatMessage(role="user", content="How is it?")


def _rendered(*messages: ChatMessage, source: str = _SOURCE, has_tool_template: bool = True, **fields: Any) -> str:
    tokenizer: Any = _Tokenizer(source, has_tool_template)
    return render(Chat(messages=messages, **fields), tokenizer)


def test_calls_results_reasoning_and_names_reach_the_template() -> None:
    call = ToolCall(id="1", name="look", arguments='{"b": 1, "a": "x"}')
    text = _rendered(
        ChatMessage(role="user", content="Look", name="Ann"),
        ChatMessage(role="assistant", reasoning="Hm.", tool_calls=[call]),
        ChatMessage(role="tool", content="There", tool_call_id="1", name="look"),
    )
    assert text == ('user(Ann):Look;assistant:<Hm.>!1 look {"b": 1, "a": "x"};tool(look)#1:There;assistant:')


def test_parts_are_one_text_for_a_template_that_takes_none() -> None:
    message = ChatMessage(role="user", parts=[ContentPart(text="How "), ContentPart(text="is it?")])
    assert _rendered(message) == "user:How is it?;assistant:"


def test_tools_keep_the_order_of_their_keys() -> None:
    tool = Tool(name="look", description="Looks.", parameters='{"type": "object", "properties": {"z": {}, "a": {}}}')
    assert _rendered(_USER, tools=[tool]).startswith(
        '[{"type": "function", "function": {"name": "look", "description": "Looks.", '
        '"parameters": {"type": "object", "properties": {"z": {}, "a": {}}}}}]user:'
    )
    none = ToolChoice(mode=TOOL_CHOICE_MODE_NONE)
    assert _rendered(_USER, tools=[tool], tool_choice=none) == _rendered(_USER)
    auto = ToolChoice(mode=TOOL_CHOICE_MODE_AUTO)
    assert _rendered(_USER, tools=[tool], tool_choice=auto) == _rendered(_USER, tools=[tool])


def test_what_is_demanded_is_named_by_its_position() -> None:
    tools = [Tool(name="look"), Tool(name="go")]
    assert demanded(Chat(tools=tools)) == []
    assert demanded(Chat(tools=tools, tool_choice=ToolChoice(mode=TOOL_CHOICE_MODE_NONE))) == []
    assert demanded(Chat(tools=tools, tool_choice=ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED))) == [0, 1]
    assert demanded(Chat(tools=tools, tool_choice=ToolChoice(name="go"))) == [1]
    for choice in (ToolChoice(name="a"), ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED)):
        with pytest.raises(RequestError) as raised:
            demanded(Chat(tool_choice=choice))
        assert raised.value.field == "chat.tool_choice"


def test_template_arguments_reach_the_template() -> None:
    assert _rendered(_USER, template_arguments='{"enable_thinking": false}').endswith("assistant:no")


def test_the_last_message_may_be_continued() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    begun = ChatMessage(role="assistant", content="It rai")
    assert _rendered(_USER, begun, source=source, continue_final_message=True) == "user:How is it?;assistant:It rai"


@pytest.mark.parametrize(
    ("messages", "fields", "field"),
    [
        ([ChatMessage(content="a")], {}, "chat.messages[0].role"),
        ([ChatMessage(role="user", content="a", parts=[ContentPart(text="b")])], {}, "chat.messages[0].parts"),
        ([ChatMessage(role="user", parts=[ContentPart()])], {}, "chat.messages[0].parts[0]"),
        (
            [_USER, ChatMessage(role="assistant", tool_calls=[ToolCall(id="1")])],
            {},
            "chat.messages[1].tool_calls[0].name",
        ),
        (
            [ChatMessage(role="assistant", tool_calls=[ToolCall(name="a", arguments="[1]")])],
            {},
            "chat.messages[0].tool_calls[0].arguments",
        ),
        ([_USER], {"tools": [Tool(name="a b")]}, "chat.tools[0].name"),
        ([_USER], {"tools": [Tool(name="a", parameters="{")]}, "chat.tools[0].parameters"),
        ([_USER], {"template_arguments": "5"}, "chat.template_arguments"),
        ([_USER], {"template_arguments": '{"tools": []}'}, "chat.template_arguments"),
        ([_USER], {"continue_final_message": True}, "chat.continue_final_message"),
        ([_USER], {"tool_choice": ToolChoice()}, "chat.tool_choice"),
        ([_USER], {"tools": [Tool(name="a")], "has_tool_template": False}, "chat.tools"),
    ],
)
def test_what_is_wrong_is_named(messages: list[ChatMessage], fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as raised:
        _rendered(*messages, **fields)
    assert raised.value.field == field


def test_the_bound_on_a_chats_length_counts_everything_in_it() -> None:
    chat = Chat(
        messages=[
            ChatMessage(
                role="r",
                content="c",
                reasoning="e",
                name="n",
                tool_call_id="i",
                parts=[ContentPart(text="p")],
                tool_calls=[ToolCall(name="f", arguments="a")],
            )
        ],
        tools=[Tool(name="t", description="d", parameters="s")],
    )
    assert sorted("".join(texts_of(chat))) == sorted("rcenipfatds")
