"""Constraints through both services: outputs follow them, and forced tokens are those that come one by one."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from client import Client, Complete, FinishReason, GenerationChunk, InvalidRequestError
from pair import Pair

SCHEMA = {
    "type": "object",
    "properties": {
        "name_of_the_king": {"type": "string", "maxLength": 12},
        "number_of_his_children": {"type": "integer", "minimum": 0, "maximum": 12},
        "colours": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name_of_the_king", "number_of_his_children", "colours"],
    "additionalProperties": False,
}
PROMPT = "It was a fine morning, and the king said"


@pytest.fixture(scope="module")
def client(pair: Pair) -> Iterator[Client]:
    with Client(pair.target) as client:
        yield client


def _read(client: Client, **options: Any) -> tuple[list[int], str, Complete]:
    events = list(client.generate(PROMPT, **options))
    chunks = [event for event in events if isinstance(event, GenerationChunk)]
    assert isinstance(events[-1], Complete)
    return [id for chunk in chunks for id in chunk.token_ids], "".join(chunk.text for chunk in chunks), events[-1]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
def test_forced_tokens_are_those_that_come_one_by_one(client: Client, options: dict[str, Any]) -> None:
    tokens, text, end = _read(client, json_schema=SCHEMA, **options)
    jsonschema.validate(json.loads(text), SCHEMA)
    assert end.finish_reason is FinishReason.STOP
    # with log probabilities each token is computed by itself
    assert _read(client, json_schema=SCHEMA, logprobs=0, **options)[0] == tokens


def test_several_at_once_get_what_each_gets_alone(client: Client) -> None:
    all_options: list[dict[str, Any]] = [
        {"json_schema": SCHEMA, "temperature": 0},
        {"regex": "[A-Z][a-z]{2,8}, [a-z]{3}", "temperature": 1.0, "seed": 1},
        {"choice": ["yes please", "no thanks"], "temperature": 0},
        {"max_tokens": 20, "temperature": 0},
    ]
    with ThreadPoolExecutor(len(all_options)) as threads:
        together = list(threads.map(lambda options: _read(client, **options)[:2], all_options))
    assert together == [_read(client, **options)[:2] for options in all_options]
    assert re.fullmatch(all_options[1]["regex"], together[1][1].strip())
    assert together[2][1].strip() in all_options[2]["choice"]


def test_a_broken_schema_is_refused_with_the_place(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="#/properties/a: Invalid type: text") as raised:
        client.generate(PROMPT, json_schema={"properties": {"a": {"type": "text"}}}).text()
    assert raised.value.field == "json_schema"
