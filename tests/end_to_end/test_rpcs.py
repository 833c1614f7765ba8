"""GenerationService apart from the tokens: request ids, Abort, chat, Tokenize, Detokenize and the descriptions."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from transformers import AutoTokenizer

from fiddler.v1 import generation_pb2
from fiddler.v1.generation_pb2 import (
    AbortRequest,
    Chat,
    ChatMessage,
    DetokenizeRequest,
    GenerateRequest,
    GetModelInfoRequest,
    GetServerInfoRequest,
    TokenizeRequest,
)
from tests.support.calls import Stub, connect, generate, generate_one, refusal, request, sampling
from tests.support.pairs import start, write_tiny

PROMPT = "the experts that are not on the GPU"
LONG = 400
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user and assistant') }}{% endif %}"
    "[{{ message.role }}] {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
PARTS_TEMPLATE = "{% for message in messages %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tiny(tmp_path_factory.mktemp("chat"))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    # as a multimodal checkpoint keeps one: elsewhere, and for content in parts
    named = {"chat_template": {"parts": PARTS_TEMPLATE, "broken": "{% if %}"}}
    (directory / "processor_config.json").write_text(json.dumps(named))
    return directory


@pytest.fixture(scope="module")
def target(directory: Path) -> Iterator[str]:
    with start(directory, "--max-beams", "4", "--max-tokens-limit", "450") as pair:
        yield pair.target


@pytest.fixture(scope="module")
def stub(target: str) -> Iterator[Stub]:
    with connect(target) as stub:
        yield stub


def _chat(*messages: tuple[str, str]) -> Chat:
    return Chat(messages=[ChatMessage(role=role, content=content) for role, content in messages])


def _code(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details() or ""


MESSAGES = (("user", "where are the weights"), ("assistant", "on the CPU"), ("user", "why"))


def test_messages_are_what_the_models_template_makes_of_them(stub: Stub, directory: Path) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(directory)
    conversation = [{"role": role, "content": content} for role, content in MESSAGES]
    ids = theirs.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert list(stub.Tokenize(TokenizeRequest(chat=_chat(*MESSAGES))).token_ids) == ids
    greedy: Any = {"max_tokens": 12, "sampling": sampling(temperature=0)}
    expected = generate_one(stub, ids, **greedy)
    chunks = [each.chunk for each in stub.Generate(GenerateRequest(chat=_chat(*MESSAGES), **greedy))]
    assert [token for chunk in chunks for token in chunk.token_ids] == expected.token_ids


def test_a_template_is_chosen_by_its_name(stub: Stub) -> None:
    assert list(stub.GetModelInfo(GetModelInfoRequest()).chat_templates) == ["default", "parts"]
    chat = _chat(*MESSAGES)
    chat.template = "parts"
    expected = stub.Tokenize(TokenizeRequest(text="".join(text for _, text in MESSAGES), add_special_tokens=False))
    assert stub.Tokenize(TokenizeRequest(chat=chat)).token_ids == expected.token_ids
    chat.template = "none"
    problem = "chat.template: no chat template is named 'none'; the model has default, parts"
    assert refusal(stub, GenerateRequest(chat=chat)) == (grpc.StatusCode.INVALID_ARGUMENT, problem)
    chat.template = "broken"
    assert "'broken' does not work" in refusal(stub, GenerateRequest(chat=chat))[1]


def test_what_the_template_refuses_is_told_in_its_words(stub: Stub) -> None:
    chat = _chat(("assistant", "hello"))
    expected = (
        grpc.StatusCode.INVALID_ARGUMENT,
        "chat.messages: the model's chat template refuses them: roles must alternate user and assistant",
    )
    assert refusal(stub, GenerateRequest(chat=chat)) == expected
    assert _code(lambda: stub.Tokenize(TokenizeRequest(chat=chat))) == expected


def test_text_is_tokenized_as_a_prompt_is_and_back(stub: Stub, directory: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(directory)
    text = "the experts é 🙂"
    answer = stub.Tokenize(TokenizeRequest(text=text))
    assert list(answer.token_ids) == theirs(text)["input_ids"]
    assert answer.tokens[:3] == ["<s>", "the", " experts"]
    plain = stub.Tokenize(TokenizeRequest(text=text, add_special_tokens=False))
    assert list(plain.token_ids) == list(answer.token_ids)[1:]
    assert stub.Detokenize(DetokenizeRequest(token_ids=answer.token_ids)).text == text
    kept = stub.Detokenize(DetokenizeRequest(token_ids=answer.token_ids, skip_special_tokens=False))
    assert kept.text == f"<s>{text}"
    assert list(stub.Tokenize(TokenizeRequest(text="", add_special_tokens=False)).token_ids) == []


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (TokenizeRequest(), "prompt: must be set: text or chat"),
        (TokenizeRequest(text="x" * 100_000), "text: 100000 characters are more than"),
        (
            TokenizeRequest(chat=_chat(*MESSAGES), add_special_tokens=True),
            "add_special_tokens: must be unset with chat",
        ),
        (DetokenizeRequest(token_ids=[1, 320]), "token_ids[1]: must be 0 to 319, the vocabulary, got 320"),
        (DetokenizeRequest(token_ids=[1] * 513), "token_ids: at most 512, the context, got 513"),
        (AbortRequest(), "request_id: must be 1 to 128 printable ASCII characters"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(stub: Stub, message: Any, text: str) -> None:
    method = getattr(stub, type(message).__name__.removesuffix("Request"))
    code, details = _code(lambda: method(message))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(text)


@pytest.mark.parametrize(
    ("method", "data", "text"),
    [
        ("Generate", b"\x0a\x02\xff\xfe", "text: must be UTF-8"),
        ("Generate", b"\x0a\x01a\x3a\x01\xff", "stop[0]: must be UTF-8"),
        ("Generate", b"\xff\xff", "GenerateRequest: the message cannot be parsed"),
        ("Tokenize", b"\x0a\x01\xff", "text: must be UTF-8"),
        ("Abort", b"\x0a\x01\xff", "request_id: must be UTF-8"),
    ],
)
def test_bytes_that_are_no_message_are_the_callers_mistake(target: str, method: str, data: bytes, text: str) -> None:
    path = f"/fiddler.v1.GenerationService/{method}"
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_stream(path) if method == "Generate" else channel.unary_unary(path)
        code, details = _code(lambda: list(call(data)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(text)


def test_a_request_has_the_name_that_it_was_given_or_one_of_its_own(stub: Stub) -> None:
    assert generate(stub, PROMPT, max_tokens=1, request_id="mine/7").request_id == "mine/7"
    first, second = (generate(stub, PROMPT, max_tokens=1).request_id for _ in range(2))
    assert first
    assert first != second


def test_a_name_belongs_to_one_request_at_a_time(stub: Stub) -> None:
    running = stub.Generate(request(PROMPT, max_tokens=LONG, request_id="twice"))
    next(running)
    again = request(PROMPT, max_tokens=1, request_id="twice")
    assert refusal(stub, again) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "request_id: a request named 'twice' is under way",
    )
    assert stub.Abort(AbortRequest(request_id="twice")).aborted
    list(running)
    assert list(stub.Generate(again))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3, "sampling": {"temperature": 1}},
        {"beam_search": {"num_beams": 3, "num_return_sequences": 2, "stream_best": True}},
    ],
    ids=["one", "n", "beams"],
)
def test_an_aborted_call_is_told_the_end_of_all_its_generations(stub: Stub, fields: dict[str, Any]) -> None:
    running = stub.Generate(request(PROMPT, max_tokens=LONG, request_id="long", **fields))
    next(running)
    assert stub.Abort(AbortRequest(request_id="long")).aborted
    assert not stub.Abort(AbortRequest(request_id="long")).aborted, "it has ended, or will by the first one"
    ends = [each.complete for each in running if each.HasField("complete")]
    assert [end.index for end in ends] == list(range(len(ends)))
    assert len(ends) == max(1, fields.get("n", 1), fields.get("beam_search", {}).get("num_return_sequences", 1))
    assert {end.finish_reason for end in ends} == {generation_pb2.FINISH_REASON_CANCELLED}


def test_abort_is_true_about_what_it_did(stub: Stub) -> None:
    """Aborts at about the time when a request ends by itself: Abort and the stream agree on which came first."""
    assert not stub.Abort(AbortRequest(request_id="nobody")).aborted
    for number in range(20):
        name, reasons = f"short-{number}", list[int]()

        def run(name: str = name, reasons: list[int] = reasons, max_tokens: int = 1 + number % 4) -> None:
            call = generate_one(stub, PROMPT, max_tokens=max_tokens, request_id=name)
            reasons.append(call.complete.finish_reason)

        caller = threading.Thread(target=run)
        caller.start()
        aborted = stub.Abort(AbortRequest(request_id=name)).aborted
        while not aborted and caller.is_alive():
            aborted = stub.Abort(AbortRequest(request_id=name)).aborted
        caller.join()
        assert reasons == [generation_pb2.FINISH_REASON_CANCELLED if aborted else generation_pb2.FINISH_REASON_LENGTH]


def test_a_waiting_request_can_be_aborted_by_the_name_that_the_server_gave_it(stub: Stub) -> None:
    slots = stub.GetServerInfo(GetServerInfoRequest()).max_slots
    running = [stub.Generate(request(PROMPT, max_tokens=LONG)) for _ in range(slots)]
    for call in running:
        next(call)
    waiting = stub.Generate(request(PROMPT, max_tokens=LONG))
    name = dict(waiting.initial_metadata())["fiddler-request-id"]
    info = _wait_until_one_waits(stub)
    assert (info.running_requests, info.used_slots) == (slots, slots)
    assert 0 < info.used_kv_bytes <= info.kv_bytes
    assert stub.Abort(AbortRequest(request_id=str(name))).aborted
    (end,) = waiting
    assert end.complete.finish_reason == generation_pb2.FINISH_REASON_CANCELLED
    assert end.complete.usage.completion_tokens == 0
    for call in running:
        call.cancel()


def _wait_until_one_waits(stub: Stub) -> generation_pb2.GetServerInfoResponse:
    """The engine reads its inbox between two steps."""
    deadline = time.monotonic() + 20
    while not (info := stub.GetServerInfo(GetServerInfoRequest())).waiting_requests:
        assert time.monotonic() < deadline, info
        time.sleep(0.02)
    return info


def test_beams_come_whole_and_the_best_so_far_on_demand(stub: Stub) -> None:
    search = {"num_beams": 4, "num_return_sequences": 3, "stream_best": True}
    messages = list(stub.Generate(request(PROMPT, max_tokens=12, beam_search=search)))
    best = [each.beam for each in messages if each.HasField("beam")]
    ends = [each.complete for each in messages if each.HasField("complete")]
    assert not any(each.HasField("chunk") for each in messages)
    assert best
    assert [end.index for end in ends] == [0, 1, 2]
    assert [end.score for end in ends] == sorted((end.score for end in ends), reverse=True)
    for end in ends:
        assert len(end.token_ids) == end.usage.completion_tokens == 12
        assert end.text == stub.Detokenize(DetokenizeRequest(token_ids=end.token_ids)).text
    plain = {name: value for name, value in search.items() if name != "stream_best"}
    assert [each.complete.token_ids for each in stub.Generate(request(PROMPT, max_tokens=12, beam_search=plain))] == [
        end.token_ids for end in ends
    ]


def test_the_server_tells_what_it_allows_and_whether_it_has_a_template(stub: Stub) -> None:
    info = stub.GetServerInfo(GetServerInfoRequest())
    assert (info.limits.max_beams, info.limits.max_n, info.limits.max_tokens) == (4, 16, 450)
    assert (info.limits.max_stop_strings, info.limits.max_stop_bytes, info.limits.max_logprobs) == (16, 1024, 20)
    assert info.limits.max_message_bytes == 2**22
    assert info.max_waiting == 256
    assert info.kv_bytes > 0
    assert info.expert_version == info.version
    assert not info.degraded
    assert stub.GetModelInfo(GetModelInfoRequest()).has_chat_template
    code, details = refusal(stub, request(PROMPT, beam_search={"num_beams": 5}))
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "beam_search.num_beams: must be 1 to 4, got 5")


def test_what_never_fits_is_refused_by_its_field(stub: Stub) -> None:
    assert refusal(stub, request(PROMPT, max_tokens=451)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "max_tokens: at most 450 are allowed here, got 451",
    )
