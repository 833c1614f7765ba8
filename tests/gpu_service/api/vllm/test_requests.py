"""VllmEngine's requests in the service's own words."""

from typing import Any

import pytest
from smg_grpc_proto import vllm_engine_pb2 as engine

from fiddler.v1 import generation_pb2
from gpu_service.api.vllm.requests import request_of
from gpu_service.errors import RequestError


def _of(**params: Any) -> generation_pb2.GenerateRequest:
    return request_of(engine.GenerateRequest(text="a", sampling_params=engine.SamplingParams(**params)))


def test_everything_has_its_place() -> None:
    params = engine.SamplingParams(
        temperature=0.5, top_p=0.25, top_k=3, min_p=0.125, frequency_penalty=1, presence_penalty=-1,
        repetition_penalty=2, max_tokens=7, min_tokens=2, stop=["x"], stop_token_ids=[4], ignore_eos=True, n=2,
        logprobs=1, prompt_logprobs=0,
        seed=-1, include_stop_str_in_output=True, logit_bias={5: -1.0}, truncate_prompt_tokens=-1, regex="a+",
    )  # fmt: skip
    request = engine.GenerateRequest(
        request_id="r", tokenized=engine.TokenizedInput(input_ids=[1, 2]), sampling_params=params
    )
    assert request_of(request) == generation_pb2.GenerateRequest(
        request_id="r",
        token_ids=generation_pb2.TokenIds(ids=[1, 2]),
        sampling=generation_pb2.SamplingParameters(
            temperature=0.5, top_p=0.25, top_k=3, min_p=0.125, frequency_penalty=1, presence_penalty=-1,
            repetition_penalty=2, seed=2**31 - 1, logit_bias={5: -1.0},
        ),
        max_tokens=7, min_tokens=2, stop=["x"], stop_token_ids=[4], ignore_eos=True, n=2, logprobs=1, prompt_logprobs=0,
        include_stop_in_output=True, truncate_prompt=0, regex="a+",
    )  # fmt: skip


def test_numbers_that_mean_nothing_are_unset() -> None:
    request = _of(top_k=2**32 - 1)
    assert request.sampling.top_k == 0
    for name in ("temperature", "top_p", "repetition_penalty", "seed"):
        assert not request.sampling.HasField(name)
    assert not request.HasField("max_tokens")
    assert (request.n, request.HasField("request_id")) == (1, False)


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ({"json_schema": "{}"}, {"json_schema": "{}"}),
        ({"grammar": "start: A"}, {"grammar": "start: A"}),
        ({"json_object": True}, {"json_object": True}),
        ({"choice": engine.ChoiceConstraint(choices=["a", "b"])}, {"choice": generation_pb2.Choices(texts=["a", "b"])}),
    ],
)
def test_constraints_are_the_same(constraint: dict[str, Any], expected: dict[str, Any]) -> None:
    ((name, value),) = expected.items()
    request = _of(**constraint)
    assert request.WhichOneof("constraint") == name
    assert getattr(request, name) == value


def test_a_bias_of_no_token_is_refused() -> None:
    with pytest.raises(RequestError) as raised:
        _of(logit_bias={-1: 1.0})
    assert raised.value.field == "sampling_params.logit_bias[-1]"
