"""The form of calls is read from what chat templates of each family's form write."""

from pathlib import Path

import pytest

from gpu_service.text.answering.form import CallForm, NoCallFormError
from gpu_service.text.answering.parser import AnswerParser, FoundCall
from gpu_service.text.tokenizer import Tokenizer
from tests.support.call_templates import TEMPLATES, XML, CallTemplate, write_tokenizer

USER = [{"role": "user", "content": "How is it?"}]


@pytest.fixture(scope="module", params=TEMPLATES, ids=lambda form: form.name)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[CallTemplate, Tokenizer]:
    template: CallTemplate = request.param
    directory = write_tokenizer(tmp_path_factory.mktemp("tokenizer"), template.source, template.special)
    return template, Tokenizer(directory)


def test_the_form_is_what_the_template_writes(family: tuple[CallTemplate, Tokenizer]) -> None:
    template, tokenizer = family
    form = tokenizer.call_form()
    assert form.text("f", '{"a": 1}').partition(template.end)[0].rstrip() == template.call
    assert (form.between is not None) == template.many


def test_calls_and_content_are_parsed_in_pieces_of_every_size(family: tuple[CallTemplate, Tokenizer]) -> None:
    template, tokenizer = family
    form, response_template = tokenizer.call_form(), tokenizer.response_template
    assert response_template is not None
    hidden = form.after.strip().partition("\n")[0]
    arguments = '{"a": "' + hidden.replace("\\", "").replace('"', "") + '<b>{[\\" é", "b": [1]}'
    answer = form.before + "f.g-h" + form.middle + arguments
    if form.between is not None:
        answer += form.between + "f" + form.middle + '{"a": {}}'
    answer += form.after.partition(template.end)[0]
    prompt = tokenizer.render(USER, tools=[])
    for size in range(1, len(answer) + 1):
        parser = AnswerParser(response_template, prompt)
        deltas = [parser.add(answer[start : start + size]) for start in range(0, len(answer), size)]
        deltas.append(parser.finish())
        assert "".join(delta.content for delta in deltas).strip() == ""
        calls = [call for delta in deltas for call in delta.tool_calls]
        assert calls[0] == FoundCall("f.g-h", arguments)
        assert calls[1:] == ([FoundCall("f", '{"a": {}}')] if form.between is not None else [])


def test_text_without_calls_is_content(family: tuple[CallTemplate, Tokenizer]) -> None:
    template, tokenizer = family
    if template.name == "harmony":  # content has a mark of its own there
        pytest.skip("harmony marks its content")
    assert tokenizer.response_template is not None
    parser = AnswerParser(tokenizer.response_template, tokenizer.render(USER, tools=[]))
    text = 'A list [1, 2], a set {3}, a < b, and {"x": "y"}.'
    assert "".join(parser.add(piece).content for piece in text) + parser.finish().content == text


def test_a_form_without_json_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, XML))
    with pytest.raises(NoCallFormError, match="in none of the known forms: hermes, mistral"):
        tokenizer.call_form()
    assert (tokenizer.has_call_form, tokenizer.response_template) == (False, None)


def test_a_response_template_that_does_not_find_the_calls_is_not_relied_on(tmp_path: Path) -> None:
    other = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {"tool_calls": {"open": "<call>", "close": "</call>", "content": "json"}, "content": {}},
    }
    tokenizer = Tokenizer(write_tokenizer(tmp_path, TEMPLATES[0].source, response_template=other))
    with pytest.raises(NoCallFormError, match="does not find the calls"):
        tokenizer.call_form()
    assert tokenizer.response_template == other


def test_reasoning_is_marked_as_the_templates_say(tmp_path: Path) -> None:
    marks = {}
    for template in (TEMPLATES[0], TEMPLATES[-1]):
        form: CallForm = Tokenizer(
            write_tokenizer(tmp_path / template.name, template.source, template.special)
        ).call_form()
        assert form.reasoning is not None
        marks[template.name] = (form.reasoning.opening, form.reasoning.closing, form.reasoning.glue)
    assert marks == {
        "hermes": ("<think>", "</think>", "\n\n"),
        "harmony": ("<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant"),
    }


def test_arguments_are_text_where_a_template_takes_no_object(family: tuple[CallTemplate, Tokenizer]) -> None:
    _, tokenizer = family
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}
    text = tokenizer.render([*USER, {"role": "assistant", "content": "", "tool_calls": [call]}], tools=[])
    assert '{"a": "é"}' in text
