import re
from typing import Any, cast

import pytest
from google.rpc import error_details_pb2
from transformers import GenerationConfig

from fiddler.v1.generation_pb2 import (
    BEAM_STOP_EARLY,
    BEAM_STOP_NEVER,
    BeamSearch,
    Chat,
    ChatMessage,
    GenerateRequest,
    SamplingParameters,
    TokenIds,
)
from gpu_service.api.requests.validation import parse_request
from gpu_service.api.statuses import status_of
from gpu_service.engine.request import Request
from gpu_service.errors import ContextLengthError, RequestError
from gpu_service.sampling import parameters
from gpu_service.sampling.parameters import BeamParameters
from gpu_service.settings import RequestLimits
from gpu_service.text.chat_template import (
    ChatTemplateError,
    ChatTemplates,
    LostMessageError,
    UnknownTemplateError,
)

LIMITS = RequestLimits(max_n=4, max_beams=6, max_stop_strings=3, max_stop_bytes=8, max_logprobs=5)


class _Model:
    vocab_size = 50
    max_context = 16
    eos_ids = frozenset({2})
    start_token_id: int | None = None
    forced_bos_token_id: int | None = None
    generation_config = GenerationConfig(do_sample=False)  # type: ignore[no-untyped-call]


class _SamplingModel(_Model):
    generation_config = GenerationConfig(do_sample=True, temperature=0.8, top_p=0.9, min_p=0.1)  # type: ignore[no-untyped-call]


class _Tokenizer:
    """One token for each character, none for a space, and one for ~ that the model does not know."""

    longest_token = 2
    has_chat_template = True

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [99 if character == "~" else ord(character) % 50 for character in text if character != " "]

    def render(self, messages: list[dict[str, str]], template: str | None = None, **_: object) -> str:
        if template == "missing":
            raise UnknownTemplateError("no chat template is named 'missing'")
        if messages[0]["role"] == "nobody":
            raise ChatTemplateError("nobody may not speak")
        if messages[-1]["role"] == "unheard":
            raise LostMessageError(len(messages) - 1, "unheard")
        return "".join(f"{message['role'][0]}{message['content']}" for message in messages)


class _PlainTokenizer(_Tokenizer):
    has_chat_template = False
    chat_templates = ChatTemplates({}, {})


class _BrokenTokenizer(_PlainTokenizer):
    chat_templates = ChatTemplates({"default": "no question"}, {})


def _parse(model: Any = _Model, tokenizer: Any = _Tokenizer, limits: RequestLimits = LIMITS, **fields: Any) -> Request:
    return parse_request(
        GenerateRequest(**fields), model=model(), tokenizer=tokenizer(), limits=limits, emit=lambda event: None
    )


def _ids(*ids: int) -> TokenIds:
    return TokenIds(ids=ids)


def _chat(*messages: tuple[str, str], template: str | None = None) -> Chat:
    return Chat(messages=[ChatMessage(role=role, content=content) for role, content in messages], template=template)


def _beams(num_beams: int = 2, **fields: Any) -> BeamSearch:
    return BeamSearch(num_beams=num_beams, **fields)


NAN, INFINITY = float("nan"), float("inf")
_SAMPLING = [
    ("temperature", -0.5, "got -0.5"),
    ("temperature", NAN, "got nan"),
    ("temperature", INFINITY, "got inf"),
    ("temperature", 2e6, "must be 0 to 1000000, got 2e+06"),
    ("top_k", -3, "must be 0 or above, got -3"),
    ("top_p", 7, "must be above 0 and at most 1, got 7"),
    ("top_p", 0, "got 0"),
    ("top_p", NAN, "got nan"),
    ("min_p", -0.1, "must be 0 to 1, got -0.1"),
    ("min_p", 1.1, "got 1.1"),
    ("typical_p", 0, "must be above 0 and at most 1, got 0"),
    ("typical_p", NAN, "got nan"),
    ("repetition_penalty", 0, "must be 0.001 to 1000, got 0"),
    ("repetition_penalty", -1, "got -1"),
    ("repetition_penalty", INFINITY, "got inf"),
    ("frequency_penalty", 2.5, "must be -2 to 2, got 2.5"),
    ("presence_penalty", -2.5, "got -2.5"),
    ("presence_penalty", NAN, "got nan"),
    ("seed", 2**63, "at most 2^63 - 1"),
]


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({}, "prompt", "must be set"),
        ({"text": ""}, "text", "must not be empty"),
        ({"text": "   "}, "text", "must not be empty"),
        ({"token_ids": _ids()}, "token_ids.ids", "must not be empty"),
        ({"text": "x" * 16}, "text", "the maximum context length is 16 tokens"),
        (
            {"token_ids": _ids(*[1] * 16)},
            "token_ids.ids",
            "the maximum context length is 16 tokens, of which one is for the output",
        ),
        (
            {"token_ids": _ids(*[1] * 1_000_000)},
            "token_ids.ids",
            "the maximum context length is 16 tokens, of which one is for the output",
        ),
        ({"token_ids": _ids(1, 50)}, "token_ids.ids[1]", "must be 0 to 49, the vocabulary, got 50"),
        ({"text": "x~"}, "text[1]", "must be 0 to 49, the vocabulary, got 99"),
        ({"text": "x" * 33}, "text", "33 characters are more than the context of 16 tokens holds"),
        ({"chat": _chat()}, "chat.messages", "must not be empty"),
        ({"chat": _chat(*[("a", "")] * 17)}, "chat.messages", "17 are more than the context of 16 tokens holds"),
        ({"chat": _chat(("a", "b"), ("", "b"))}, "chat.messages[1].role", "must not be empty"),
        ({"chat": _chat(("a", "x" * 32))}, "chat.messages", "33 characters are more than"),
        ({"chat": _chat(("user", "a"), ("unheard", "b"))}, "chat.messages[1].content", "leaves out this text"),
        ({"chat": _chat(("user", "a"), template="missing")}, "chat.template", "no chat template is named 'missing'"),
        ({"chat": _chat(("nobody", "b"))}, "chat.messages", "chat template refuses them: nobody may not speak"),
        ({"chat": _chat(("a", "~"))}, "chat[1]", "the vocabulary, got 99"),
        (
            {"chat": _chat(("a", "x" * 20))},
            "chat",
            "the maximum context length is 16 tokens, of which one is for the output",
        ),
        ({"text": "x", "stop_token_ids": [99]}, "stop_token_ids[0]", "got 99"),
        ({"text": "x", "stop_token_ids": [1] * 51}, "stop_token_ids", "at most 50, the vocabulary's size, got 51"),
        ({"text": "x", "max_tokens": -1}, "max_tokens", "must be at least 1, got -1"),
        ({"text": "x", "max_tokens": 0}, "max_tokens", "must be at least 1, got 0"),
        ({"text": "xxx", "max_tokens": 14}, "max_tokens", "leaves room for 13 after the prompt, got 14"),
        ({"text": "x", "min_tokens": -1}, "min_tokens", "got -1"),
        ({"text": "x", "max_tokens": 3, "min_tokens": 4}, "min_tokens", "must be 0 to 3"),
        ({"text": "x", "min_tokens": 1, "stop_token_ids": range(50)}, "min_tokens", "every token of the vocabulary"),
        ({"text": "x", "stop": ["a", ""]}, "stop[1]", "must not be empty"),
        ({"text": "x", "stop": ["a"] * 4}, "stop", "at most 3, got 4"),
        ({"text": "x", "stop": ["b", "é" * 5]}, "stop[1]", "at most 8 bytes, got 10"),
        ({"text": "x", "stop": ["b" * 10_000_000]}, "stop[0]", "at most 8 bytes, got 10000000"),
        ({"text": "x", "n": 0}, "n", "must be 1 to 4, got 0"),
        ({"text": "x", "n": 5}, "n", "must be 1 to 4, got 5"),
        ({"text": "x", "truncate_prompt": -1}, "truncate_prompt", "must be at least 0, got -1"),
        ({"text": "x", "logprobs": -1}, "logprobs", "must be 0 to 5, got -1"),
        ({"text": "x", "prompt_logprobs": 6}, "prompt_logprobs", "must be 0 to 5, got 6"),
        ({"text": "x", "request_id": ""}, "request_id", "1 to 128 printable ASCII characters"),
        ({"text": "x", "request_id": "a b"}, "request_id", "got 'a b'"),
        ({"text": "x", "request_id": "é"}, "request_id", "got"),
        ({"text": "x", "request_id": "a" * 129}, "request_id", "got"),
        ({"text": "x", "request_id": "a\n"}, "request_id", "got"),
        ({"text": "x", "beam_search": _beams(0)}, "beam_search.num_beams", "must be 1 to 6, got 0"),
        ({"text": "x", "beam_search": _beams(7)}, "beam_search.num_beams", "got 7"),
        ({"text": "x", "beam_search": _beams(2, num_return_sequences=3)}, "beam_search.num_return_sequences", "1 to 2"),
        ({"text": "x", "beam_search": _beams(2, num_return_sequences=0)}, "beam_search.num_return_sequences", "got 0"),
        ({"text": "x", "beam_search": _beams(2, length_penalty=6)}, "beam_search.length_penalty", "must be -5 to 5"),
        ({"text": "x", "beam_search": _beams(2, length_penalty=NAN)}, "beam_search.length_penalty", "got nan"),
        ({"text": "x", "beam_search": _beams(2, stop=0)}, "beam_search.stop", "must be one of BEAM_STOP_HEURISTIC"),
        ({"text": "x", "beam_search": _beams(2, stop=9)}, "beam_search.stop", "got 9"),
        ({"text": "x", "beam_search": _beams(), "n": 2}, "n", "must be 1 or unset with beam_search, got 2"),
        ({"text": "x", "beam_search": _beams(), "n": 0}, "n", "must be 1 or unset with beam_search, got 0"),
        ({"text": "x", "beam_search": _beams(), "logprobs": 0}, "logprobs", "must be unset with beam_search"),
        ({"text": "x", "beam_search": _beams(), "stop": ["a"]}, "stop", "must be unset with beam_search"),
    ]
    + [
        ({"text": "x", "sampling": SamplingParameters(**cast("Any", {name: value}))}, f"sampling.{name}", text)
        for name, value, text in _SAMPLING
    ]
    + [
        ({"text": "x", "sampling": SamplingParameters(logit_bias={token: bias})}, f"sampling.logit_bias[{token}]", text)
        for token, bias, text in [
            (50, 1.0, "token ids are 0 to 49, the vocabulary"),
            (3, 101.0, "must be -100 to 100, got 101"),
            (3, NAN, "got nan"),
        ]
    ]
    + [
        (
            {"text": "x", "beam_search": _beams(), "sampling": SamplingParameters(**cast("Any", {name: value}))},
            f"sampling.{name}",
            "with beam_search, which draws nothing",
        )
        for name, value in [
            ("temperature", 0.5),
            ("top_k", 3),
            ("top_p", 0.5),
            ("min_p", 0.5),
            ("typical_p", 0.5),
            ("seed", 1),
        ]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str, text: str) -> None:
    _assert_refused(field, text, fields)


def _assert_refused(field: str, text: str, fields: dict[str, Any], **parts: Any) -> None:
    with pytest.raises(RequestError) as raised:
        _parse(**fields, **parts)
    assert raised.value.code == "INVALID_ARGUMENT"
    assert raised.value.field == field
    assert text in str(raised.value)


@pytest.mark.parametrize(
    "fields",
    [{"text": "x" * 16}, {"text": "x" * 99}, {"chat": _chat(*[("a", "")] * 17)}, {"text": "x", "max_tokens": 16}],
    ids=["tokens", "characters", "messages", "output"],
)
def test_what_is_longer_than_the_context_is_an_error_that_programs_know(fields: dict[str, Any]) -> None:
    with pytest.raises(ContextLengthError) as raised:
        _parse(**fields)
    (details,) = status_of(raised.value).details
    assert isinstance(details, error_details_pb2.BadRequest)
    assert [violation.reason for violation in details.field_violations] == ["CONTEXT_LENGTH_EXCEEDED"]


def test_a_chat_needs_a_template() -> None:
    fields = {"chat": _chat(("user", "a"))}
    _assert_refused("chat", "the model has no chat template", fields, tokenizer=_PlainTokenizer)
    _assert_refused("chat", "'default' does not work: it leaves out what", fields, tokenizer=_BrokenTokenizer)


def test_the_last_of_n_needs_a_seed_too() -> None:
    fields: dict[str, Any] = {"text": "x", "n": 4, "sampling": SamplingParameters(temperature=1, seed=2**63 - 4)}
    assert _parse(**fields).sampling.seed == 2**63 - 4
    fields["sampling"] = SamplingParameters(temperature=1, seed=2**63 - 3)
    _assert_refused("sampling.seed", "must be at most 2^63 - 4", fields)


def test_the_limit_of_max_tokens_holds_for_what_is_unset_as_well() -> None:
    limits = RequestLimits(max_tokens=5)
    assert _parse(text="x", limits=limits).ending.max_tokens == 5
    assert _parse(text="x", max_tokens=5, limits=limits).ending.max_tokens == 5
    _assert_refused("max_tokens", "at most 5 are allowed here, got 6", {"text": "x", "max_tokens": 6}, limits=limits)


def test_an_open_end_has_the_room_that_keys_and_values_leave() -> None:
    def of(**fields: Any) -> Request:
        message = GenerateRequest(text="abc", **fields)
        model: Any = _Model()
        tokenizer: Any = _Tokenizer()
        return parse_request(
            message,
            model=model,
            tokenizer=tokenizer,
            limits=LIMITS,
            emit=lambda event: None,
            longest=lambda rows: 16 // rows,
        )

    assert of().ending.max_tokens == 13
    assert of(n=2).ending.max_tokens == 5
    assert of(n=4).ending.max_tokens == 1
    assert of(beam_search=_beams(3)).ending.max_tokens == 2
    asked = of(n=4, max_tokens=9)
    assert (asked.ending.max_tokens, asked.is_open_ended) == (9, False), "the engine refuses it"


def test_greedy_generations_may_be_several() -> None:
    assert _parse(text="x", n=2).n == 2


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"truncate_prompt": 2}, "st"),
        ({"truncate_prompt": 30, "max_tokens": 3}, None),
        ({"truncate_prompt": 0, "max_tokens": 3}, "hijklmnopqrst"),
        ({"truncate_prompt": 0}, "fghijklmnopqrst"),
    ],
)
def test_of_a_long_prompt_the_last_tokens_are_kept(fields: dict[str, Any], prompt: str | None) -> None:
    text = "abcdefghijklmnopqrst"
    if prompt is None:
        _assert_refused("text", "the maximum context length is 16 tokens", {"text": text, **fields})
    else:
        assert _parse(text=text, **fields).prompt == _Tokenizer().encode(prompt)


def test_what_is_unset_has_its_default() -> None:
    request = _parse(text="abc")
    assert request.prompt == [47, 48, 49]
    assert request.sampling == parameters.SamplingParameters()
    assert (request.ending.max_tokens, request.is_open_ended) == (13, True), "the room that is left"
    assert request.ending.eos_ids == frozenset({2})
    assert request.ending.stop_ids == frozenset()
    assert (request.stop, request.beam, request.logprobs, request.prompt_logprobs) == (None, None, None, None)
    assert (request.n, request.ending.min_tokens, request.priority) == (1, 0, 0)
    assert re.fullmatch("[0-9a-f]{32}", request.request_id)
    assert request.request_id != _parse(text="abc").request_id


def test_what_is_set_is_kept() -> None:
    request = _parse(
        token_ids=_ids(4, 5),
        max_tokens=14,
        min_tokens=3,
        stop_token_ids=[8, 9],
        stop=["ab", "c"],
        include_stop_in_output=True,
        ignore_eos=True,
        n=3,
        logprobs=2,
        prompt_logprobs=0,
        priority=-4,
        request_id="mine",
        sampling=SamplingParameters(
            temperature=0.5, top_k=3, top_p=1, seed=2**63 - 3, min_p=0.25, typical_p=0.75, repetition_penalty=1.5,
            frequency_penalty=-1, presence_penalty=2, logit_bias={4: -100},
        ),
    )  # fmt: skip
    assert (request.prompt, request.ending.max_tokens, request.ending.min_tokens) == ([4, 5], 14, 3)
    assert (request.ending.stop_ids, request.ending.eos_ids) == (frozenset({8, 9}), frozenset())
    assert request.stop is not None
    assert (request.stop.strings, request.stop.include, request.stop.min_tokens) == (("ab", "c"), True, 3)
    assert (request.n, request.logprobs, request.prompt_logprobs) == (3, 2, 0)
    assert (request.priority, request.request_id) == (-4, "mine")
    assert request.sampling == parameters.SamplingParameters(
        0.5, 3, 1.0, 2**63 - 3, 1.5, 0.25, 0.75, -1.0, 2.0, ((4, -100.0),)
    )


def test_messages_are_a_prompt() -> None:
    assert _parse(chat=_chat(("user", "b"), ("assistant", "d"))).prompt == _Tokenizer().encode("ubad")


def test_beams_draw_nothing_even_where_the_model_samples_by_default() -> None:
    sampling = SamplingParameters(temperature=0, top_k=0, top_p=1, repetition_penalty=1.5, logit_bias={3: 1})
    request = _parse(_SamplingModel, text="x", beam_search=_beams(3), sampling=sampling)
    assert request.beam == BeamParameters(3)
    assert request.sampling == parameters.SamplingParameters(repetition_penalty=1.5, logit_bias=((3, 1.0),))
    assert _parse(_SamplingModel, text="x", n=2).sampling == parameters.SamplingParameters(0.8, 50, 0.9, min_p=0.1)


@pytest.mark.parametrize(
    ("stop", "early_stopping"), [(BEAM_STOP_EARLY, True), (BEAM_STOP_NEVER, "never"), (None, False)]
)
def test_a_search_is_kept(stop: Any, early_stopping: Any) -> None:
    search = _beams(3, length_penalty=-1.5, num_return_sequences=2, stream_best=True, stop=stop)
    request = _parse(text="x", n=1, beam_search=search)
    assert request.beam == BeamParameters(3, -1.5, early_stopping, 2, True)


def test_a_temperature_near_zero_takes_the_likeliest_token() -> None:
    sampling = SamplingParameters(temperature=1e-6, top_p=0.9)
    assert _parse(text="x", sampling=sampling).sampling == parameters.SamplingParameters(top_p=0.9)
    beams = _parse(text="x", beam_search=_beams(3), sampling=SamplingParameters(temperature=1e-6))
    assert beams.sampling == parameters.SamplingParameters()
    assert _parse(text="x", sampling=SamplingParameters(temperature=0.001)).sampling.temperature == 0.001
