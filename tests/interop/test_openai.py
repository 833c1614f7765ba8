"""The openai library and langchain-openai against the gateway: before a pair, and before a script that calls tools."""

import json
from collections.abc import Iterator

import pytest

from fiddler.v1 import generation_pb2
from fiddler.v1.generation_pb2 import Chunk, GenerateResponse, MessageDelta, ToolCallDelta
from tests.support.fake_server import FakeServer, complete, serving
from tests.support.http_gateways import listening
from tests.support.interop_python import needs_environment, result

pytestmark = needs_environment


def test_answers_plain_streamed_and_asynchronous_are_the_same(url: str) -> None:
    found = result("openai_client.py", url, "answers")
    first, *others = found["texts"]
    assert first
    assert others == [first] * 3
    assert found["from_logprobs"].removesuffix("</s>").strip() == first.strip()
    assert set(found["num_alternatives"]) == {2}
    plain, streamed = found["usages"]
    assert plain["completion_tokens"] == streamed["completion_tokens"] == 12
    assert found["models"] == ["demo"]


def test_text_completions_with_echo(url: str) -> None:
    one, two = result("openai_client.py", url, "completions")["choices"]
    assert one["text"].startswith("In the beginning")
    assert two["text"].startswith("It was")
    for choice in (one, two):
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"][0] is None
        assert all(value < 0 for value in logprobs["token_logprobs"][1:])
        assert len(logprobs["tokens"]) == len(logprobs["top_logprobs"]) == len(logprobs["text_offset"])


def test_errors_are_the_library_s_own(url: str) -> None:
    assert result("openai_client.py", url, "errors") == {
        "field": ["BadRequestError", 400, "temperature"],
        "model": ["NotFoundError", 404, "model"],
        "unsupported": ["BadRequestError", 400, "functions"],
    }


def test_langchain_answers_and_streams(url: str) -> None:
    found = result("langchain_client.py", url, "chat")
    whole, streamed = found["texts"]
    assert whole == streamed != ""
    assert found["tokens"] == 12


def _deltas(request: generation_pb2.GenerateRequest, context: object) -> Iterator[GenerateResponse]:
    """Calls the tool, unless its result is there already; or the JSON that a schema wants."""
    end = complete(3)
    if request.WhichOneof("constraint"):
        end.complete.finish_reason = generation_pb2.FINISH_REASON_EOS
        yield GenerateResponse(chunk=Chunk(delta=MessageDelta(content='{"name": "Bath", ')))
        yield GenerateResponse(chunk=Chunk(delta=MessageDelta(content='"people": 9}')))
    elif request.chat.messages[-1].role == "tool":
        yield GenerateResponse(chunk=Chunk(delta=MessageDelta(content=request.chat.messages[-1].content)))
    else:
        yield GenerateResponse(chunk=Chunk(delta=MessageDelta(reasoning="Where?")))
        for call in (ToolCallDelta(id="call_1", name="weather"), ToolCallDelta(arguments='{"place": "Bath"}')):
            yield GenerateResponse(chunk=Chunk(delta=MessageDelta(tool_calls=[call])))
        end.complete.finish_reason = generation_pb2.FINISH_REASON_TOOL_CALLS
    yield end


@pytest.fixture
def scripted() -> Iterator[tuple[FakeServer, str]]:
    """A GPU service that calls tools, and the URL of the gateway before it."""
    with serving() as fake, listening(fake.target) as url:
        fake.service.script = _deltas
        yield fake, url


def test_a_tool_round_trip(scripted: tuple[FakeServer, str]) -> None:
    fake, url = scripted
    assert result("openai_client.py", url, "tools") == {
        "call": ["weather", {"place": "Bath"}],
        "finish_reason": "tool_calls",
        "streamed": ["weather", {"place": "Bath"}],
        "answer": "rain",
    }
    first, second, _ = fake.service.requests
    assert first.chat.tool_choice.mode == generation_pb2.TOOL_CHOICE_MODE_REQUIRED
    assert second.chat.messages[1].tool_calls[0].id == second.chat.messages[2].tool_call_id == "call_1"
    assert result("langchain_client.py", url, "tools") == {"calls": [["weather", {"place": "Bath"}]]}


def test_an_answer_in_the_form_of_a_pydantic_model(scripted: tuple[FakeServer, str]) -> None:
    fake, url = scripted
    assert result("openai_client.py", url, "parsed") == {"name": "Bath", "people": 9}
    assert set(json.loads(fake.service.requests[0].json_schema)["properties"]) == {"name", "people"}
