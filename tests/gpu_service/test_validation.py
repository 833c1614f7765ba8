from typing import Any, cast

import grpc
import pytest
from transformers import GenerationConfig

from fiddler import rpc
from fiddler.v1.generation_pb2 import GenerateRequest, SamplingParameters, TokenIds
from gpu_service import sampling_parameters
from gpu_service.request import Request
from gpu_service.validation import parse_request


class _Model:
    vocab_size = 50
    max_context = 16
    eos_ids = frozenset({2})
    generation_config = GenerationConfig(do_sample=False)  # type: ignore[no-untyped-call]


class _Tokenizer:
    """One token for each character, none for a space, and one for ~ that the model does not know."""

    longest_token = 2

    def encode(self, text: str) -> list[int]:
        return [99 if character == "~" else ord(character) % 50 for character in text if character != " "]


def _parse(**fields: Any) -> Request:
    return parse_request(
        GenerateRequest(**fields), cast("Any", _Model()), cast("Any", _Tokenizer()), lambda event: None
    )


def _ids(*ids: int) -> TokenIds:
    return TokenIds(ids=ids)


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({}, "prompt", "must be set"),
        ({"text": ""}, "text", "must not be empty"),
        ({"text": "   "}, "text", "must not be empty"),
        ({"token_ids": _ids()}, "token_ids.ids", "must not be empty"),
        ({"text": "x" * 16}, "text", "at most 15 tokens"),
        ({"token_ids": _ids(*[1] * 16)}, "token_ids.ids", "at most 15 tokens"),
        ({"token_ids": _ids(1, 50)}, "token_ids.ids[1]", "must be 0 to 49, the vocabulary, got 50"),
        ({"text": "x~"}, "text[1]", "must be 0 to 49, the vocabulary, got 99"),
        ({"text": "x" * 33}, "text", "33 characters are more than the context of 16 tokens holds"),
        ({"text": "x", "stop_token_ids": [99]}, "stop_token_ids[0]", "got 99"),
        ({"text": "x", "max_tokens": -1}, "max_tokens", "must be at least 1, got -1"),
        ({"text": "x", "max_tokens": 0}, "max_tokens", "must be at least 1, got 0"),
        ({"text": "xxx", "max_tokens": 14}, "max_tokens", "leaves room for 13 after the prompt, got 14"),
    ]
    + [
        ({"text": "x", "sampling": SamplingParameters(**cast("Any", {name: value}))}, f"sampling.{name}", text)
        for name, value, text in [
            ("temperature", -0.5, "got -0.5"),
            ("temperature", 1e-9, "got 1e-09"),
            ("temperature", float("nan"), "got nan"),
            ("temperature", float("inf"), "got inf"),
            ("top_k", -3, "must be 0 or above, got -3"),
            ("top_p", 7, "must be above 0 and at most 1, got 7"),
            ("top_p", 0, "got 0"),
            ("top_p", float("nan"), "got nan"),
            ("seed", 2**63, "at most 2^63 - 1"),
        ]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str, text: str) -> None:
    with pytest.raises(rpc.StatusError) as raised:
        _parse(**fields)
    assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.message.startswith(f"{field}: ")
    assert text in raised.value.message


def test_what_is_unset_has_its_default() -> None:
    request = _parse(text="abc")
    assert request.prompt == [47, 48, 49]
    assert request.sampling == sampling_parameters.SamplingParameters()
    assert request.max_tokens == 13, "256, or the room that is left"
    assert request.eos_ids == frozenset({2})
    assert request.stop_ids == frozenset()


def test_what_is_set_is_kept() -> None:
    request = _parse(
        token_ids=_ids(4, 5),
        max_tokens=14,
        stop_token_ids=[8, 9],
        sampling=SamplingParameters(temperature=0.5, top_k=3, top_p=1, seed=2**63 - 1),
    )
    assert request.prompt == [4, 5]
    assert request.max_tokens == 14
    assert request.stop_ids == frozenset({8, 9})
    assert request.sampling == sampling_parameters.SamplingParameters(0.5, 3, 1.0, 2**63 - 1)
