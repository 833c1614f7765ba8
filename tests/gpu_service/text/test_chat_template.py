"""What templates are given, which of them work, and what they may not leave out."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gpu_service.text.chat_template import (
    ChatTemplate,
    ChatTemplateError,
    ChatTemplates,
    LostMessageError,
    Message,
    UnknownTemplateError,
    render_in_pool,
)

_FOR_EACH = "{% for message in messages %}[{{ message.role }}]"
_END = "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
_PARTS = "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
TEXT = f"{_FOR_EACH}{{{{ message.content }}}}{_END}"
PARTS = f"{_FOR_EACH}{_PARTS}{_END}"
EITHER = (
    f"{_FOR_EACH}{{% if message.content is string %}}{{{{ message.content }}}}{{% else %}}{_PARTS}{{% endif %}}{_END}"
)
SYSTEM_PARTS = (
    f"{_FOR_EACH}{{% if message.role == 'system' %}}{{{{ message.content[0].text + '' }}}}"
    f"{{% else %}}{{{{ message.content | trim | upper }}}}{{% endif %}}{_END}"
)
SYSTEM_TEXT = (
    f"{_FOR_EACH}{{% if message.role == 'system' %}}{{{{ message.content.strip() }}}}"
    f"{{% else %}}{_PARTS}{{% endif %}}{_END}"
)
QUOTED = f"{_FOR_EACH}{{{{ message.content[0]['text'] | tojson }}}}{_END}"


def _template(source: str, **variables: Any) -> ChatTemplate:
    return ChatTemplate(source, variables, render_in_pool)


def _messages(*messages: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


CHAT = _messages(("system", "be kind"), ("user", " one"), ("assistant", "two"), ("user", "three"))


@pytest.mark.parametrize("source", [TEXT, PARTS, EITHER])
def test_each_template_is_given_the_form_that_it_takes(source: str) -> None:
    expected = "[system]be kind[user] one[assistant]two[user]three[assistant]"
    assert _template(source).render(CHAT) == expected


def test_the_form_may_differ_by_role() -> None:
    assert _template(SYSTEM_PARTS).render(CHAT) == "[system]be kind[user]ONE[assistant]TWO[user]THREE[assistant]"
    assert _template(SYSTEM_TEXT).render(CHAT) == "[system]be kind[user] one[assistant]two[user]three[assistant]"


def test_developers_speak_as_the_system_where_the_template_does_not_know_them() -> None:
    chat = _messages(("developer", "be kind"), ("user", "one"))
    assert _template(TEXT).render(chat) == "[system]be kind[user]one[assistant]"
    parts_for_system = f"{_FOR_EACH}{{% if message.role == 'system' %}}{_PARTS}{{% else %}}{{{{ message.content }}}}"
    assert _template(f"{parts_for_system}{{% endif %}}{_END}").render(chat) == "[system]be kind[user]one[assistant]"
    known = f"{{# system or developer #}}{TEXT}"
    assert _template(known).render(chat) == "[developer]be kind[user]one[assistant]"


def test_a_first_part_is_reached_by_index() -> None:
    assert _template(QUOTED).render(_messages(("user", 'say "é"'))) == '[user]"say \\"é\\""[assistant]'


@pytest.mark.parametrize("source", [TEXT, PARTS, EITHER])
def test_parts_of_text_may_be_given_to_every_template(source: str) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert _template(source).render(_messages(("user", parts))) == "[user]one two[assistant]"


def test_only_the_first_part_is_not_enough() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    with pytest.raises(LostMessageError):
        _template(QUOTED).render(_messages(("user", parts)))


_ONLY = "{{% for message in messages %}}{{% if {condition} %}}{{{{ message.content }}}}{{% endif %}}{{% endfor %}}"


@pytest.mark.parametrize(
    ("condition", "messages", "position"),
    [
        ("message.role != 'system'", CHAT, 0),
        ("message.role != 'assistant'", CHAT, 2),
        ("loop.first", CHAT[1:], 1),
        ("loop.last", CHAT[1:], 0),
        ("message.role != 'system' or loop.first", [*CHAT, *CHAT], 4),
    ],
)
def test_a_message_that_is_left_out_is_an_error(condition: str, messages: list[dict[str, Any]], position: int) -> None:
    template = _template(_ONLY.format(condition=condition))
    with pytest.raises(LostMessageError, match=f"leaves out this text of the role '{messages[position]['role']}'") as e:
        template.render(messages)
    assert e.value.position == position


@pytest.mark.parametrize(
    "expression",
    [
        "message.content.split('</think>')[-1]",
        "message.content | trim | lower",
        "message.content | tojson",
        "message.content.replace('/no_think', '')",
        "message.content | replace('\n', ' ')",
    ],
)
@pytest.mark.parametrize("text", ["<think>hm</think>", "/no_think", " \n", "", "?", '"Ünï\n"', "x" * 10])
def test_templates_may_change_texts(expression: str, text: str) -> None:
    template = _template(f"{{% for message in messages %}}{{{{ {expression} }}}}{{% endfor %}}")
    template.render(_messages(("system", text), ("user", text), ("assistant", text), ("user", text)))


def test_what_an_assistant_says_beside_its_calls_may_be_left_out() -> None:
    source = (
        "{% for message in messages %}{% if message.tool_calls %}{{ message.tool_calls | tojson }}"
        "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {}}}
    calling = {"role": "assistant", "content": "let me look", "tool_calls": [call]}
    assert "look" in _template(source).render([*CHAT[:2], calling, {"role": "tool", "content": "rain"}])


def test_a_system_message_that_is_refused_is_refused_in_the_templates_words() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEXT
    template = _template(source)
    assert template.render(CHAT[1:]) == "[user] one[assistant]two[user]three[assistant]"
    with pytest.raises(ChatTemplateError, match="no system role"):
        template.render(CHAT)


def test_a_template_may_require_a_system_message_or_tools() -> None:
    required = "{% if messages[0].role != 'system' %}{{ raise_exception('who am I?') }}{% endif %}" + PARTS
    assert _template(required).render(CHAT[:2]) == "[system]be kind[user] one[assistant]"
    with pytest.raises(ChatTemplateError, match="who am I"):
        _template(required).render(CHAT[1:])
    tools = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}" + TEXT
    named = [{"type": "function", "function": {"name": "look"}}]
    assert _template(tools).render(CHAT[1:2], tools=named) == "look[user] one[assistant]"


def test_special_tokens_and_arguments_are_variables() -> None:
    template = _template("{{ bos_token }}{{ mood }}" + TEXT, bos_token="<s>")
    assert template.render(CHAT[1:2], mood="calm", add_generation_prompt=False) == "<s>calm[user] one"
    with pytest.raises(ChatTemplateError, match="chat_template may not be given"):
        template.render(CHAT, chat_template="x")


def test_a_key_without_a_value_is_no_key() -> None:
    source = "{% for m in messages %}{{ m.content }}{{ m.name is defined }}{% endfor %}"
    assert _template(source).render([{"role": "user", "content": "a", "name": None}]) == "aFalse"


def test_a_long_refusal_is_cut() -> None:
    source = TEXT + "{% if messages | length > 3 %}{{ raise_exception(messages[-1].content) }}{% endif %}"
    with pytest.raises(ChatTemplateError) as raised:
        _template(source).render([*CHAT[:3], *_messages(("user", "x" * 10_000))])
    assert len(str(raised.value)) == 500


@pytest.mark.parametrize("source", ["{% if %}", "x", "{{ tools }}", "{{ messages[99].content }}", "{{ 1 / 0 }}"])
def test_a_template_that_renders_no_question_does_not_work(source: str) -> None:
    templates = ChatTemplates({"default": source}, {})
    assert templates.names == ()
    assert list(templates.broken) == ["default"]
    with pytest.raises(UnknownTemplateError, match="'default' does not work"):
        templates.choose()


def test_an_endless_template_does_not_work_and_is_tried_once() -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + TEXT
    tried: list[str] = []

    def render(source: str, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
        tried.append(source)
        return render_in_pool(source, messages, arguments)

    assert ChatTemplates({"default": endless}, {}, render).broken == {"default": "it takes more than 1 s of CPU time"}
    assert len(tried) == 1


def test_a_template_is_chosen_by_name() -> None:
    templates = ChatTemplates({"default": TEXT, "broken": "x", "tool_use": TEXT + "tools", "rag": TEXT + "rag"}, {})
    assert templates.names == ("default", "tool_use", "rag")

    def chosen(name: str | None = None, *, has_tools: bool = False) -> str:
        return templates.choose(name, has_tools=has_tools).render(CHAT[1:2]).removeprefix("[user] one[assistant]")

    assert [chosen(), chosen("rag"), chosen(has_tools=True)] == ["", "rag", "tools"]
    assert chosen("rag", has_tools=True) == "rag"
    with pytest.raises(
        UnknownTemplateError, match="no chat template is named 'x'; the model has default, tool_use, rag"
    ):
        templates.choose("x")
    with pytest.raises(UnknownTemplateError, match="'broken' does not work: it leaves out what the user says"):
        templates.choose("broken")


def test_without_a_default_the_first_that_works_is_taken() -> None:
    templates = ChatTemplates({"broken": "x", "rag": TEXT}, {})
    assert templates.choose().render(CHAT[1:2]) == "[user] one[assistant]"
