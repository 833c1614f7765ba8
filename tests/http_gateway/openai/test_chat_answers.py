"""Deltas of content, reasoning and calls, in chunks and whole."""

from typing import Any

import pytest

from fiddler.v1 import generation_pb2
from fiddler.v1.generation_pb2 import Alternative, Chunk, GenerateResponse, MessageDelta, TokenLogprobs, ToolCallDelta
from http_gateway.openai.answers import Head
from http_gateway.openai.chat_answers import ChatChunks, WholeChat
from http_gateway.openai.chat_request import ChatRequest
from tests.support.fake_server import complete
from tests.support.http_gateways import HELLO

HEAD = Head("id", "chat.completion.chunk", "demo")


def request(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": HELLO, **fields})


def _delta(**fields: Any) -> GenerateResponse:
    return GenerateResponse(chunk=Chunk(token_ids=[1], text="raw", delta=MessageDelta(**fields)))


def _end() -> GenerateResponse:
    end = complete(9)
    end.complete.finish_reason = generation_pb2.FINISH_REASON_TOOL_CALLS
    return end


def _calling() -> list[GenerateResponse]:
    return [
        _delta(reasoning="Let me "),
        _delta(reasoning="look."),
        _delta(),
        _delta(tool_calls=[ToolCallDelta(index=0, id="call_1", name="weather", arguments="")]),
        _delta(tool_calls=[ToolCallDelta(index=0, arguments='{"place"')]),
        _delta(tool_calls=[ToolCallDelta(index=0, arguments=': "a"}')]),
        _delta(tool_calls=[ToolCallDelta(index=1, id="call_2", name="time", arguments="{}")]),
        _end(),
    ]


CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "a"}'}},
    {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
]


def test_a_whole_answer_has_reasoning_and_calls() -> None:
    answer = WholeChat(HEAD, request())
    for response in _calling():
        answer.add(response)
    (choice,) = answer.content()["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Let me look.",
        "tool_calls": CALLS,
    }
    assert choice["finish_reason"] == "tool_calls"


def test_chunks_add_up_to_the_whole_answer() -> None:
    chunks = ChatChunks(HEAD, request())
    deltas = [each["choices"][0]["delta"] for response in _calling() for each in chunks.of(response)]
    assert {} not in deltas[:-1], "a chunk that adds nothing is not sent"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Let me look."
    assert not any("content" in delta for delta in deltas)
    pieces = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [piece["index"] for piece in pieces] == [0, 0, 0, 1]
    assert "".join(piece["function"]["arguments"] for piece in pieces if piece["index"] == 0) == '{"place": "a"}'
    assert [piece.get("id") for piece in pieces[:3]] == ["call_1", None, None]
    assert [piece["function"].get("name") for piece in pieces[:3]] == ["weather", None, None]


def test_log_probabilities_have_bytes_unless_the_character_is_incomplete() -> None:
    top = [Alternative(token_id=4, text="é", logprob=-0.5), Alternative(token_id=5, text="\ufffd", logprob=-1.5)]
    token = TokenLogprobs(token_id=4, text="é", logprob=-0.5, top=top)
    response = GenerateResponse(chunk=Chunk(token_ids=[4], text="é", logprobs=[token]))
    answer = WholeChat(HEAD, request(logprobs=True, top_logprobs=2))
    answer.add(response)
    answer.add(complete(1))
    (content,) = answer.content()["choices"][0]["logprobs"]["content"]
    assert (content["token"], content["logprob"], content["bytes"]) == ("é", -0.5, [195, 169])
    assert [each["bytes"] for each in content["top_logprobs"]] == [[195, 169], None]
    (chunk,) = ChatChunks(HEAD, request(logprobs=True, return_tokens_as_token_ids=True)).of(response)
    assert chunk["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:4"
    assert chunk["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_progress_and_numbers_so_far_are_chunks() -> None:
    body = request(stream=True, stream_options={"continuous_usage_stats": True, "include_prompt_progress": True})
    chunks = ChatChunks(HEAD, body)
    progress = generation_pb2.PromptProgress(computed_tokens=3, total_tokens=9, cached_tokens=1)
    (told,) = chunks.of(GenerateResponse(progress=progress))
    assert told["choices"] == []
    assert told["prompt_progress"] == {"computed_tokens": 3, "total_tokens": 9, "cached_tokens": 1}
    usage = generation_pb2.Usage(prompt_tokens=9, completion_tokens=2)
    (chunk,) = chunks.of(GenerateResponse(chunk=Chunk(text="a", usage=usage)))
    assert chunk["usage"]["total_tokens"] == 11


@pytest.mark.parametrize(
    ("reason", "stop", "token", "finish", "told"),
    [
        (generation_pb2.FINISH_REASON_EOS, None, 2, "stop", None),
        (generation_pb2.FINISH_REASON_STOP, "x", None, "stop", "x"),
        (generation_pb2.FINISH_REASON_STOP, None, 7, "stop", 7),
        (generation_pb2.FINISH_REASON_LENGTH, None, None, "length", None),
    ],
)
def test_why_an_answer_ended(reason: Any, stop: str | None, token: int | None, finish: str, told: Any) -> None:
    end = complete(1)
    end.complete.finish_reason = reason
    if stop is not None:
        end.complete.stop = stop
    if token is not None:
        end.complete.stop_token_id = token
    (chunk,) = ChatChunks(HEAD, request()).of(end)
    (choice,) = chunk["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == (finish, told)


def test_what_is_impossible_has_a_log_probability_that_json_can_hold() -> None:
    token = TokenLogprobs(token_id=4, text="a", logprob=-float("inf"))
    response = GenerateResponse(chunk=Chunk(token_ids=[4], text="a", logprobs=[token]))
    (chunk,) = ChatChunks(HEAD, request(logprobs=True)).of(response)
    assert chunk["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0
