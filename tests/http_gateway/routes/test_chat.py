"""/v1/chat/completions: plain and streamed, and how each failure of the GPU service is answered."""

from typing import Any

import grpc
import pytest
from starlette.testclient import TestClient

from fiddler import rpc
from fiddler.v1 import generation_pb2
from fiddler.v1.generation_pb2 import GenerateResponse
from tests.support.fake_server import PIECES, FakeServer, chunk, complete, fail_with
from tests.support.http_gateways import CHAT, HELLO, error_of, events

TEXT = "".join(PIECES)


def test_an_answer_in_one_piece(http: TestClient, server: FakeServer) -> None:
    answer = http.post(CHAT, json={"model": "demo", "messages": HELLO, "max_tokens": 9})
    content = answer.json()
    assert (answer.status_code, content["object"], content["model"]) == (200, "chat.completion", "demo")
    (choice,) = content["choices"]
    assert choice["message"] == {"role": "assistant", "content": TEXT}
    assert choice["finish_reason"] == "length"
    assert content["usage"]["total_tokens"] == 3 + len(PIECES)
    (request,) = server.service.requests
    assert [(message.role, message.content) for message in request.chat.messages] == [("user", "Hello")]
    assert request.max_tokens == 9


def test_a_stream_names_the_speaker_then_sends_pieces_then_the_end(http: TestClient) -> None:
    body = {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    answer = http.post(CHAT, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(answer.text)
    assert done == "[DONE]"
    assert {each["object"] for each in chunks} == {"chat.completion.chunk"}
    assert len({each["id"] for each in chunks}) == 1
    first, *_, end, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks[:-1]) == TEXT
    assert end["choices"][0]["finish_reason"] == "length"
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], len(PIECES))
    assert all(each["usage"] is None for each in chunks[:-1])


def test_the_id_is_the_requests_name_at_the_service(http: TestClient, server: FakeServer) -> None:
    from tests.support.fake_server import taken, tell_a_story

    server.service.script = taken(tell_a_story, "theirs")
    answer = http.post(CHAT, json={"messages": HELLO})
    assert (answer.json()["id"], answer.headers["x-request-id"]) == ("chatcmpl-theirs", "theirs")


FAILURES: list[tuple[rpc.StatusError, int, str | None, str]] = [
    (rpc.invalid_argument("sampling.top_p", "must be above 0, got 7"), 400, "top_p", "top_p: must be above 0, got 7"),
    (rpc.invalid_argument("chat.messages[0].content", "is bad"), 400, "messages[0].content", "messages[0].content: is"),
    (rpc.invalid_argument("chat", "is too long"), 400, "messages", "messages: is too long"),
    (rpc.invalid_argument("chat.tools[1].parameters", "x"), 400, "tools[1].function.parameters", "tools[1].function."),
    (rpc.busy("too many requests are waiting", 2.5), 429, None, "too many requests are waiting"),
    (rpc.StatusError(grpc.StatusCode.UNAUTHENTICATED, "no"), 401, None, "the GPU service requires an API key"),
    (rpc.StatusError(grpc.StatusCode.INTERNAL, "broken"), 500, None, "the GPU service failed: broken"),
    (rpc.StatusError(grpc.StatusCode.UNIMPLEMENTED, "what?"), 502, None, "what answers at --target is not a GPU"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "code", "param", "message"), FAILURES, ids=lambda value: str(value)[:20])
def test_a_refusal_has_openais_form_and_names_the_field(
    http: TestClient,
    server: FakeServer,
    status: rpc.StatusError,
    code: int,
    param: str | None,
    message: str,
    stream: bool,
) -> None:
    server.service.script = fail_with(status)
    answer = http.post(CHAT, json={"messages": HELLO, "stream": stream})
    found_code, found_param, found = error_of(answer)
    assert (found_code, found_param) == (code, param)
    assert found.startswith(message)
    if code == 429:
        assert answer.headers["retry-after"] == "3"


def test_a_prompt_that_is_too_long_has_a_code_that_agents_know(http: TestClient, server: FakeServer) -> None:
    status = rpc.invalid_argument("chat", "the maximum context length is 9", "CONTEXT_LENGTH_EXCEEDED")
    server.service.script = fail_with(status)
    error = http.post(CHAT, json={"messages": HELLO}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert error["message"] == "messages: the maximum context length is 9"


def test_a_failure_within_a_stream_is_an_event(http: TestClient, server: FakeServer) -> None:
    server.service.script = fail_with(rpc.StatusError(grpc.StatusCode.INTERNAL, "broken"), chunk("Once", 1))
    answer = http.post(CHAT, json={"messages": HELLO, "stream": True})
    *_, piece, error, done = events(answer.text)
    assert answer.status_code == 200
    assert piece["choices"][0]["delta"] == {"content": "Once"}
    assert error["error"]["message"] == "the GPU service failed: broken"
    assert done == "[DONE]"


@pytest.mark.parametrize(
    ("reason", "code"), [(generation_pb2.FINISH_REASON_CANCELLED, 409), (generation_pb2.FINISH_REASON_DEADLINE, 504)]
)
def test_a_generation_that_is_ended_from_outside_is_no_answer(
    http: TestClient, server: FakeServer, reason: Any, code: int
) -> None:
    end = complete()
    end.complete.finish_reason = reason
    server.service.script = lambda request, context: iter([chunk("Once", 1), end])
    assert error_of(http.post(CHAT, json={"messages": HELLO}))[0] == code


def test_another_model_is_not_found(http: TestClient, server: FakeServer) -> None:
    answer = http.post(CHAT, json={"model": "gpt", "messages": HELLO})
    assert error_of(answer) == (404, "model", "model: 'gpt' is not served; the model is 'demo'")
    assert answer.json()["error"]["code"] == "model_not_found"
    assert server.service.requests == []


def test_generations_of_n_are_choices(http: TestClient, server: FakeServer) -> None:
    def two(request: object, context: object) -> Any:
        for index in (1, 0):
            yield GenerateResponse(chunk=generation_pb2.Chunk(index=index, token_ids=[1], text=f"{index}"))
        for index in (1, 0):
            end = complete(1)
            end.complete.index = index
            yield end

    server.service.script = two
    content = http.post(CHAT, json={"messages": HELLO, "n": 2}).json()
    assert [(each["index"], each["message"]["content"]) for each in content["choices"]] == [(0, "0"), (1, "1")]
    assert content["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
