"""Answers in the forms of five families, in pieces of every size: the same as parsed whole."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_service.text.answering.parser import AnswerParser, Delta, response_template_of
from tests.support.answer_formats import FORMATS, WEATHER, Format


def _parsed(form: Format, pieces: list[str]) -> Delta:
    parser = AnswerParser(form.template, form.prompt, [WEATHER])
    whole = Delta()
    for delta in [*map(parser.add, pieces), parser.finish()]:
        whole.content += delta.content
        whole.reasoning += delta.reasoning
        whole.tool_calls += delta.tool_calls
    return whole


def _check(form: Format, found: Delta) -> None:
    assert (found.content, found.reasoning) == (form.content, form.reasoning)
    assert tuple((call.name, json.loads(call.arguments)) for call in found.tool_calls) == form.calls


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_pieces_of_every_size_are_parsed_as_the_whole(form: Format) -> None:
    for size in range(1, len(form.answer) + 1):
        pieces = [form.answer[start : start + size] for start in range(0, len(form.answer), size)]
        _check(form, _parsed(form, pieces))


@given(form=st.sampled_from(FORMATS), borders=st.lists(st.integers(0, 500), max_size=8))
def test_pieces_of_any_sizes_are_parsed_as_the_whole(form: Format, borders: list[int]) -> None:
    places = [0, *sorted(min(border, len(form.answer)) for border in borders), len(form.answer)]
    _check(form, _parsed(form, [form.answer[one:other] for one, other in pairwise(places)]))


@pytest.mark.parametrize("form", FORMATS[:3], ids=lambda form: form.name)
def test_no_call_is_lost_or_invented_by_an_answer_that_is_cut_off(form: Format) -> None:
    for end in range(len(form.answer)):
        found = _parsed(form, [form.answer[:end]])
        assert len(found.tool_calls) <= len(form.calls)
        for call, (name, _) in zip(found.tool_calls, form.calls, strict=False):
            assert call.name == name


def test_a_call_that_is_no_json_is_content() -> None:
    form = FORMATS[0]
    found = _parsed(form, ["Look: <tool_call>{not", " json}</tool_call>", " done"])
    assert not found.tool_calls
    assert "{not json}" in found.content
    assert found.content.endswith("done")


def test_content_comes_as_soon_as_it_is_certain() -> None:
    parser = AnswerParser(FORMATS[0].template, FORMATS[0].prompt)
    assert [parser.add(piece).content for piece in ("\n He", "llo <", "b> you ", "there")] == [
        "He",
        "llo",
        " <b> you",
        " there",
    ]


class _Tokenizer:
    def __init__(self, template: Any = None) -> None:
        self.response_template = template


def test_the_tokenizers_template_counts_then_the_familys() -> None:
    own = FORMATS[0].template
    assert response_template_of(_Tokenizer(own), "mixtral", []) is own
    assert response_template_of(_Tokenizer({"fields": 3}), "mixtral", []) is None
    assert response_template_of(_Tokenizer(), "mixtral", []) is None
    family = response_template_of(_Tokenizer(), "qwen3_moe", ["{{ '<|im_start|>assistant\\n' }}"])
    assert family is not None
    assert "tool_calls" in family["fields"]
    assert response_template_of(_Tokenizer(), "qwen3_moe", ["{{ 'ASSISTANT:' }}"]) is None
