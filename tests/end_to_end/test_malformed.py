"""A thousand wrong requests among fifty right ones: each answer names the field, and no right one is disturbed."""

import threading
from typing import Any

import grpc
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiddler.v1.generation_pb2 import Chat, ChatMessage, GenerateRequest, GetServerInfoRequest
from pair import Pair
from tests.support.calls import Stub, connect, generate_one, refusal, request, sampling

NUM_MALFORMED, NUM_GOOD = 1000, 50
CONTEXT, VOCAB_SIZE = 512, 320
RSS_BOUND_BYTES = 32 * 2**20
"""The most by which the service may have grown after messages of almost the largest size."""

Case = tuple[GenerateRequest, str]
_INT32, _UINT32 = 2**31, 2**32
_NAN = st.just(float("nan"))
_UNKNOWN_TOKEN = st.integers(VOCAB_SIZE, _UINT32 - 1)


def _outside(least: float, most: float) -> st.SearchStrategy[float]:
    """Numbers outside least to most, infinities and NaN."""
    below, above = st.floats(max_value=least, exclude_max=True), st.floats(min_value=most, exclude_min=True)
    return below | above | _NAN


def _counts_outside(least: int, most: int) -> st.SearchStrategy[int]:
    return st.integers(-_INT32, least - 1) | st.integers(most + 1, _INT32 - 1)


_SAMPLING: dict[str, st.SearchStrategy[Any]] = {
    "temperature": _outside(0, 1e6),
    "top_k": st.integers(-_INT32, -1),
    "top_p": st.floats(max_value=0) | st.floats(min_value=1, exclude_min=True) | _NAN,
    "min_p": _outside(0, 1),
    "typical_p": st.floats(max_value=0) | st.floats(min_value=1, exclude_min=True) | _NAN,
    "repetition_penalty": _outside(0.001, 1000),
    "frequency_penalty": _outside(-2, 2),
    "presence_penalty": _outside(-2, 2),
    "seed": st.integers(2**63, 2**64 - 1),
}
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": _counts_outside(1, CONTEXT),
    "min_tokens": _counts_outside(0, CONTEXT),
    "n": _counts_outside(1, 16),
    "logprobs": _counts_outside(0, 20),
    "prompt_logprobs": _counts_outside(0, 20),
    "request_id": st.sampled_from(["", " ", "a b", "é", "\n", "a" * 129, "\0"]),
    "stop": st.lists(st.text(min_size=1, max_size=4), min_size=17, max_size=20),
}
_BEAM_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "num_beams": _counts_outside(1, 16),
    "length_penalty": _outside(-5, 5),
    "stop": st.just(0) | st.integers(4, _INT32 - 1),
    "num_return_sequences": _counts_outside(1, 3),
}
_WITH_BEAMS: dict[str, Any] = {
    "n": {"n": 2},
    "logprobs": {"logprobs": 1},
    "stop": {"stop": ["a"]},
    "sampling.temperature": {"sampling": {"temperature": 0.5}},
    "sampling.top_k": {"sampling": {"top_k": 5}},
    "sampling.top_p": {"sampling": {"top_p": 0.5}},
    "sampling.min_p": {"sampling": {"min_p": 0.5}},
    "sampling.typical_p": {"sampling": {"typical_p": 0.5}},
    "sampling.seed": {"sampling": {"seed": 1}},
}


def _named(values: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[tuple[str, Any]]:
    """One of the names, and a value for it."""
    return st.sampled_from(sorted(values)).flatmap(lambda name: st.tuples(st.just(name), values[name]))


def _wrong_stop(before: list[str], wrong: str) -> Case:
    return request("a", stop=[*before, wrong]), f"stop[{len(before)}]"


def _wrong_id(before: list[int], wrong: int, is_prompt: bool) -> Case:
    if is_prompt:
        return request([*before, wrong]), f"token_ids.ids[{len(before)}]"
    return request("a", stop_token_ids=[*before, wrong]), f"stop_token_ids[{len(before)}]"


def _wrong_prompts(length: int) -> st.SearchStrategy[Case]:
    return st.sampled_from(
        [
            (GenerateRequest(), "prompt"),
            (request(""), "text"),
            (request([]), "token_ids.ids"),
            (request([5] * length), "token_ids.ids"),
            (request("\0" * length), "text"),
            (request("x" * (CONTEXT * 100)), "text"),
        ]
    )


_STOPS = st.lists(st.text(min_size=1, max_size=9), max_size=3)
_NO_STOP = st.just("") | st.integers(1025, 4000).map(lambda size: "x" * size)
_KNOWN_TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=9)
_WRONG_BIAS = st.tuples(_UNKNOWN_TOKEN, st.just(1.0)) | st.tuples(st.just(3), _outside(-100, 100))
_MESSAGES = st.lists(st.builds(ChatMessage, role=st.text(max_size=3), content=st.text(max_size=9)))
MALFORMED: st.SearchStrategy[Case] = st.one_of(
    _named(_SAMPLING).map(lambda each: (request("a", sampling=dict([each])), f"sampling.{each[0]}")),
    _named(_FIELDS).map(lambda each: (request("a", **dict([each])), each[0])),
    _named(_BEAM_FIELDS).map(
        lambda each: (request("a", beam_search={"num_beams": 3, **dict([each])}), f"beam_search.{each[0]}")
    ),
    st.sampled_from(sorted(_WITH_BEAMS)).map(
        lambda name: (request("a", beam_search={"num_beams": 2}, **_WITH_BEAMS[name]), name)
    ),
    _WRONG_BIAS.map(
        lambda each: (request("a", sampling={"logit_bias": dict([each])}), f"sampling.logit_bias[{each[0]}]")
    ),
    st.builds(_wrong_stop, _STOPS, _NO_STOP),
    st.builds(_wrong_id, _KNOWN_TOKENS, _UNKNOWN_TOKEN, st.booleans()),
    st.integers(CONTEXT, 2 * CONTEXT).flatmap(_wrong_prompts),
    _MESSAGES.map(lambda messages: (GenerateRequest(chat=Chat(messages=messages)), "chat")),
)
"""Requests with one wrong field, and the field that the answer must name."""


def _large() -> list[Case]:
    return [
        (request("a", stop=["x" * 4_000_000]), "stop[0]"),
        (request([5] * 1_000_000), "token_ids.ids"),
        (request("a" * 4_000_000), "text"),
        (request("a", stop_token_ids=[5] * 1_000_000), "stop_token_ids"),
        (request("a", stop=["x"] * 1_000_000), "stop"),
        (request("a", sampling={"logit_bias": dict.fromkeys(range(100_000), 1.0)}), "sampling.logit_bias["),
        (GenerateRequest(chat=Chat(messages=[ChatMessage(role="user", content="a")] * 100_000)), "chat"),
    ]


def _assert_refused(stub: Stub, case: Case) -> None:
    message, field = case
    code, details = refusal(stub, message)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(field if field.endswith("[") else f"{field}: "), (message, details)


@pytest.fixture(scope="module")
def process(pair: Pair) -> psutil.Process:
    return psutil.Process(pair.processes["gpu_service"].pid)


def test_a_thousand_malformed_requests_disturb_no_good_one(pair: Pair, process: psutil.Process) -> None:
    with connect(pair.target) as stub:
        expected = generate_one(stub, "the experts", max_tokens=16, sampling=sampling(temperature=1, seed=5))
        good: list[list[int]] = []

        def ask() -> None:
            for _ in range(NUM_GOOD):
                parameters = sampling(temperature=1, seed=5)
                good.append(generate_one(stub, "the experts", max_tokens=16, sampling=parameters).token_ids)

        @settings(max_examples=NUM_MALFORMED, database=None, suppress_health_check=list(HealthCheck))
        @given(case=MALFORMED)
        def refuse(case: Case) -> None:
            _assert_refused(stub, case)

        for case in _large():
            _assert_refused(stub, case)
        before = process.memory_info().rss
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            refuse()
            for case in _large():
                _assert_refused(stub, case)
        finally:
            asking.join()
        assert good == [expected.token_ids] * NUM_GOOD
        grown = process.memory_info().rss - before
        assert grown < RSS_BOUND_BYTES
        info = stub.GetServerInfo(GetServerInfoRequest())
        assert (info.running_requests, info.waiting_requests, info.used_slots, info.used_kv_bytes) == (0, 0, 0, 0)
