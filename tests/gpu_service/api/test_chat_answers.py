"""Answers to chats as messages: deltas, calls with ids, and the reason why they ended."""

import json
from typing import Any

import pytest

from fiddler.v1 import generation_pb2
from fiddler.v1.generation_pb2 import Chat, GenerateRequest, GenerateResponse
from gpu_service.api.responses import Responses
from gpu_service.engine.events import Event, Finished, Token
from gpu_service.sampling.outputs import FinishReason
from gpu_service.sampling.parameters import BeamParameters
from gpu_service.text.stop_strings import StopStrings
from gpu_service.text.tokenizer import Tokenizer
from tests.support.answer_formats import FORMATS
from tests.support.pairs import DEMO
from tests.support.requests import request_of

FORM, EOS = FORMATS[0], 2


@pytest.fixture(scope="module")
def parsing() -> Tokenizer:
    tokenizer = Tokenizer(DEMO)
    tokenizer.response_template = FORM.template
    return tokenizer


def _responses(tokenizer: Tokenizer, **fields: Any) -> Responses:
    prompt = tokenizer.encode(FORM.prompt, add_special_tokens=False)
    return Responses(request_of(prompt, 500, eos_ids=[EOS], **fields), GenerateRequest(chat=Chat()), tokenizer)


def _tokens(tokenizer: Tokenizer, text: str, index: int = 0) -> list[Event]:
    ids = [*tokenizer.encode(text, add_special_tokens=False), EOS]
    return [Token(index, token_id) for token_id in ids]


def _end(reason: FinishReason = FinishReason.EOS, index: int = 0, **fields: Any) -> Finished:
    return Finished(index, reason, 2, 1.0, 2.0, 3.0, **fields)


def _deltas(messages: list[GenerateResponse], index: int = 0) -> generation_pb2.MessageDelta:
    whole = generation_pb2.MessageDelta()
    for message in messages:
        if message.HasField("chunk") and message.chunk.index == index:
            assert message.chunk.HasField("delta")
            whole.content += message.chunk.delta.content
            whole.reasoning += message.chunk.delta.reasoning
            whole.tool_calls.extend(message.chunk.delta.tool_calls)
    return whole


@pytest.mark.parametrize("group", [1, 3, 1000])
def test_an_answer_comes_as_content_reasoning_and_calls(parsing: Tokenizer, group: int) -> None:
    responses, events = _responses(parsing), [*_tokens(parsing, FORM.answer), _end()]
    messages = [
        message for start in range(0, len(events), group) for message in responses.of(events[start : start + group])
    ]
    whole = _deltas(messages)
    assert (whole.content, whole.reasoning) == (FORM.content, FORM.reasoning)
    assert [(call.index, call.name, json.loads(call.arguments)) for call in whole.tool_calls] == [
        (index, *call) for index, call in enumerate(FORM.calls)
    ]
    ids = [call.id for call in whole.tool_calls]
    assert len(set(ids)) == len(ids) == 2
    assert all(id.startswith("call_") for id in ids)
    assert messages[-1].complete.finish_reason == generation_pb2.FINISH_REASON_TOOL_CALLS
    text = "".join(message.chunk.text for message in messages if message.HasField("chunk"))
    assert text.strip() == FORM.answer, "the text itself is as before"


def test_an_answer_without_calls_ends_as_it_does(parsing: Tokenizer) -> None:
    for reason, number in (
        (FinishReason.EOS, generation_pb2.FINISH_REASON_EOS),
        (FinishReason.LENGTH, generation_pb2.FINISH_REASON_LENGTH),
    ):
        *_, end = _responses(parsing).of([*_tokens(parsing, "<think>a</think>b"), _end(reason)])
        assert end.complete.finish_reason == number


def test_generations_are_parsed_each_by_itself(parsing: Tokenizer) -> None:
    responses = _responses(parsing, n=2)
    events = [*_tokens(parsing, "<think>one</think>two"), *_tokens(parsing, FORM.answer, 1), _end(), _end(index=1)]
    messages = list(responses.of(events))
    assert (_deltas(messages).content, _deltas(messages).reasoning) == ("two", "one")
    assert len(_deltas(messages, 1).tool_calls) == 2


def test_what_a_stop_text_cuts_off_is_no_part_of_the_answer(parsing: Tokenizer) -> None:
    responses = _responses(parsing, stop=StopStrings(["STOP"], parsing, include=False))
    events = [*_tokens(parsing, "<think>a</think>b STOP")[:-1], _end(FinishReason.STOP, stop="STOP")]
    whole = _deltas(list(responses.of(events)))
    assert (whole.content, whole.reasoning) == ("b", "a")


def test_beams_are_parsed_as_wholes(parsing: Tokenizer) -> None:
    responses = _responses(parsing, beam=BeamParameters(2))
    ids = tuple(event.token_id for event in _tokens(parsing, FORM.answer) if isinstance(event, Token))
    (end,) = responses.of([_end(token_ids=ids, score=-1.0)])
    assert end.complete.message.content == FORM.content
    assert len(end.complete.message.tool_calls) == 2
    assert end.complete.finish_reason == generation_pb2.FINISH_REASON_TOOL_CALLS


def test_a_family_without_a_parser_gets_plain_text() -> None:
    tokenizer = Tokenizer(DEMO)
    assert tokenizer.response_template is None
    messages = list(_responses(tokenizer).of([*_tokens(tokenizer, FORM.answer), _end()]))
    text = "".join(message.chunk.text for message in messages if message.HasField("chunk"))
    assert _deltas(messages) == generation_pb2.MessageDelta(content=text)
    assert messages[-1].complete.finish_reason == generation_pb2.FINISH_REASON_EOS


def test_what_is_no_chat_has_no_deltas(parsing: Tokenizer) -> None:
    responses = Responses(request_of([1], 9), GenerateRequest(), parsing)
    (message,) = responses.of(_tokens(parsing, "a"))
    assert not message.chunk.HasField("delta")
