"""Constraints that cannot be followed are refused by their field, with the place in it."""

import json
from typing import Any

import pytest

from fiddler.v1.generation_pb2 import BeamSearch, Choices, GenerateRequest
from gpu_service.api.requests.constraints import constraint_of
from gpu_service.errors import RequestError
from gpu_service.settings import RequestLimits
from tests.support.constrained import EOS, TOKENIZER, RandomModel

_DEEP = {
    "properties": {"a": {"type": "array", "items": {"properties": {"b": {"type": "strin"}}}}, "c": {"type": "object"}}
}


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({"json_schema": '{"type": '}, "json_schema", "must be JSON: Expecting value: line 1 column 10"),
        ({"json_schema": "[1]"}, "json_schema", "must be a JSON object or a boolean"),
        ({"json_schema": "[" * 60000}, "json_schema", "must be nested less deeply"),
        ({"json_schema": json.dumps(_DEEP)}, "json_schema", "#/properties/a/items/properties/b: Invalid type: strin"),
        ({"json_schema": '{"anyOf": [{}, {"not": {}}]}'}, "json_schema", '#/anyOf/1: Unimplemented keys: ["not"]'),
        ({"json_schema": '{"$ref": "#/no"}'}, "json_schema", "#: Pointer '/no' does not exist"),
        ({"json_schema": '{"pattern": "(", "type": "string"}'}, "json_schema", "#: regex parse error"),
        ({"json_object": False}, "json_object", "must be true or unset"),
        ({"regex": "a(b"}, "regex", "unclosed group"),
        ({"grammar": "start: foo"}, "grammar", 'at 1(8): unknown name: "foo"'),
        ({"choice": {}}, "choice.texts", "must not be empty"),
        ({"choice": {"texts": ["a", ""]}}, "choice.texts[1]", "must not be empty"),
        ({"regex": "é" * 6}, "regex", "at most 10 bytes, got 12"),
        ({"choice": {"texts": ["123456", "12345"]}}, "choice", "at most 10 bytes, got 11"),
        ({"regex": "a", "beam_search": BeamSearch(num_beams=2)}, "regex", "must be unset with beam_search"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(fields: dict[str, Any], field: str, text: str) -> None:
    limits = RequestLimits(max_constraint_bytes=10 if "at most" in text else 65536)
    model: Any = RandomModel()
    with pytest.raises(RequestError) as raised:
        constraint_of(GenerateRequest(**fields), model, TOKENIZER, limits)
    assert raised.value.field == field
    assert text in str(raised.value)


def test_a_model_with_an_encoder_takes_none() -> None:
    model: Any = RandomModel()
    model.start_token_id = 0
    with pytest.raises(RequestError, match="encoder-decoder"):
        constraint_of(GenerateRequest(regex="a"), model, TOKENIZER, RequestLimits())


@pytest.mark.parametrize("text", ["a.b", "(x)|y", "new\nline", 'é \\ " #-&~', "日本"])
def test_choices_are_taken_literally(text: str) -> None:
    model: Any = RandomModel()
    matcher = constraint_of(GenerateRequest(choice=Choices(texts=["nothing", text])), model, TOKENIZER, RequestLimits())
    assert matcher is not None
    assert matcher.validate_tokens(TOKENIZER.guidance.vocabulary(0, []).tokenize_str(text)) > 0
    assert matcher.consume_tokens(TOKENIZER.guidance.vocabulary(0, []).tokenize_str(text))
    assert matcher.is_accepting()


def test_without_a_constraint_there_is_no_grammar() -> None:
    model: Any = RandomModel()
    assert constraint_of(GenerateRequest(), model, TOKENIZER, RequestLimits()) is None


def test_a_text_that_spells_a_special_token_can_be_forced() -> None:
    model: Any = RandomModel()
    schema = {"properties": {"a": {"const": "x</s>y"}}, "required": ["a"], "additionalProperties": False}
    fields: dict[str, Any] = {"json_schema": json.dumps({"type": "object", **schema})}
    for constraint in (fields, {"regex": r'\{"a": "x</s>y"\}'}, {"choice": Choices(texts=['{"a": "x</s>y"}'])}):
        matcher = constraint_of(GenerateRequest(**constraint), model, TOKENIZER, RequestLimits())
        assert matcher is not None
        forced = matcher.compute_ff_tokens()
        assert TOKENIZER.decode(forced) == '{"a": "x</s>y"}'
        assert matcher.consume_tokens(forced)
        assert matcher.is_accepting()


def test_a_grammar_may_name_a_special_token() -> None:
    model: Any = RandomModel()
    matcher = constraint_of(GenerateRequest(grammar='start: "a" </s>'), model, TOKENIZER, RequestLimits())
    assert matcher is not None
    assert matcher.compute_ff_tokens()[-1] == EOS
