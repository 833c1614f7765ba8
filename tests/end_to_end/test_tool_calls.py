"""Calls of functions through both services, both clients and the gateway, on a model whose answers are parsed."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from client import AsyncClient, Client, FinishReason
from pair import Pair
from tests.support.http_gateways import CHAT, calling, events

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
HELLO: list[Any] = [{"role": "user", "content": "How is the weather?"}]
OPTIONS: dict[str, Any] = {"tools": [TOOL, CLOCK], "max_tokens": 120, "temperature": 0.7, "seed": 3}
ONE_CALL: dict[str, Any] = {**OPTIONS, "parallel_tool_calls": False, "template_arguments": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def http(parsed_pair: Pair) -> Iterator[TestClient]:
    with calling(parsed_pair.target) as http:
        yield http


def _body(**changes: Any) -> dict[str, Any]:
    body = {"messages": HELLO, **OPTIONS, "chat_template_kwargs": {"enable_thinking": False}}
    return {**body, "parallel_tool_calls": False, **changes}


def test_a_call_is_made_if_it_is_demanded(parsed_pair: Pair) -> None:
    with Client(parsed_pair.target) as client:
        info = client.model_info()
        generation = client.chat(HELLO, **ONE_CALL, tool_choice="required")
        answer = generation.answer()
    assert (info.has_response_parser, info.parses_tool_calls, info.can_require_tool_calls) == (True, True, True)
    (call,) = answer.tool_calls
    jsonschema.validate(json.loads(call.arguments), SCHEMA if call.name == "weather" else {"const": {}})
    assert answer.content == ""
    assert generation.complete is not None
    assert generation.complete.finish_reason is FinishReason.TOOL_CALLS


async def test_a_named_function_is_called_and_its_result_can_be_sent(parsed_pair: Pair) -> None:
    async with AsyncClient(parsed_pair.target) as client:
        answer = await client.chat(HELLO, **ONE_CALL, tool_choice={"name": "weather"}).answer()
        (call,) = answer.tool_calls
        jsonschema.validate(json.loads(call.arguments), SCHEMA)
        said = {"role": "assistant", "tool_calls": [{"id": call.id, "name": call.name, "arguments": call.arguments}]}
        result = {"role": "tool", "content": "rain", "tool_call_id": call.id}
        options = {**ONE_CALL, "max_tokens": 8}
        second = await client.chat([*HELLO, said, result], **options, tool_choice="none").answer()  # type: ignore[list-item]
    assert (bool(second.content), second.tool_calls) == (True, ())


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_it_is_the_same_over_http_whole_and_streamed(http: TestClient, choice: Any) -> None:
    whole = http.post(CHAT, json=_body(tool_choice=choice)).json()["choices"][0]
    (call,) = whole["message"]["tool_calls"]
    assert (whole["finish_reason"], whole["message"]["content"]) == ("tool_calls", None)
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA if choice != "required" else {})
    chunks = events(http.post(CHAT, json=_body(tool_choice=choice, stream=True)).text)[:-1]
    deltas = [piece for chunk in chunks for piece in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [delta["function"] for delta in deltas] == [call["function"]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_functions_that_are_strict_leave_other_answers_free(http: TestClient) -> None:
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
    answer = http.post(CHAT, json=_body(tools=[strict], max_tokens=8)).json()["choices"][0]
    assert answer["message"]["content"]
    assert answer["finish_reason"] == "length"


def test_a_demand_that_cannot_be_met_is_refused_by_its_field(http: TestClient) -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "text"}}}}}
    for changes, field in (
        ({"tools": [bad], "tool_choice": "required"}, "tools[0].function.parameters"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
    ):
        error = http.post(CHAT, json=_body(**changes)).json()["error"]
        assert error["param"] == field, error
