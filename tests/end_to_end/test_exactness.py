"""Tokens and logits equal transformers', family by family, through real processes and a real socket."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from client import Client, Complete, GenerationChunk
from pair import Pair
from tests.support import checkpoints, reference
from tests.support.pairs import start, write_tiny

NUM_TOKENS = 64
LOGITS_TOLERANCE = 1e-4
"""Largest difference of a logit in float32; matrices drawn at 0.2 make logits of about 10."""

Expected = list[tuple[list[int], torch.Tensor]]


@pytest.fixture(scope="module", params=checkpoints.FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def expected(family: Path) -> Expected:
    model = reference.load(family)
    return [reference.generate(model, prompt, NUM_TOKENS) for prompt in reference.PROMPTS]


@pytest.fixture(scope="module")
def family_pair(family: Path) -> Iterator[Pair]:
    with start(family) as pair:
        yield pair


@pytest.fixture(scope="module")
def engine(family: Path, family_pair: Pair) -> Iterator[reference.RecordingEngine]:
    """An engine in this process on the pair's CPU expert service."""
    engine = reference.RecordingEngine(family, family_pair.experts)
    yield engine
    engine.close()


def _tokens(client: Client, prompt: list[int]) -> list[int]:
    tokens: list[int] = []
    for message in client.generate(prompt, max_tokens=NUM_TOKENS, temperature=0):
        if isinstance(message, Complete):
            assert message.completion_tokens == len(tokens)
        elif isinstance(message, GenerationChunk):
            tokens.extend(message.token_ids)
    return tokens


def _assert_equal(actual: Expected, expected: Expected) -> None:
    for (tokens, logits), (expected_tokens, expected_logits) in zip(actual, expected, strict=True):
        torch.testing.assert_close(logits, expected_logits, rtol=0, atol=LOGITS_TOLERANCE)
        assert tokens == expected_tokens


def test_one_prompt_at_a_time_gives_the_tokens_of_transformers(family_pair: Pair, expected: Expected) -> None:
    with Client(family_pair.target) as client:
        for prompt, (tokens, _) in zip(reference.PROMPTS, expected, strict=True):
            assert _tokens(client, prompt) == tokens


def test_prompts_of_three_lengths_at_once_give_the_same_tokens(family_pair: Pair, expected: Expected) -> None:
    with Client(family_pair.target) as client, ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda prompt: _tokens(client, prompt), reference.PROMPTS))
    assert together == [tokens for tokens, _ in expected]


def test_logits_agree_at_every_step_alone(engine: reference.RecordingEngine, expected: Expected) -> None:
    _assert_equal([engine.generate([prompt], NUM_TOKENS)[0] for prompt in reference.PROMPTS], expected)


def test_logits_agree_at_every_step_in_a_ragged_batch(engine: reference.RecordingEngine, expected: Expected) -> None:
    _assert_equal(engine.generate(reference.PROMPTS, NUM_TOKENS), expected)


def test_one_expert_scaled_by_a_hundredth_is_noticed(family: Path, expected: Expected, tmp_path: Path) -> None:
    scaled = Path(shutil.copytree(family, tmp_path / "scaled"))
    checkpoints.scale_expert(scaled, layer=1, expert=3, factor=1.01)
    pair = start(scaled)
    try:
        pair.start("cpu_expert_service")
        pair.wait_until_serving(pair.experts)
        engine = reference.RecordingEngine(scaled, pair.experts)
        with pytest.raises(AssertionError):
            _assert_equal(engine.generate(reference.PROMPTS, NUM_TOKENS), expected)
        engine.close()
    finally:
        pair.close()
