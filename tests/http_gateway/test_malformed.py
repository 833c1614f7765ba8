"""Bodies that are wrong in any way get a 4xx with the field named, never a 5xx, and start nothing."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.support.fake_server import FakeServer
from tests.support.http_gateways import CHAT, COMPLETIONS, HELLO, error_of

WRONG: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "Hello"}, "messages"),
    (CHAT, {"messages": [{}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": 1}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    (CHAT, {"messages": HELLO, "temperature": "hot"}, "temperature"),
    (CHAT, {"messages": HELLO, "temperature": True}, "temperature"),
    (CHAT, {"messages": HELLO, "max_tokens": 1.5}, "max_tokens"),
    (CHAT, {"messages": HELLO, "max_tokens": 2**40}, "max_tokens"),
    (CHAT, {"messages": HELLO, "max_completion_tokens": -(2**40)}, "max_completion_tokens"),
    (CHAT, {"messages": HELLO, "seed": 2**64}, "seed"),
    (CHAT, {"messages": HELLO, "stop": [1]}, "stop[0]"),
    (CHAT, {"messages": HELLO, "stop": {"a": 1}}, "stop"),
    (CHAT, {"messages": HELLO, "logit_bias": {"a": 1}}, "logit_bias"),
    (CHAT, {"messages": HELLO, "logit_bias": {"-1": 1}}, "logit_bias"),
    (CHAT, {"messages": HELLO, "logit_bias": {"1": "a"}}, "logit_bias.1"),
    (CHAT, {"messages": HELLO, "top_logprobs": 2}, "top_logprobs"),
    (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    (CHAT, {"messages": HELLO, "stream_options": {"include_usage": True}}, "stream_options"),
    (CHAT, {"messages": HELLO, "stream": True, "stream_options": 3}, "stream_options"),
    (CHAT, {"messages": HELLO, "tools": [{"type": "custom"}]}, "tools[0].type"),
    (CHAT, {"messages": HELLO, "tools": [{"type": "function"}]}, "tools[0].function"),
    (CHAT, {"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
    (CHAT, {"messages": HELLO, "tool_choice": "some"}, "tool_choice"),
    (CHAT, {"messages": HELLO, "tool_choice": {"type": "function"}}, "tool_choice.function"),
    (CHAT, {"messages": HELLO, "response_format": {"type": "xml"}}, "response_format.type"),
    (CHAT, {"messages": HELLO, "response_format": {"type": "json_schema"}}, "response_format"),
    (CHAT, {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
     "response_format.json_schema.schema"),
    (CHAT, {"messages": HELLO, "guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
    (CHAT, {"messages": HELLO, "functions": [{"name": "f"}]}, "functions"),
    (CHAT, {"messages": HELLO, "modalities": ["text", "audio"]}, "modalities"),
    (CHAT, {"messages": HELLO, "use_beam_search": True}, "use_beam_search"),
    (CHAT, {"messages": HELLO, "chat_template": "{{ 1 }}"}, "chat_template"),
    (CHAT, {"messages": HELLO, "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    (CHAT, {"messages": HELLO, "model": 5}, "model"),
    (CHAT, {"messages": HELLO, "length_penalty": 1.5}, "length_penalty"),
    (CHAT, {"messages": HELLO, "allowed_token_ids": [1]}, "allowed_token_ids"),
    (CHAT, {"messages": HELLO, "bad_words": ["a"]}, "bad_words"),
    (CHAT, {"messages": HELLO, "add_generation_prompt": False}, "add_generation_prompt"),
    (CHAT, {"messages": HELLO, "add_special_tokens": True}, "add_special_tokens"),
    (COMPLETIONS, {"prompt": "a", "add_special_tokens": False}, "add_special_tokens"),
    (COMPLETIONS, {"prompt": "a", "logits_processors": ["a"]}, "logits_processors"),
    (COMPLETIONS, {}, "prompt"),
    (COMPLETIONS, {"prompt": None}, "prompt"),
    (COMPLETIONS, {"prompt": []}, "prompt"),
    (COMPLETIONS, {"prompt": ["a", 3]}, "prompt[1]"),
    (COMPLETIONS, {"prompt": [1, "a"]}, "prompt[1]"),
    (COMPLETIONS, {"prompt": [1, -1]}, "prompt[1]"),
    (COMPLETIONS, {"prompt": [[1], [2, 2**32]]}, "prompt[1][1]"),
    (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix"),
    (COMPLETIONS, {"prompt": "a", "best_of": 2}, "best_of"),
    (COMPLETIONS, {"prompt": "a", "logprobs": True}, "logprobs"),
    ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt"),
    ("/detokenize", {"tokens": "a"}, "tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param"), WRONG, ids=lambda value: str(value)[-40:])
def test_a_wrong_field_is_named(http: TestClient, server: FakeServer, path: str, body: Any, param: str) -> None:
    answer = http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    status, found, message = error_of(answer)
    assert (status, found) == (400, param)
    assert message.startswith(f"{param}: ")
    assert server.service.requests == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[1]", b'"text"', b"null", b"5", b"{" * 5000, b"[" * 100_000, b'{"a": 1e999999}',
     b'{"prompt": NaN, "tokens": [NaN]}', b'{"prompt": "a", "n": ' + b"9" * 6000 + b"}"],
    ids=lambda content: repr(content)[:24],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/tokenize", "/detokenize"])
def test_what_is_no_json_object_is_refused(http: TestClient, path: str, content: bytes) -> None:
    answer = http.post(path, content=content, headers={"content-type": "application/json"})
    assert error_of(answer)[0] == 400


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["\ud800", ""])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
FIELDS = st.sampled_from(
    ["model", "messages", "prompt", "max_tokens", "n", "stop", "seed", "temperature", "top_p", "top_k", "logit_bias",
     "logprobs", "top_logprobs", "stream_options", "tools", "tool_choice", "response_format", "structured_outputs",
     "echo", "suffix", "stop_token_ids", "priority", "chat_template_kwargs", "truncate_prompt_tokens"]
)  # fmt: skip


@pytest.mark.parametrize(("path", "rest"), [(CHAT, {"messages": HELLO}), (COMPLETIONS, {"prompt": "a"})])
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3))
@example(changes={"chat_template_kwargs": {"a": "\ud800"}})
@example(changes={"logit_bias": {"9" * 5000: 1}})
@example(changes={"n": 2})
@example(changes={"n": 2**31 - 1})
def test_no_body_makes_the_gateway_fail(http: TestClient, path: str, rest: Any, changes: dict[str, Any]) -> None:
    answer = http.post(path, content=json.dumps({**rest, **changes}), headers={"content-type": "application/json"})
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert error_of(answer)[0] in (400, 404)
