"""/v1/completions: texts, token ids, lists of them, echoes and log probabilities."""

from typing import Any

import grpc
import pytest
from starlette.testclient import TestClient

from fiddler import rpc
from fiddler.v1 import generation_pb2
from fiddler.v1.generation_pb2 import Alternative, GenerateResponse, TokenLogprobs
from tests.support.fake_server import PIECES, FakeServer, chunk, complete, in_turn, tell_a_story
from tests.support.http_gateways import COMPLETIONS, error_of, events

TEXT = "".join(PIECES)


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [("Once", ["Once"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]])],
    ids=str,
)
def test_prompts_of_every_form(http: TestClient, server: FakeServer, prompt: Any, sent: list[Any]) -> None:
    content = http.post(COMPLETIONS, json={"prompt": prompt}).json()
    assert [(each["index"], each["text"]) for each in content["choices"]] == [(i, TEXT) for i in range(len(sent))]
    assert content["usage"]["prompt_tokens"] == 3 * len(sent)
    received = [list(each.token_ids.ids) or each.text for each in server.service.requests]
    assert sorted(received, key=str) == sorted(sent, key=str)
    assert {each.max_tokens for each in server.service.requests} == {16}


def test_a_stream_of_several_prompts(http: TestClient) -> None:
    body = {"prompt": ["a", "b"], "stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events(http.post(COMPLETIONS, json=body).text)
    texts = ["", ""]
    for each in chunks:
        (choice,) = each["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [TEXT, TEXT]
    assert usage["usage"]["completion_tokens"] == 2 * len(PIECES)
    assert done == "[DONE]"


@pytest.mark.parametrize("with_end", [False, True])
def test_chunks_have_the_numbers_of_tokens_so_far_if_asked_for(
    http: TestClient, server: FakeServer, with_end: bool
) -> None:
    pieces = [chunk(text, 5) for text in ("Once", " upon")]
    for number, piece in enumerate(pieces, 1):
        piece.chunk.usage.MergeFrom(generation_pb2.Usage(prompt_tokens=3, completion_tokens=number))
    server.service.script = lambda request, context: iter([*pieces, complete(2)])
    options = {"continuous_usage_stats": True, "include_usage": with_end}
    *chunks, done = events(http.post(COMPLETIONS, json={"prompt": "a", "stream": True, "stream_options": options}).text)
    assert server.service.requests[0].chunk_usage
    assert [each["usage"]["completion_tokens"] for each in chunks] == [1, 2, 2, 2][: 3 + with_end]
    assert {each["usage"]["prompt_tokens"] for each in chunks} == {3}
    assert [len(each["choices"]) for each in chunks] == [1, 1, 1, 0][: 3 + with_end]
    assert done == "[DONE]"


def test_one_of_several_prompts_that_is_refused_refuses_all(http: TestClient, server: FakeServer) -> None:
    def refuse_b(request: generation_pb2.GenerateRequest, context: Any) -> Any:
        if request.text == "b":
            rpc.invalid_argument("text", "is too long").abort(context)
        yield from tell_a_story(request, context)

    server.service.script = refuse_b
    answer = http.post(COMPLETIONS, json={"prompt": ["a", "b", "c"]})
    assert error_of(answer) == (400, "prompt[1]", "prompt[1]: is too long")


def _token(token_id: int, text: str, logprob: float | None) -> TokenLogprobs:
    top = [] if logprob is None else [Alternative(token_id=9, text="nine", logprob=-0.5)]
    return TokenLogprobs(token_id=token_id, text=text, logprob=logprob, top=top)


def _echo(request: object, context: object) -> Any:
    prompt = [_token(1, "<s>", None), _token(4, "Once", -1.5)]
    yield GenerateResponse(prompt=generation_pb2.PromptLogprobs(tokens=prompt))
    yield chunk("Once", 1, 4)
    generated = chunk(" upon", 5)
    generated.chunk.logprobs.append(_token(5, " upon", -2.5))
    yield generated
    yield complete(1)


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_with_log_probabilities_has_those_of_prompt_and_text(
    http: TestClient, server: FakeServer, stream: bool
) -> None:
    server.service.script = _echo
    answer = http.post(COMPLETIONS, json={"prompt": "Once", "echo": True, "logprobs": 1, "stream": stream})
    (request,) = server.service.requests
    assert (request.echo, request.logprobs, request.prompt_logprobs) == (True, 1, 1)
    if stream:
        parts = [each["choices"][0] for each in events(answer.text)[:-1]]
        assert "".join(part["text"] for part in parts) == "Once upon"
        found = [value for part in parts if part["logprobs"] for value in part["logprobs"]["token_logprobs"]]
        assert found == [None, -1.5, -2.5]
        return
    (choice,) = answer.json()["choices"]
    assert choice["text"] == "Once upon"
    assert choice["logprobs"] == {
        "tokens": ["<s>", "Once", " upon"],
        "token_logprobs": [None, -1.5, -2.5],
        "top_logprobs": [None, {"nine": -0.5, "Once": -1.5}, {"nine": -0.5, " upon": -2.5}],
        "text_offset": [0, 3, 7],
    }


def test_no_tokens_and_an_echo_give_the_prompt_alone(http: TestClient, server: FakeServer) -> None:
    server.service.script = _echo
    body = {"prompt": "Once", "echo": True, "logprobs": 1, "max_tokens": 0}
    content = http.post(COMPLETIONS, json=body).json()
    (choice,) = content["choices"]
    assert server.service.requests[0].max_tokens == 1
    assert (choice["text"], choice["finish_reason"]) == ("Once", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -1.5]
    assert content["usage"]["completion_tokens"] == 0


def test_too_many_prompts_are_refused(http: TestClient, server: FakeServer) -> None:
    answer = http.post(COMPLETIONS, json={"prompt": ["a"] * 257})
    assert error_of(answer) == (400, "prompt", "prompt: has 257 prompts, over the limit of 256")
    assert server.service.requests == []


def test_a_failure_after_the_first_message_of_several_prompts_is_an_event(http: TestClient, server: FakeServer) -> None:
    broken = rpc.StatusError(grpc.StatusCode.INTERNAL, "broken")

    def fail(request: object, context: Any) -> Any:
        yield chunk("Once", 1)
        broken.abort(context)

    server.service.script = in_turn(fail)
    *_, error, done = events(http.post(COMPLETIONS, json={"prompt": ["a", "b"], "stream": True}).text)
    assert error["error"]["message"] == "the GPU service failed: broken"
    assert done == "[DONE]"


def test_the_progress_of_a_prompt_is_told_before_its_text(http: TestClient, server: FakeServer) -> None:
    progress = GenerateResponse(progress=generation_pb2.PromptProgress(computed_tokens=2, total_tokens=3))
    server.service.script = lambda request, context: iter([progress, chunk("Once", 1), complete(1)])
    body = {"prompt": "a", "stream": True, "stream_options": {"include_prompt_progress": True}}
    first, second, *_ = events(http.post(COMPLETIONS, json=body).text)
    assert server.service.requests[0].prompt_progress
    assert first["choices"] == []
    assert first["prompt_progress"] == {"computed_tokens": 2, "total_tokens": 3, "cached_tokens": 0}
    assert second["choices"][0]["text"] == "Once"
