"""VllmEngine, as which a router calls the service: the same tokens as GenerationService's."""

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from smg_grpc_proto import vllm_engine_pb2 as engine
from smg_grpc_proto import vllm_engine_pb2_grpc
from smg_grpc_proto.generated import common_pb2

from client import Client
from pair import Pair

PROMPT = [1, 340, 520, 77]


@pytest.fixture(scope="module")
def stub(parsed_pair: Pair) -> Iterator[Any]:
    with grpc.insecure_channel(parsed_pair.target) as channel:
        yield vllm_engine_pb2_grpc.VllmEngineStub(channel)


def _request(stream: bool = True, **params: Any) -> engine.GenerateRequest:
    sampling = engine.SamplingParams(**{"temperature": 0.0, "max_tokens": 9, "top_p": 1.0, **params})
    tokenized = engine.TokenizedInput(input_ids=PROMPT)
    return engine.GenerateRequest(tokenized=tokenized, sampling_params=sampling, stream=stream)


def test_tokens_are_those_of_the_services_own_api_streamed_and_whole(stub: Any, parsed_pair: Pair) -> None:
    *chunks, end = stub.Generate(_request(logprobs=2))
    (whole,) = stub.Generate(_request(stream=False, logprobs=2))
    with Client(parsed_pair.target) as client:
        own = client.generate(PROMPT, max_tokens=9, temperature=0)
        expected = [each for response in own.responses() for each in response.chunk.token_ids]
    assert len(expected) == 9
    assert [each for response in chunks for each in response.chunk.token_ids] == expected
    assert list(whole.complete.output_ids) == list(end.complete.output_ids) == expected
    assert (end.complete.finish_reason, end.complete.prompt_tokens, end.complete.completion_tokens) == ("length", 4, 9)
    assert chunks[-1].chunk.completion_tokens == 9
    logprobs = whole.complete.output_logprobs
    assert list(logprobs.token_ids) == expected
    assert [top.values[0] for top in logprobs.top_logprobs] == pytest.approx(list(logprobs.token_logprobs))


def test_several_generations_have_their_indices_and_the_stop_that_ended_them(stub: Any) -> None:
    first = next(iter(stub.Generate(_request(stream=False)))).complete.output_ids
    ends = [each.complete for each in stub.Generate(_request(stream=False, n=2, stop_token_ids=[first[2]]))]
    assert sorted(end.index for end in ends) == [0, 1]
    assert {(end.finish_reason, end.matched_token_id) for end in ends} == {("stop", first[2])}


def test_a_schema_is_followed(stub: Any, parsed_pair: Pair) -> None:
    schema = (
        '{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": false}'
    )
    (whole,) = stub.Generate(_request(stream=False, json_schema=schema, max_tokens=60))
    with Client(parsed_pair.target) as client:
        assert json.loads(client.detokenize(whole.complete.output_ids))["a"] in (1, 2)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_request(top_p=3.0), "sampling.top_p"),
        (_request(structural_tag="{}"), "sampling_params.structural_tag"),
        (engine.GenerateRequest(text="a", media_refs=engine.MediaRefs(items=[engine.MediaRef()])), "media_refs"),
        (engine.GenerateRequest(), "prompt"),
    ],
)
def test_what_is_wrong_is_named(stub: Any, request_: Any, field: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        list(stub.Generate(request_))
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"{field}: ")


def test_the_model_the_load_and_the_tokenizer_are_described(stub: Any, parsed_pair: Pair) -> None:
    assert stub.HealthCheck(engine.HealthCheckRequest()).healthy
    model = stub.GetModelInfo(engine.GetModelInfoRequest())
    assert (model.is_generation, model.vocab_size, list(model.eos_token_ids)) == (True, 3072, [2])
    assert model.served_model_name
    assert stub.GetServerInfo(engine.GetServerInfoRequest()).max_num_seqs > 0
    (load,) = stub.GetLoads(engine.GetLoadsRequest()).loads
    assert load.num_running_reqs == 0
    stub.Abort(engine.AbortRequest(request_ids=["nobody"]))
    pieces = list(stub.GetTokenizer(common_pb2.GetTokenizerRequest()))
    assert [bool(piece.sha256) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    with zipfile.ZipFile(io.BytesIO(b"".join(piece.data for piece in pieces))) as archive:
        assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(archive.namelist())
        assert not any(name.endswith(".safetensors") for name in archive.namelist())
