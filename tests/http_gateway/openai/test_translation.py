"""What OpenAI's requests are to the GPU service."""

import json
from typing import Any

import pytest

from fiddler.v1 import generation_pb2
from http_gateway.errors import ApiError
from http_gateway.openai.chat_request import ChatRequest
from http_gateway.openai.completion_request import CompletionRequest
from http_gateway.openai.translation import chat_request, completion_requests
from tests.support.http_gateways import HELLO


def chat(**fields: Any) -> generation_pb2.GenerateRequest:
    return chat_request(ChatRequest.model_validate({"messages": HELLO, **fields})).request


def completion(**fields: Any) -> generation_pb2.GenerateRequest:
    (translation,) = completion_requests(CompletionRequest.model_validate({"prompt": "a", **fields}))
    return translation.request


def test_what_is_not_given_stays_unset() -> None:
    request = chat(user="me", metadata={"a": "b"}, unknown=5, temperature=None)
    message = generation_pb2.ChatMessage(role="user", content="Hello")
    assert request == generation_pb2.GenerateRequest(chat=generation_pb2.Chat(messages=[message]))
    assert completion() == generation_pb2.GenerateRequest(text="a", max_tokens=16)


def test_what_clients_send_although_it_changes_nothing_is_taken() -> None:
    harmless = {"length_penalty": 1.0, "use_beam_search": False, "tools": [], "stop": [], "logit_bias": {}}
    assert chat(**harmless, add_generation_prompt=True, add_special_tokens=False, bad_words=[]) == chat()
    assert completion(add_special_tokens=True, best_of=1, suffix="") == completion()
    call = {"id": None, "type": None, "function": {"name": "f", "arguments": "{}"}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert chat(messages=messages).chat.messages[1].tool_calls[0].name == "f"
    goes_on = chat(messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert goes_on.chat.continue_final_message


def test_every_sampling_field_has_its_place() -> None:
    values = {
        **{"temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "typical_p": 0.75},
        **{"repetition_penalty": 1.5, "frequency_penalty": -0.5, "presence_penalty": 1.0},
    }
    sampling = chat(**values, top_k=7, seed=11, logit_bias={"5": -1, "6": 2.5}).sampling
    assert {name: getattr(sampling, name) for name in values} == values
    assert (sampling.top_k, sampling.seed, dict(sampling.logit_bias)) == (7, 11, {5: -1.0, 6: 2.5})
    assert chat(top_k=-1).sampling.top_k == 0
    assert 0 <= chat(seed=-5).sampling.seed < 2**62


def test_every_other_field_has_its_place() -> None:
    request = chat(
        **{"n": 2, "min_tokens": 3, "ignore_eos": True, "skip_special_tokens": False, "stop_token_ids": [1, 2]},
        **{"stop": "x", "include_stop_str_in_output": True, "truncate_prompt_tokens": -1, "priority": 4},
        **{"stream": True, "stream_options": {"continuous_usage_stats": True, "include_prompt_progress": True}},
    )
    assert (request.n, request.min_tokens, list(request.stop_token_ids)) == (2, 3, [1, 2])
    assert (request.ignore_eos, request.skip_special_tokens, list(request.stop)) == (True, False, ["x"])
    assert (request.include_stop_in_output, request.truncate_prompt, request.priority) == (True, 0, -4)
    assert request.HasField("truncate_prompt")
    assert (request.chunk_usage, request.prompt_progress) == (True, True)
    assert chat(truncate_prompt_tokens=9).truncate_prompt == 9


def test_the_newer_name_of_max_tokens_goes_first() -> None:
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6


def test_log_probabilities_of_a_chat_are_a_flag_and_a_number() -> None:
    assert not chat().HasField("logprobs")
    assert not chat(logprobs=False).HasField("logprobs")
    assert (chat(logprobs=True).HasField("logprobs"), chat(logprobs=True).logprobs) == (True, 0)
    assert chat(logprobs=True, top_logprobs=3).logprobs == 3


SCHEMA: dict[str, Any] = {"type": "object", "properties": {"b": {}, "a": {}}}
CONSTRAINTS: list[tuple[dict[str, Any], str, Any]] = [
    ({"response_format": {"type": "json_object"}}, "json_object", True),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "json_schema", SCHEMA),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        "json_schema",
        SCHEMA,
    ),
    ({"guided_json": SCHEMA}, "json_schema", SCHEMA),
    ({"guided_json": json.dumps(SCHEMA)}, "json_schema", SCHEMA),
    ({"guided_regex": "a+"}, "regex", "a+"),
    ({"guided_grammar": "start: /a/"}, "grammar", "start: /a/"),
    ({"guided_choice": ["a", "b"]}, "choice", ["a", "b"]),
    ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA),
    ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
    ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", ["a", "b"]),
    ({"structured_outputs": {"grammar": "start: /a/"}}, "grammar", "start: /a/"),
    ({"structured_outputs": {"json_object": True}}, "json_object", True),
]


@pytest.mark.parametrize(("fields", "kind", "value"), CONSTRAINTS, ids=lambda value: str(value)[:50])
def test_each_form_of_the_output_is_one_constraint(fields: dict[str, Any], kind: str, value: Any) -> None:
    request = chat(**fields)
    assert request.WhichOneof("constraint") == kind
    found = getattr(request, kind)
    if kind == "json_schema":
        found = json.loads(found)
        assert list(found["properties"]) == ["b", "a"]
    assert (list(found.texts) if kind == "choice" else found) == value


def test_text_is_no_constraint_and_two_forms_are_refused() -> None:
    assert chat(response_format={"type": "text"}).WhichOneof("constraint") is None
    with pytest.raises(ApiError) as raised:
        chat(response_format={"type": "json_object"}, guided_regex="a")
    assert raised.value.param == "guided_regex"


def test_the_service_s_refusal_names_the_field_of_the_request() -> None:
    def param(field: str, **fields: Any) -> str:
        return chat_request(ChatRequest.model_validate({"messages": HELLO, **fields})).names.param_of(field)

    assert param("sampling.logit_bias[7]") == "logit_bias[7]"
    assert param("max_tokens") == "max_tokens"
    assert param("max_tokens", max_completion_tokens=1) == "max_completion_tokens"
    assert param("logprobs", logprobs=True) == "top_logprobs"
    assert param("json_schema", guided_json={}) == "guided_json"
    assert param("choice.texts[1]", guided_choice=["a", ""]) == "guided_choice.texts[1]"
    assert param("chat.messages[2].parts[1].text") == "messages[2].content[1].text"
    assert param("chat.messages[2].parts") == "messages[2].content"
    assert param("chat.tools[0].name") == "tools[0].function.name"
    assert param("chat.template_arguments") == "chat_template_kwargs"
    one, two = completion_requests(CompletionRequest.model_validate({"prompt": [[1], [2]]}))
    assert (one.names.param_of("token_ids"), two.names.param_of("token_ids.ids[3]")) == ("prompt[0]", "prompt[1][3]")
    (single,) = completion_requests(CompletionRequest.model_validate({"prompt": [1]}))
    assert single.names.param_of("token_ids[3]") == "prompt[3]"
