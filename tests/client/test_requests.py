"""Requests and answers of both clients: every option and every event."""

from typing import Any

import pytest

import client as client_package
from client import (
    Alternative,
    Answer,
    AsyncClient,
    BestBeam,
    Client,
    Complete,
    GenerateOptions,
    GenerationChunk,
    InvalidRequestError,
    PromptLogprobs,
    PromptProgress,
    ServerError,
    TokenLogprobs,
    ToolCall,
    Usage,
)
from client._requests.generate import FIELDS
from fiddler.v1 import generation_pb2
from fiddler.v1.generation_pb2 import GenerateResponse
from tests.support.fake_server import FakeServer, chunk, complete, taken, tell_a_story

OPTIONS: GenerateOptions = {
    "max_tokens": 5,
    "min_tokens": 0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 0.5,
    "min_p": 0.25,
    "typical_p": 0.75,
    "seed": 0,
    "repetition_penalty": 1.5,
    "frequency_penalty": -0.5,
    "presence_penalty": 0.0,
    "logit_bias": {7: -100.0, 0: 1.0},
    "stop": ["\n\n", "é"],
    "include_stop_in_output": False,
    "stop_token_ids": (7, 8),
    "ignore_eos": True,
    "n": 1,
    "num_beams": 4,
    "length_penalty": 0.0,
    "early_stopping": "never",
    "num_return_sequences": 1,
    "stream_best": True,
    "logprobs": 0,
    "prompt_logprobs": 3,
    "echo": False,
    "priority": -2,
    "request_id": "mine",
    "forced_bos_token_id": 9,
    "skip_special_tokens": False,
    "truncate_prompt": 0,
    "chunk_usage": True,
    "prompt_progress": True,
}
CONSTRAINTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "json_schema": ({"type": "object"}, {"json_schema": '{"type": "object"}'}),
    "json_object": (True, {"json_object": True}),
    "regex": ("a+", {"regex": "a+"}),
    "grammar": ('start: "a"', {"grammar": 'start: "a"'}),
    "choice": (["a", "b"], {"choice": generation_pb2.Choices(texts=["a", "b"])}),
}
REQUEST = generation_pb2.GenerateRequest(
    text="a prompt",
    max_tokens=5,
    min_tokens=0,
    sampling=generation_pb2.SamplingParameters(
        temperature=0.0,
        top_k=0,
        top_p=0.5,
        min_p=0.25,
        typical_p=0.75,
        seed=0,
        repetition_penalty=1.5,
        frequency_penalty=-0.5,
        presence_penalty=0.0,
        logit_bias={7: -100.0, 0: 1.0},
    ),
    stop=["\n\n", "é"],
    include_stop_in_output=False,
    stop_token_ids=[7, 8],
    ignore_eos=True,
    n=1,
    beam_search=generation_pb2.BeamSearch(
        num_beams=4,
        length_penalty=0.0,
        stop=generation_pb2.BEAM_STOP_NEVER,
        num_return_sequences=1,
        stream_best=True,
    ),
    logprobs=0,
    prompt_logprobs=3,
    echo=False,
    priority=-2,
    request_id="mine",
    forced_bos_token_id=9,
    skip_special_tokens=False,
    truncate_prompt=0,
    chunk_usage=True,
    prompt_progress=True,
)
MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
CHAT = generation_pb2.Chat(
    messages=[
        generation_pb2.ChatMessage(role="system", content="Be brief."),
        generation_pb2.ChatMessage(role="user", content="Who are you?"),
    ]
)


def _leaves(message: type[Any], path: str = "") -> set[str]:
    """The paths of all fields of a request except its prompt."""
    paths = set()
    for field in message.DESCRIPTOR.fields:
        inner = field.message_type
        if field.containing_oneof is not None and field.containing_oneof.name == "prompt":
            continue
        if inner is None or inner.GetOptions().map_entry:
            paths.add(path + field.name)
        else:
            paths |= _leaves(inner._concrete_class, f"{path}{field.name}.")
    return paths


def test_every_field_of_a_request_is_an_option_and_tested_here() -> None:
    of_chats = {name for name, path in FIELDS.items() if path.startswith("chat.")}
    assert {FIELDS[name] for name in FIELDS.keys() - of_chats} == _leaves(generation_pb2.GenerateRequest)
    assert FIELDS.keys() - of_chats == OPTIONS.keys() | CONSTRAINTS.keys()
    assert FIELDS.keys() == GenerateOptions.__annotations__.keys() - {"timeout"}


async def test_every_option_arrives_from_both_clients(server: FakeServer) -> None:
    with Client(server.target) as client:
        client.generate("a prompt", **OPTIONS).text()
    async with AsyncClient(server.target) as client:
        await client.generate("a prompt", **OPTIONS).text()
    assert server.service.requests == [REQUEST, REQUEST]


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_each_constraint_arrives(server: FakeServer, name: str) -> None:
    value, fields = CONSTRAINTS[name]
    with Client(server.target) as client:
        client.generate("a prompt", **{name: value}).text()
    assert server.service.requests == [generation_pb2.GenerateRequest(text="a prompt", **fields)]


async def test_messages_arrive_from_both_clients(server: FakeServer) -> None:
    with Client(server.target) as client:
        client.chat(MESSAGES, max_tokens=3).text()
    async with AsyncClient(server.target) as client:
        await client.chat(MESSAGES, max_tokens=3).text()
    assert server.service.requests == [generation_pb2.GenerateRequest(chat=CHAT, max_tokens=3)] * 2


async def test_tools_and_their_calls_arrive_from_both_clients(server: FakeServer) -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    function = {"name": "look", "description": "Looks.", "parameters": schema}
    messages: Any = [
        {"role": "user", "content": ["Where", {"type": "text", "text": "?"}], "name": "Ann"},
        {
            "role": "assistant",
            "content": None,
            "reasoning": "Look.",
            "tool_calls": [
                {"id": "1", "name": "look", "arguments": {"b": 1}},
                {"id": "2", "type": "function", "function": {"name": "look", "arguments": '{"a": 2}'}},
            ],
        },
        {"role": "tool", "content": "There.", "tool_call_id": "1", "name": "look"},
    ]
    options: Any = {
        "tools": [function, {"type": "function", "function": {"name": "stop", "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "template_arguments": {"enable_thinking": False},
        "continue_final_message": False,
        "parallel_tool_calls": False,
    }
    with Client(server.target) as client:
        client.chat(messages, **options).text()
        client.chat(messages, **{**options, "tool_choice": "required"}).text()
        client.tokenize(MESSAGES, tools=options["tools"])
    async with AsyncClient(server.target) as client:
        await client.chat(messages, **options).text()
    first, second, third = server.service.requests
    calls = [generation_pb2.ToolCall(id=id, name="look") for id in "12"]
    calls[0].arguments, calls[1].arguments = '{"b": 1}', '{"a": 2}'
    assert first.chat == generation_pb2.Chat(
        messages=[
            generation_pb2.ChatMessage(
                role="user",
                parts=[generation_pb2.ContentPart(text="Where"), generation_pb2.ContentPart(text="?")],
                name="Ann",
            ),
            generation_pb2.ChatMessage(role="assistant", reasoning="Look.", tool_calls=calls),
            generation_pb2.ChatMessage(role="tool", content="There.", tool_call_id="1", name="look"),
        ],
        tools=[
            generation_pb2.Tool(
                name="look",
                description="Looks.",
                parameters='{"type": "object", "properties": {"b": {}, "a": {}}}',
            ),
            generation_pb2.Tool(name="stop", strict=True),
        ],
        tool_choice=generation_pb2.ToolChoice(name="look"),
        template_arguments='{"enable_thinking": false}',
        continue_final_message=False,
        parallel_tool_calls=False,
    )
    assert second.chat.tool_choice.mode == generation_pb2.TOOL_CHOICE_MODE_REQUIRED
    assert third == first


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tools": "look"}, "chat.tools"),
        ({"tools": ["look"]}, "chat.tools[0]"),
        ({"tools": [{"description": "a"}]}, "chat.tools[0].name"),
        ({"tools": [{"name": "a", "parameters": {1, 2}}]}, "chat.tools[0].parameters"),
        ({"tool_choice": "maybe"}, "chat.tool_choice"),
        ({"template_arguments": {"a": float("nan")}}, "chat.template_arguments"),
        ({"continue_final_message": "yes"}, "chat.continue_final_message"),
    ],
)
def test_chat_options_that_cannot_be_sent_are_named(server: FakeServer, options: dict[str, Any], field: str) -> None:
    with Client(server.target) as client, pytest.raises(InvalidRequestError) as raised:
        client.chat(MESSAGES, **options)
    assert raised.value.field == field
    assert server.service.requests == []


async def test_answers_are_put_together_from_their_pieces(server: FakeServer) -> None:
    def piece(index: int, **fields: Any) -> GenerateResponse:
        delta = generation_pb2.MessageDelta(**fields)
        return GenerateResponse(chunk=generation_pb2.Chunk(index=index, delta=delta))

    def call(index: int, **fields: str) -> generation_pb2.ToolCallDelta:
        return generation_pb2.ToolCallDelta(index=index, **fields)

    end = _end_of(2)
    end.complete.message.content = "beam"
    sent = [
        piece(0, reasoning="Hm"),
        piece(1, content="x"),
        piece(0, reasoning="m.", content="So"),
        piece(0, tool_calls=[call(0, id="i", name="look", arguments='{"a"'), call(1, id="j", name="stop")]),
        piece(0, tool_calls=[call(0, arguments=":1}"), call(1, arguments="{}")]),
        _end_of(0),
        _end_of(1),
        end,
    ]
    server.service.script = lambda request, context: iter(sent)
    calls = (ToolCall("i", "look", '{"a":1}'), ToolCall("j", "stop", "{}"))
    expected = [Answer("So", "Hmm.", calls), Answer("x"), Answer("beam")]
    with Client(server.target) as client:
        assert client.chat(MESSAGES, n=3).answers() == expected
        assert client.chat(MESSAGES, n=3).answer() == expected[0]
    async with AsyncClient(server.target) as other:
        assert await other.chat(MESSAGES, n=3).answers() == expected
        assert await other.chat(MESSAGES, n=3).answer() == expected[0]


def test_none_is_as_good_as_not_given(server: FakeServer) -> None:
    with Client(server.target) as client:
        client.generate("a prompt", **dict.fromkeys(OPTIONS)).text()
    assert server.service.requests == [generation_pb2.GenerateRequest(text="a prompt")]


@pytest.mark.parametrize(("given", "sent"), [(True, "EARLY"), (False, "HEURISTIC"), ("never", "NEVER")])
def test_early_stopping_is_as_in_transformers(server: FakeServer, given: Any, sent: str) -> None:
    with Client(server.target) as client:
        client.generate("a prompt", num_beams=2, early_stopping=given).text()
    assert server.service.requests[0].beam_search.stop == generation_pb2.BeamStop.Value(f"BEAM_STOP_{sent}")


def test_one_stop_text_is_one(server: FakeServer) -> None:
    with Client(server.target) as client:
        client.generate("a prompt", stop="###").text()
    assert list(server.service.requests[0].stop) == ["###"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"logit_bias": [1, 2]}, "sampling.logit_bias"),
        ({"logit_bias": {-1: 0.0}}, "sampling.logit_bias"),
        ({"logit_bias": {1: "a"}}, "sampling.logit_bias"),
        ({"stop": [b"\xff"]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"echo": "yes"}, "echo"),
        ({"early_stopping": "soon"}, "beam_search.stop"),
        ({"early_stopping": 1}, "beam_search.stop"),
        ({"num_beams": 2**31}, "beam_search.num_beams"),
        ({"request_id": 5}, "request_id"),
        ({"priority": 1.5}, "priority"),
        ({"json_schema": {"a": {1}}}, "json_schema"),
        ({"choice": "ab"}, "choice.texts"),
        ({"regex": "a", "json_object": True}, "regex"),
    ],
)
def test_what_cannot_be_sent_is_named(server: FakeServer, options: dict[str, Any], field: str) -> None:
    with Client(server.target) as client, pytest.raises(InvalidRequestError) as raised:
        client.generate("a prompt", **options)
    assert raised.value.field == field
    assert raised.value.message.startswith(f"{field}: must be ")
    assert server.service.requests == []


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ("hello", "chat.messages"),
        ({"role": "user", "content": "a"}, "chat.messages"),
        (None, "chat.messages"),
        (["hello"], "chat.messages[0]"),
        ([*MESSAGES, {"content": "a"}], "chat.messages[2]"),
        ([{"content": "a"}], "chat.messages[0]"),
        ([{"role": "user", "content": "a", "nme": "b"}], "chat.messages[0]"),
        ([{"role": "user", "content": [5]}], "chat.messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "chat.messages[0].content[0]"),
        ([{"role": "user", "content": 5}], "chat.messages[0].content"),
        ([{"role": None, "content": "a"}], "chat.messages[0].role"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "chat.messages[0].tool_calls[0].name"),
    ],
)
def test_messages_that_are_none_are_named(server: FakeServer, messages: Any, field: str) -> None:
    with Client(server.target) as client, pytest.raises(InvalidRequestError) as raised:
        client.chat(messages)
    assert raised.value.field == field
    assert server.service.requests == []


async def test_a_chat_template_is_chosen_by_name(server: FakeServer) -> None:
    with Client(server.target) as client:
        client.chat(MESSAGES, chat_template="rag").text()
        assert client.tokenize(MESSAGES, chat_template="tool_use").tokens[-1] == "tool_use"
        assert client.model_info().chat_templates == ("default", "rag")
        for call in (client.generate, client.tokenize):
            with pytest.raises(InvalidRequestError, match=r"chat\.template: must be unset without a chat"):
                call("a prompt", chat_template="rag")
    async with AsyncClient(server.target) as client:
        assert (await client.tokenize(MESSAGES, chat_template="tool_use")).tokens[-1] == "tool_use"
    assert [request.chat.template for request in server.service.requests] == ["rag"]


def test_an_unknown_option_is_refused(server: FakeServer) -> None:
    with Client(server.target) as client, pytest.raises(TypeError, match="num_beam"):
        client.generate("a prompt", num_beam=2)  # type: ignore[call-arg]


def _logprobs(token_id: int, logprob: float | None) -> generation_pb2.TokenLogprobs:
    top = [generation_pb2.Alternative(token_id=9, logprob=-0.5, text="nine")]
    return generation_pb2.TokenLogprobs(token_id=token_id, logprob=logprob, top=top, text="own")


def test_every_event_has_what_its_message_has(server: FakeServer) -> None:
    end = complete()
    end.complete.score, end.complete.stop, end.complete.text = -1.5, "", "the end"
    end.complete.token_ids.extend([4, 5])
    end.complete.usage.cached_prompt_tokens = 2
    end.complete.stop_token_id = 0
    sent = [
        GenerateResponse(prompt=generation_pb2.PromptLogprobs(tokens=[_logprobs(1, None), _logprobs(2, -0.25)])),
        GenerateResponse(beam=generation_pb2.BestBeam(token_ids=[4], text="the", score=-2.5)),
        GenerateResponse(chunk=generation_pb2.Chunk(token_ids=[4], text="t", logprobs=[_logprobs(4, -0.75)])),
        GenerateResponse(progress=generation_pb2.PromptProgress(computed_tokens=2, total_tokens=3, cached_tokens=1)),
        GenerateResponse(chunk=generation_pb2.Chunk(usage=generation_pb2.Usage(prompt_tokens=3, completion_tokens=1))),
        end,
    ]
    server.service.script = lambda request, context: iter(sent)
    with Client(server.target) as client:
        events = list(client.generate("a prompt"))
    top = (Alternative(9, -0.5, "nine"),)
    assert events[:-1] == [
        PromptLogprobs((TokenLogprobs(1, None, top, "own"), TokenLogprobs(2, -0.25, top, "own"))),
        BestBeam((4,), "the", -2.5),
        GenerationChunk(0, (4,), "t", logprobs=(TokenLogprobs(4, -0.75, top, "own"),)),
        PromptProgress(2, 3, 1),
        GenerationChunk(0, (), "", usage=Usage(3, 1)),
    ]
    last = events[-1]
    assert isinstance(last, Complete)
    assert (last.score, last.stop, last.token_ids, last.text) == (-1.5, "", (4, 5), "the end")
    assert (last.cached_prompt_tokens, last.stop_token_id) == (2, 0)


def test_a_chunk_can_be_imported_by_its_earlier_name() -> None:
    assert client_package.Chunk is GenerationChunk


def test_what_is_not_there_is_none(server: FakeServer) -> None:
    with Client(server.target) as client:
        *_, last = client.generate("a prompt")
    assert isinstance(last, Complete)
    assert (last.score, last.stop, last.token_ids, last.text) == (None, None, (), "")
    assert (last.stop_token_id, last.message) == (None, None)


def _of(index: int, text: str) -> GenerateResponse:
    response = chunk(text, 1)
    response.chunk.index = index
    return response


def _end_of(index: int, text: str = "") -> GenerateResponse:
    response = complete()
    response.complete.index, response.complete.text = index, text
    return response


async def test_texts_of_several_generations_come_by_index(server: FakeServer) -> None:
    sent = [_of(1, "b"), _of(0, "a"), _end_of(1), _of(2, "c"), _of(0, "A"), _end_of(0), _end_of(2)]
    server.service.script = lambda request, context: iter(sent)
    with Client(server.target) as client:
        generation = client.generate("a prompt", n=3)
        assert generation.num_generations == 3
        assert generation.texts() == ["aA", "b", "c"]
        assert list(generation.completes) == [1, 0, 2]
        assert generation.complete is generation.completes[0]
        assert client.generate("a prompt", n=3).text() == "aA"
    async with AsyncClient(server.target) as client:
        assert await client.generate("a prompt", n=3).texts() == ["aA", "b", "c"]


def test_texts_of_beams_are_those_of_their_ends(server: FakeServer) -> None:
    best = GenerateResponse(beam=generation_pb2.BestBeam(text="never mind"))
    server.service.script = lambda request, context: iter([best, _end_of(0, "first"), _end_of(1, "second")])
    with Client(server.target) as client:
        texts = client.generate("a prompt", num_beams=4, num_return_sequences=2, stream_best=True).texts()
    assert texts == ["first", "second"]


def test_one_end_of_several_is_no_success(server: FakeServer) -> None:
    server.service.script = lambda request, context: iter([_of(0, "a"), _end_of(0)])
    with Client(server.target) as client, pytest.raises(ServerError, match="before the generation was complete"):
        client.generate("a prompt", n=2).text()


async def test_the_requests_name_is_the_callers_or_the_servers(server: FakeServer) -> None:
    server.service.script = taken(tell_a_story)
    with Client(server.target) as client:
        assert client.generate("a prompt").request_id() == "theirs"
        assert client.generate("a prompt", request_id="mine").request_id() == "mine"
    async with AsyncClient(server.target) as client:
        assert await client.generate("a prompt").request_id() == "theirs"


async def test_abort_says_what_it_did(server: FakeServer) -> None:
    with Client(server.target) as client:
        assert (client.abort("mine"), client.abort("another")) == (True, False)
        assert client.abort_all(["another", "mine"]) == ("mine",)
        with pytest.raises(InvalidRequestError):
            client.abort(5)  # type: ignore[arg-type]
    async with AsyncClient(server.target) as client:
        assert await client.abort("mine")
        assert await client.abort_all(["mine"]) == ("mine",)


async def test_tokens_of_text_and_of_messages(server: FakeServer) -> None:
    with Client(server.target) as client:
        assert client.tokenize("a b").tokens == ("<s>", "a", "b")
        assert client.tokenize("a b").token_ids == (0, 1, 2)
        assert client.tokenize("a b", add_special_tokens=False).tokens == ("a", "b")
        assert client.tokenize(MESSAGES).tokens == ("<s>", "Be", "brief.", "Who", "are", "you?")
    async with AsyncClient(server.target) as client:
        assert (await client.tokenize("a b", add_special_tokens=False)).tokens == ("a", "b")


async def test_text_of_tokens(server: FakeServer) -> None:
    with Client(server.target) as client:
        assert client.detokenize([3, 4]) == "[3, 4] True"
        assert client.detokenize([3, 4], skip_special_tokens=False) == "[3, 4] False"
        with pytest.raises(InvalidRequestError, match="token_ids"):
            client.detokenize([-1])
    async with AsyncClient(server.target) as client:
        assert await client.detokenize([3]) == "[3] True"


def test_limits_are_among_what_the_server_tells(server: FakeServer) -> None:
    with Client(server.target) as client:
        limits = client.server_info().limits
    assert (limits.max_n, limits.max_message_bytes, limits.max_beams) == (3, 2**33, 0)
