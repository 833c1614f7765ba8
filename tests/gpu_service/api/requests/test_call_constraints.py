"""An answer that must call a function does so, with arguments that its schema describes, in each family's form."""

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher

from fiddler.v1.generation_pb2 import (
    TOOL_CHOICE_MODE_NONE,
    TOOL_CHOICE_MODE_REQUIRED,
    BeamSearch,
    Chat,
    ChatMessage,
    GenerateRequest,
    Tool,
    ToolChoice,
)
from gpu_service.api.requests.call_constraints import call_constraint_of
from gpu_service.errors import RequestError
from gpu_service.settings import RequestLimits
from gpu_service.text.answering.parser import AnswerParser, Delta
from gpu_service.text.tokenizer import Tokenizer
from tests.support.call_templates import TEMPLATES, XML, write_tokenizer

SCHEMAS: dict[str, Any] = {
    "weather": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "mark.up-2": {
        "properties": {
            "tag": {"enum": ["</tool_call>", "<|call|>", "\n```<｜tool▁call▁end｜>", "[TOOL_CALLS]x[ARGS]"]}
        },
        "required": ["tag"],
        "additionalProperties": False,
    },
}
TOOLS = [Tool(name=name, parameters=json.dumps(schema)) for name, schema in SCHEMAS.items()]
REQUIRED = ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED)


class _Model:
    vocab_size = 3200
    start_token_id: int | None = None

    def __init__(self, end_id: int) -> None:
        self.eos_ids = frozenset({2, end_id})


class _Family:
    """A tokenizer of one family's form."""

    def __init__(self, directory: Path, source: str, special: tuple[str, ...] = (), end: str = "</s>") -> None:
        self.tokenizer = Tokenizer(write_tokenizer(directory, source, special))
        ends = self.tokenizer.split_special(end)
        self.model: Any = _Model(ends[0] if isinstance(ends[0], int) else 2)

    def prompt(self, **arguments: Any) -> list[int]:
        text = self.tokenizer.render([{"role": "user", "content": "Hi"}], tools=[], **arguments)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def constraint(self, prompt: list[int] | None = None, chat: dict[str, Any] | None = None, **fields: Any) -> Any:
        message = GenerateRequest(**fields)
        message.chat.CopyFrom(Chat(messages=[ChatMessage(role="user", content="Hi")], tools=TOOLS))
        message.chat.MergeFrom(Chat(**(chat or {})))
        return call_constraint_of(
            message, prompt or self.prompt(), model=self.model, tokenizer=self.tokenizer, limits=RequestLimits()
        )

    def parsed(self, text: str, prompt: list[int] | None = None) -> Delta:
        assert self.tokenizer.response_template is not None
        before = self.tokenizer.decode(prompt or self.prompt(), skip_special_tokens=False)
        parser = AnswerParser(self.tokenizer.response_template, before)
        whole = parser.add(text)
        rest = parser.finish()
        return Delta(whole.content + rest.content, whole.reasoning + rest.reasoning, whole.tool_calls + rest.tool_calls)

    def random_text(self, matcher: LLMatcher, seed: int, reasons: bool = True, most: int = 400) -> str:
        """What random logits write, with the end as soon as it may come; fails if it does not come."""
        generator, ends = random.Random(seed), self.model.eos_ids
        ids: list[int] = []
        form = self.tokenizer.call_form()
        if reasons and form.reasoning is not None:  # which random logits would never end
            ids = self.tokenizer.encode(form.before, add_special_tokens=False)
            assert matcher.consume_tokens(ids)
        for _ in range(most):
            if matcher.is_stopped():
                break
            if forced := matcher.compute_ff_tokens():
                ids += forced
                assert matcher.consume_tokens(forced)
                continue
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
            allowed = np.flatnonzero(bits).tolist()
            assert allowed
            if ends & set(allowed) and generator.random() < 0.5:
                break
            ids.append(generator.choice([each for each in allowed if each not in ends]))
            assert matcher.consume_token(ids[-1])
        else:
            pytest.fail("the answer does not end")
        return self.tokenizer.decode([each for each in ids if each not in ends], skip_special_tokens=False)


def _check(found: Delta) -> None:
    assert found.tool_calls
    assert found.content == ""
    for call in found.tool_calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


@pytest.fixture(scope="module", params=TEMPLATES, ids=lambda form: form.name)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Family:
    template = request.param
    return _Family(tmp_path_factory.mktemp("tokenizer"), template.source, template.special, template.end)


@pytest.fixture(scope="module")
def hermes(tmp_path_factory: pytest.TempPathFactory) -> _Family:
    return _Family(tmp_path_factory.mktemp("hermes"), TEMPLATES[0].source, ("<|im_end|>",), "<|im_end|>")


def test_an_answer_that_must_call_does_so_rightly_in_every_form(family: _Family) -> None:
    numbers = set()
    for seed in range(12):
        found = family.parsed(family.random_text(family.constraint(chat={"tool_choice": REQUIRED}), seed))
        _check(found)
        numbers.add(len(found.tool_calls))
    assert (numbers == {1}) == (family.tokenizer.call_form().between is None or len(numbers) == 1)


def test_a_named_function_is_called_once(family: _Family) -> None:
    for seed in range(4):
        choice = {"tool_choice": ToolChoice(name="mark.up-2")}
        found = family.parsed(family.random_text(family.constraint(chat=choice), seed))
        _check(found)
        assert [call.name for call in found.tool_calls] == ["mark.up-2"]


def test_several_calls_only_if_they_may_be_parallel(hermes: _Family) -> None:
    def numbers(**fields: Any) -> set[int]:
        matchers = [(seed, hermes.constraint(chat={"tool_choice": REQUIRED, **fields})) for seed in range(12)]
        return {len(hermes.parsed(hermes.random_text(matcher, seed)).tool_calls) for seed, matcher in matchers}

    assert numbers(parallel_tool_calls=False) == {1}
    assert max(numbers()) > 1


@pytest.mark.parametrize("opens", [True, False])
def test_an_answer_may_reason_first(hermes: _Family, opens: bool) -> None:
    prompt = hermes.prompt(opens_reasoning=opens)
    reasoning = "" if opens else "<think>"
    matcher = hermes.constraint(prompt, chat={"tool_choice": REQUIRED})
    start = f"{reasoning}Let me <tool_call> see.\n</think>"
    assert matcher.consume_tokens(hermes.tokenizer.encode(start, add_special_tokens=False))
    found = hermes.parsed(start + hermes.random_text(matcher, 1, reasons=False), prompt)
    assert found.reasoning == "Let me <tool_call> see."
    _check(found)


def test_an_answer_whose_prompt_has_its_reasoning_calls_at_once(hermes: _Family) -> None:
    matcher = hermes.constraint(hermes.prompt(enable_thinking=False), chat={"tool_choice": REQUIRED})
    assert hermes.tokenizer.decode(matcher.compute_ff_tokens()).startswith('<tool_call>\n{"name": "')


def test_calls_of_strict_functions_have_the_right_arguments(hermes: _Family) -> None:
    strict = [Tool(name="strict", parameters=TOOLS[0].parameters, strict=True), Tool(name="loose")]

    def takes(text: str, matcher: LLMatcher) -> bool:
        return bool(matcher.consume_tokens(hermes.tokenizer.encode(text, add_special_tokens=False)))

    begin = 'I look. a < b\n<tool_call>\n{"name": "'
    right = 'strict", "arguments": {"city": "Ulm", "days": 2}}\n</tool_call>'
    for text, is_taken in {
        "just text": True,
        begin + right + " and " + begin + right: True,
        begin + 'strict", "arguments": {"city": "Ulm", "days": 12': False,
        begin + 'loose", "arguments": {"days": 12}}\n</tool_call>': True,
        begin + 'unknown", ': False,
    }.items():
        message = Chat(messages=[ChatMessage(role="user", content="Hi")], tools=strict)
        matcher = call_constraint_of(
            GenerateRequest(chat=message),
            hermes.prompt(),
            model=hermes.model,
            tokenizer=hermes.tokenizer,
            limits=RequestLimits(),
        )
        assert matcher is not None
        assert takes(text, matcher) is is_taken, text


def test_without_demands_there_is_no_grammar(hermes: _Family) -> None:
    assert hermes.constraint() is None
    none = ToolChoice(mode=TOOL_CHOICE_MODE_NONE)
    assert hermes.constraint(chat={"tools": [Tool(name="s", strict=True)], "tool_choice": none}) is None
    assert hermes.constraint(chat={"tools": [Tool(name="s", strict=True)]}, regex="a") is None


@pytest.mark.parametrize(
    ("chat", "fields", "field", "text"),
    [
        ({"tool_choice": ToolChoice(name="no")}, {}, "chat.tool_choice", "no tool of chat.tools is named 'no'"),
        ({"tool_choice": REQUIRED}, {"regex": "a"}, "regex", "must be unset if chat.tool_choice demands a call"),
        ({"tool_choice": REQUIRED}, {"beam_search": BeamSearch(num_beams=2)}, "chat.tool_choice", "beam_search"),
        ({"tool_choice": REQUIRED, "continue_final_message": True}, {}, "chat.continue_final_message", "be unset"),
        (
            {"tool_choice": REQUIRED, "tools": [Tool(name="x", parameters='{"type": "array"}')]},
            {},
            "chat.tools[2].parameters",
            "#/type: must be object",
        ),
        (
            {"tool_choice": REQUIRED, "tools": [Tool(name="x", parameters='{"properties": {"a": {"type": "b"}}}')]},
            {},
            "chat.tools[2].parameters",
            "#/properties/a: Invalid type: b",
        ),
    ],
)
def test_what_cannot_be_demanded_is_named(
    hermes: _Family, chat: dict[str, Any], fields: dict[str, Any], field: str, text: str
) -> None:
    with pytest.raises(RequestError) as raised:
        hermes.constraint(chat=chat, **fields)
    assert raised.value.field == field
    assert text in str(raised.value)


def test_a_family_whose_form_is_unknown_is_refused_with_the_reason(tmp_path: Path) -> None:
    family = _Family(tmp_path, XML)
    with pytest.raises(
        RequestError, match="cannot demand a call of this model: its chat template writes calls in none"
    ):
        family.constraint(chat={"tool_choice": REQUIRED})
    assert family.constraint(chat={"tools": [Tool(name="x", strict=True)]}) is None
