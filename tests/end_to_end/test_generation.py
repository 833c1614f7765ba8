"""GenerationService through real processes: what it streams, what it refuses, and what it frees."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from client import AsyncClient, Client, Complete, FinishReason, GenerationChunk, InvalidRequestError
from fiddler.v1 import generation_pb2, generation_pb2_grpc
from gpu_service.text.tokenizer import Tokenizer
from pair import Pair
from tests.support.pairs import best_kernel

PROMPT = "the experts that are not on the GPU"
LONG = 400


@pytest.fixture
def client(pair: Pair) -> Any:
    with Client(pair.target) as client:
        yield client


def _read(generation: Any) -> tuple[list[int], str, Complete]:
    tokens: list[int] = []
    text = ""
    complete = None
    for message in generation:
        assert complete is None, "nothing follows the end"
        if isinstance(message, GenerationChunk):
            tokens += message.token_ids
            text += message.text
        else:
            complete = message
    assert complete is not None
    return tokens, text, complete


def _samples(port: int) -> dict[str, float]:
    """Values by the metric's name and its labels' values, the labels in alphabetical order."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    families = text_string_to_metric_families(text)
    return {
        " ".join([sample.name, *(sample.labels[label] for label in sorted(sample.labels))]): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_text_of_all_chunks_is_the_ids_decoded(client: Client, pair: Pair, tiny: Any) -> None:
    tokens, text, complete = _read(client.generate(PROMPT, max_tokens=80, temperature=1.0, seed=3))
    assert text == Tokenizer(tiny).decode(tokens)
    assert complete.completion_tokens == len(tokens) == 80
    assert complete.prompt_tokens == len(Tokenizer(tiny).encode(PROMPT))
    assert complete.finish_reason is FinishReason.LENGTH
    assert complete.prefill_seconds > 0
    assert complete.decode_seconds > 0


def test_the_same_seed_gives_the_same_tokens_alone_and_among_others(client: Client) -> None:
    def generate(seed: int) -> list[int]:
        return _read(client.generate(PROMPT, max_tokens=30, temperature=1.0, top_p=0.9, top_k=50, seed=seed))[0]

    alone = [generate(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(generate, range(4))) == alone
    assert len({tuple(tokens) for tokens in alone}) == 4


def test_a_stop_token_ends_and_is_among_the_ids(client: Client) -> None:
    tokens, _, _ = _read(client.generate(PROMPT, max_tokens=20, temperature=0))
    stop = tokens[7]
    stopped, _, complete = _read(client.generate(PROMPT, max_tokens=20, temperature=0, stop_token_ids=[stop]))
    assert stopped == tokens[: tokens.index(stop) + 1]
    assert complete.finish_reason is FinishReason.STOP


def test_a_text_and_its_ids_are_the_same_prompt(client: Client, tiny: Any) -> None:
    ids = Tokenizer(tiny).encode(PROMPT)
    by_text = _read(client.generate(PROMPT, max_tokens=10, temperature=0))[0]
    assert _read(client.generate(ids, max_tokens=10, temperature=0))[0] == by_text


async def test_the_asynchronous_client_reads_the_same(pair: Pair, client: Client) -> None:
    expected = _read(client.generate(PROMPT, max_tokens=10, temperature=0))[:2]
    tokens: list[int] = []
    text = ""
    async with AsyncClient(pair.target) as asynchronous:
        async for message in asynchronous.generate(PROMPT, max_tokens=10, temperature=0):
            if isinstance(message, GenerationChunk):
                tokens += message.token_ids
                text += message.text
    assert (tokens, text) == expected


@pytest.mark.parametrize(
    ("prompt", "settings", "field", "text"),
    [
        ("", {}, "text", "must not be empty"),
        ([], {}, "token_ids.ids", "must not be empty"),
        ([5] * 512, {}, "token_ids.ids", "maximum context length is 512 tokens"),
        ([5, 320], {}, "token_ids.ids[1]", "must be 0 to 319, the vocabulary, got 320"),
        ("a", {"max_tokens": -4}, "max_tokens", "must be at least 1, got -4"),
        ("a", {"max_tokens": 100_000}, "max_tokens", "leaves room for"),
        ("a", {"top_p": 7}, "sampling.top_p", "must be above 0 and at most 1, got 7"),
        ("a", {"temperature": -1}, "sampling.temperature", "got -1"),
        ("a", {"top_k": -1}, "sampling.top_k", "got -1"),
        ("a", {"stop_token_ids": [4000]}, "stop_token_ids[0]", "got 4000"),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value)[:30],
)
def test_a_wrong_request_is_refused_by_its_field(
    client: Client, prompt: Any, settings: dict[str, Any], field: str, text: str
) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        _read(client.generate(prompt, **settings))
    assert raised.value.field == field
    assert text in raised.value.message


def test_a_request_without_a_prompt_is_refused(pair: Pair) -> None:
    with grpc.insecure_channel(pair.target) as channel, pytest.raises(grpc.RpcError) as raised:
        list(generation_pb2_grpc.GenerationServiceStub(channel).Generate(generation_pb2.GenerateRequest()))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (raised.value.details() or "").startswith("prompt: must be set")


def test_a_wrong_request_disturbs_no_other(client: Client) -> None:
    expected = _read(client.generate(PROMPT, max_tokens=40, temperature=0))[0]
    generation = client.generate(PROMPT, max_tokens=40, temperature=0)
    first = next(iter(generation))
    assert isinstance(first, GenerationChunk)
    for _ in range(3):
        with pytest.raises(InvalidRequestError):
            _read(client.generate([9999]))
    assert [*first.token_ids, *_read(generation)[0]] == expected


def _wait_until_idle(client: Client) -> None:
    deadline = time.monotonic() + 20
    while (info := client.server_info()).running_requests + info.waiting_requests:
        assert time.monotonic() < deadline, info
        time.sleep(0.02)


def test_a_client_that_leaves_frees_its_slot(client: Client, pair: Pair) -> None:
    before = _samples(pair.gpu_metrics_port)["fiddler_requests_total cancelled CANCELLED"]
    generations = [client.generate(PROMPT, max_tokens=LONG) for _ in range(3)]
    for generation in generations:
        next(iter(generation))
    assert client.server_info().running_requests == 3
    for generation in generations:
        generation.cancel()
    _wait_until_idle(client)
    assert _samples(pair.gpu_metrics_port)["fiddler_requests_total cancelled CANCELLED"] == before + 3


def test_a_deadline_frees_its_slot(client: Client) -> None:
    with pytest.raises(Exception, match=r"(?i)deadline"):
        _read(client.generate(PROMPT, max_tokens=LONG, timeout=0.2))
    _wait_until_idle(client)


def test_more_requests_than_slots_are_all_served(client: Client) -> None:
    expected = _read(client.generate(PROMPT, max_tokens=8, temperature=0))[0]
    with ThreadPoolExecutor(20) as threads:
        generations = threads.map(lambda _: _read(client.generate(PROMPT, max_tokens=8, temperature=0))[0], range(20))
        assert all(tokens == expected for tokens in generations)


def test_model_and_server_describe_themselves(client: Client, tiny: Any) -> None:
    model = client.model_info()
    assert (model.name, model.model_type, model.vocab_size) == (tiny.name, "mixtral", 320)
    assert (model.num_layers, model.num_moe_layers, model.num_experts, model.num_experts_per_token) == (3, 3, 8, 2)
    assert model.max_context_tokens == 512
    assert model.expert_bytes == 3 * 8 * 3 * 64 * 96 * 4
    server = client.server_info()
    assert (server.device, server.expert_kernel, server.max_slots) == ("cpu", best_kernel(), 16)


def test_metrics_count_what_was_done(client: Client, pair: Pair) -> None:
    _wait_until_idle(client)
    before = _samples(pair.gpu_metrics_port)
    experts_before = _samples(pair.cpu_metrics_port)
    _, _, complete = _read(client.generate(PROMPT, max_tokens=10, temperature=0))
    after, experts_after = _samples(pair.gpu_metrics_port), _samples(pair.cpu_metrics_port)

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0)

    computed = complete.prompt_tokens + 9
    assert grew("fiddler_requests_total length OK") == 1
    assert grew("fiddler_prompt_tokens_total") == complete.prompt_tokens
    assert grew("fiddler_generation_tokens_total") == 10
    assert grew("fiddler_time_to_first_token_seconds_count") == 1
    assert grew("fiddler_inter_token_latency_seconds_count") == 9
    for stage in ("queue", "prefill", "decode", "end_to_end"):
        assert grew(f"fiddler_request_{stage}_seconds_count") == 1
    stages = [grew(f"fiddler_request_{stage}_seconds_sum") for stage in ("queue", "prefill", "decode")]
    assert grew("fiddler_request_end_to_end_seconds_sum") == pytest.approx(sum(stages))
    assert (grew("fiddler_step_seconds_count prefill"), grew("fiddler_step_seconds_count decode")) == (1, 9)
    assert grew("fiddler_expert_call_seconds_count") == 3 * 10
    assert grew("fiddler_expert_call_bytes_total sent") > 3 * computed * 64 * 4
    for layer in range(3):
        assert grew(f"fiddler_expert_selections_total {layer} remote") == 2 * computed
        assert sum(grew(f"fiddler_expert_selections_by_expert_total {expert} {layer}") for expert in range(8)) == (
            2 * computed
        )
        assert (
            0 < grew(f"fiddler_layer_actual_seconds_total {layer} cpu") < grew(f"fiddler_layer_seconds_total {layer}")
        )
        assert 1 < after[f"fiddler_expert_imbalance_ratio {layer}"] <= 8
    assert experts_after["fiddler_expert_rows_total"] - experts_before["fiddler_expert_rows_total"] == 3 * computed
    assert any(name.startswith("fiddler_build_info") for name in after)
    assert any(name.startswith("fiddler_build_info") for name in experts_after)
