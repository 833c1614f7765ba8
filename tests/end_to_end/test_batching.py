"""A request's tokens are those of transformers, whatever runs at the same time or was in the cache before."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from client import Client, GenerationChunk, InvalidRequestError
from gpu_service.engine.events import Event, Failed, Prompt
from gpu_service.engine.request import Request
from gpu_service.errors import NonFiniteError
from gpu_service.model_runner.kv_cache import KvCache
from gpu_service.sampling.parameters import SamplingParameters
from tests.support import reference
from tests.support.pairs import start

NUM_TOKENS = 12
TOLERANCE = 1e-4

MakeEngine = Callable[..., reference.RecordingEngine]


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return reference.load(tiny)


@pytest.fixture(scope="module")
def make_engine(tiny: Path) -> Iterator[MakeEngine]:
    """Engines in this process that share a CPU expert service."""
    pair, engines = start(tiny), list[reference.RecordingEngine]()

    def make(**more: Any) -> reference.RecordingEngine:
        engines.append(reference.RecordingEngine(tiny, pair.experts, **more))
        return engines[-1]

    try:
        pair.start("cpu_expert_service")
        pair.wait_until_serving(pair.experts)
        yield make
        for engine in engines:
            engine.close()
    finally:
        pair.close()


def _assert_equal(engine: reference.RecordingEngine, request: Request, model: Any) -> None:
    """Tokens and the logits of every step."""
    tokens, logits = reference.generate(model, request.prompt, request.ending.max_tokens)
    generation = engine.answers[request].generations[0]
    assert generation.output == tokens
    torch.testing.assert_close(torch.stack(engine.stepper.logits[generation]), logits, rtol=0, atol=TOLERANCE)


def test_what_an_earlier_request_left_changes_nothing(make_engine: MakeEngine, model: Any) -> None:
    engine = make_engine(max_slots=3)
    first = engine.request(reference.PROMPTS[2], NUM_TOKENS)
    engine.run(first)
    continued = [*first.prompt, *engine.outputs(first)[0], 9, 8, 7]
    follower, again = engine.request(continued, NUM_TOKENS), engine.request(reference.PROMPTS[2], NUM_TOKENS)
    other = engine.request([*continued[:40], 3, 4, 5], NUM_TOKENS)
    engine.run(follower, again, other)
    # the last token was generated but not computed
    cached = [engine.answers[each].cached_prompt_tokens for each in (follower, again, other)]
    assert cached == [len(first.prompt) + NUM_TOKENS - 1, len(first.prompt) - 1, 40]
    for request in (first, follower, again, other):
        _assert_equal(engine, request, model)


def test_a_budget_that_divides_its_memory_anew_changes_nothing(make_engine: MakeEngine, model: Any) -> None:
    chance = random.Random(4)
    engine = make_engine(max_slots=6, num_tokens=300, prefill_chunk=8)
    shapes: set[tuple[int, int]] = set()
    reshape = engine.model.cache.reshape

    def watched(num_rows: int, length: int, kept: Sequence[tuple[int, int, int]]) -> None:
        shapes.add((num_rows, length))
        reshape(num_rows, length, kept)

    engine.model.cache.reshape = watched  # type: ignore[method-assign]
    requests = []
    for _ in range(20):
        prompt = [chance.randrange(3, 300) for _ in range(chance.choice([3, 20, 70, 150]))]
        requests.append(engine.request(prompt, chance.randint(1, NUM_TOKENS)))
    engine.run(*requests)
    assert len(shapes) > 2
    assert all(rows * length <= 300 for rows, length in shapes)
    for request in requests:
        _assert_equal(engine, request, model)


def test_generations_of_one_request_are_those_of_single_ones(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=6)

    def request(seed: int, n: int) -> Request:
        return engine.request(
            reference.PROMPTS[1], NUM_TOKENS, n=n, sampling=SamplingParameters(temperature=1.2, top_k=30, seed=seed)
        )

    together = request(5, 3)
    engine.run(engine.request([3, 4], NUM_TOKENS), together, engine.request([5, 6], NUM_TOKENS))
    alone = [request(5 + index, 1) for index in range(3)]
    for each in alone:
        engine.run(each)
    assert engine.outputs(together) == [engine.outputs(each)[0] for each in alone]
    assert len({tuple(output) for output in engine.outputs(together)}) == 3


def test_a_prompts_log_probabilities_are_those_of_transformers(make_engine: MakeEngine, model: Any) -> None:
    engine = make_engine(prefill_chunk=32)
    request = engine.request(reference.PROMPTS[2], 2, prompt_logprobs=3)
    engine.run(engine.request(reference.PROMPTS[2], 1), request)
    (event,) = (event for event in engine.events[request] if isinstance(event, Prompt))
    with torch.inference_mode():
        expected = model(torch.tensor([request.prompt])).logits[0].log_softmax(-1)
    assert [entry.token_id for entry in event.logprobs] == request.prompt
    assert event.logprobs[0].logprob is None
    for position, entry in enumerate(event.logprobs[1:]):
        assert entry.logprob == pytest.approx(float(expected[position, entry.token_id]), abs=TOLERANCE)
        assert [token for token, _ in entry.top] == expected[position].topk(3).indices.tolist()


def test_a_row_that_holds_what_is_not_a_number_harms_neither_its_neighbours_nor_its_next_user(
    make_engine: MakeEngine, model: Any
) -> None:
    engine = make_engine(max_slots=3)
    long, failing, last = (engine.request(prompt, NUM_TOKENS) for prompt in (reference.PROMPTS[2], [5, 6, 7], [8, 9]))
    follower = engine.request([30, 31], NUM_TOKENS)  # short, so that stale content of its row would show
    forward = engine.model.forward

    def non_finite(token_ids: torch.Tensor, positions: torch.Tensor, **more: Any) -> torch.Tensor:
        logits = forward(token_ids, positions, **more)
        (generation,) = engine.answers[failing].generations
        if generation.row >= 0 and len(generation.output) == 3 and len(token_ids) > 1:
            assert isinstance(engine.model.cache, KvCache)
            for blocks in engine.model.cache._blocks.values():
                for block in blocks:
                    block.rows[generation.row, :, : generation.num_computed + 1] = torch.nan
            logits[generation.row] = torch.nan
        return logits

    engine.model.forward = non_finite  # type: ignore[method-assign]
    engine.run(long, failing, last, follower)
    end: Event = engine.events[failing][-1]
    assert isinstance(end, Failed)
    assert isinstance(end.error, NonFiniteError)
    for request in (long, last, follower):
        _assert_equal(engine, request, model)


def test_a_service_of_little_memory_lets_requests_wait_and_refuses_what_can_never_fit(tiny: Path) -> None:
    """0.0001 GiB hold 139 tokens of this model."""
    with (
        start(tiny, "--kv-memory", "0.0001", "--max-context", "512") as pair,
        Client(pair.target) as client,
        ThreadPoolExecutor(6) as threads,
    ):
        assert client.server_info().kv_bytes == 139 * 768
        lengths = list(threads.map(lambda _: len(_token_ids(client, [3, 4, 5], 60)), range(6)))
        assert lengths == [60] * 6
        with pytest.raises(
            InvalidRequestError, match=r"^max_tokens: .* 3 tokens and 137 more, in 1 row, .* room for 136"
        ):
            client.generate([3, 4, 5], max_tokens=137).text()
        with pytest.raises(InvalidRequestError, match=r"^max_tokens: .* in 2 rows, .* room for 66 after"):
            client.generate([3, 4, 5], max_tokens=67, num_beams=2).text()


def _token_ids(client: Client, prompt: list[int], max_tokens: int) -> list[int]:
    with client.generate(prompt, max_tokens=max_tokens, temperature=0) as generation:
        return [token for event in generation if isinstance(event, GenerationChunk) for token in event.token_ids]
