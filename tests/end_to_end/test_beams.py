"""Beams equal transformers' generate(num_beams=...), token for token, alone and with seven other requests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_service.engine.events import Best
from gpu_service.sampling.outputs import FinishReason
from gpu_service.sampling.parameters import BeamParameters, SamplingParameters
from pair import Pair
from tests.support import reference
from tests.support.pairs import start

NUM_TOKENS = 16
NUM_BEAMS = (1, 4, 8, 16)
PROMPT = reference.PROMPTS[1]
OTHERS = ([5, 9, 11], [12, 13, 14, 15], list(range(40, 110)), [7] * 17 + [30, 31], [200])
MAX_SLOTS = 26
"""16 beams, 4 more of another request, a request of one generation for each of OTHERS, and one spare."""

Beams = list[tuple[list[int], float]]


@pytest.fixture(scope="module")
def engine(directory: Path) -> Iterator[reference.RecordingEngine]:
    pair: Pair = start(directory)
    try:
        pair.start("cpu_expert_service")
        pair.wait_until_serving(pair.experts)
        engine = reference.RecordingEngine(directory, pair.experts, max_slots=MAX_SLOTS)
        yield engine
        engine.close()
    finally:
        pair.close()


def _expected(model: Any, num_beams: int, eos: list[int], **more: Any) -> Beams:
    """What transformers returns, without padding, and its scores; 0 for a single beam, which has none."""
    output = model.generate(
        torch.tensor([PROMPT]),
        num_beams=num_beams,
        do_sample=False,
        max_new_tokens=NUM_TOKENS,
        eos_token_id=eos or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **more,
    )
    scores = output.sequences_scores.tolist() if num_beams > 1 else [0.0]
    beams = []
    for ids, score in zip(output.sequences[:, len(PROMPT) :].tolist(), scores, strict=True):
        ends = [place for place, token in enumerate(ids) if token in eos]
        beams.append((ids[: ends[0] + 1] if ends else ids, score))
    return beams


@pytest.fixture(scope="module")
def eos(model: Any) -> list[int]:
    """Two tokens that end some beams early: the first one, and a late one, of the best beam without them."""
    best = _expected(model, 4, [])[0][0]
    return [best[NUM_TOKENS // 3], best[-2]]


@pytest.fixture(scope="module")
def expected(model: Any, eos: list[int]) -> dict[int, Beams]:
    return {count: _expected(model, count, eos, num_return_sequences=min(count, 3)) for count in NUM_BEAMS}


def _assert_beams(engine: reference.RecordingEngine, request: Any, expected: Beams, eos: list[int]) -> None:
    ends = engine.finished(request)
    assert [list(end.token_ids) for end in ends] == [token_ids for token_ids, _ in expected]
    for end, (token_ids, score) in zip(ends, expected, strict=True):
        assert end.reason is (FinishReason.EOS if token_ids[-1] in eos else FinishReason.LENGTH)
        assert end.completion_tokens == len(token_ids)
        if request.beam.num_beams > 1:
            assert end.score == pytest.approx(score, abs=1e-4)


def _request(
    engine: reference.RecordingEngine,
    num_beams: int,
    eos: list[int],
    fields: dict[str, Any] | None = None,
    max_tokens: int = NUM_TOKENS,
    **more: Any,
) -> Any:
    """A beam search; `fields` are the request's, the others the beams'."""
    beam = BeamParameters(num_beams, num_return_sequences=min(num_beams, 3), **more)
    return engine.request(PROMPT, max_tokens, beam=beam, eos_ids=frozenset(eos), **fields or {})


@pytest.mark.parametrize("num_beams", NUM_BEAMS)
def test_beams_alone(
    engine: reference.RecordingEngine, expected: dict[int, Beams], eos: list[int], num_beams: int
) -> None:
    request = _request(engine, num_beams, eos)
    engine.run(request)
    _assert_beams(engine, request, expected[num_beams], eos)


@pytest.mark.parametrize("num_beams", NUM_BEAMS)
def test_beams_with_seven_other_requests_beside(
    engine: reference.RecordingEngine, model: Any, expected: dict[int, Beams], eos: list[int], num_beams: int
) -> None:
    """Runs five greedy requests, a sampled one and other beams, and checks that all are as they would be alone."""
    beams, other_beams = _request(engine, num_beams, eos), _request(engine, 4, eos)
    sampling = SamplingParameters(temperature=0.8, top_k=20, seed=7)
    sampled = [engine.request(PROMPT, NUM_TOKENS, sampling=sampling) for _ in range(2)]
    greedy = [engine.request(prompt, NUM_TOKENS + 3 * number) for number, prompt in enumerate(OTHERS)]
    engine.run(sampled[0])
    engine.run(*greedy[:2], beams, sampled[1], *greedy[2:], other_beams)
    _assert_beams(engine, beams, expected[num_beams], eos)
    _assert_beams(engine, other_beams, expected[4], eos)
    assert engine.outputs(sampled[1]) == engine.outputs(sampled[0])
    if num_beams == NUM_BEAMS[0]:  # the same each time
        for request in greedy:
            expected_tokens, _ = reference.generate(model, request.prompt, request.ending.max_tokens)
            assert engine.outputs(request) == [expected_tokens]


@pytest.mark.parametrize(
    ("length_penalty", "early_stopping"), [(2.0, True), (0.0, False), (-0.5, "never"), (1.0, "never")]
)
def test_when_a_search_ends(
    engine: reference.RecordingEngine, model: Any, eos: list[int], length_penalty: float, early_stopping: Any
) -> None:
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    request = _request(engine, 4, eos, **options)
    engine.run(request)
    _assert_beams(engine, request, _expected(model, 4, eos, num_return_sequences=3, **options), eos)


def test_penalties_and_min_tokens(engine: reference.RecordingEngine, model: Any, eos: list[int]) -> None:
    fields = {"sampling": SamplingParameters(repetition_penalty=1.4), "min_tokens": NUM_TOKENS // 2}
    request = _request(engine, 4, eos, fields)
    engine.run(request)
    more = {"repetition_penalty": 1.4, "min_new_tokens": NUM_TOKENS // 2, "num_return_sequences": 3}
    _assert_beams(engine, request, _expected(model, 4, eos, **more), eos)


def test_the_best_so_far_leads_to_the_best(engine: reference.RecordingEngine) -> None:
    request, shorter = _request(engine, 4, [], stream_best=True), _request(engine, 4, [], max_tokens=NUM_TOKENS - 1)
    engine.run(request, shorter)
    best = [event for event in engine.events[request] if isinstance(event, Best)]
    assert [len(event.token_ids) for event in best] == list(range(1, NUM_TOKENS))
    assert engine.finished(shorter)[0].token_ids == best[-1].token_ids
    assert engine.finished(shorter)[0].score == pytest.approx(best[-1].score)
