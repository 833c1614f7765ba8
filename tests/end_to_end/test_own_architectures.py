"""Families whose model code is ours equal plain float64 references, in real processes and for many checkpoints."""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from client import Client, GenerationChunk
from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.sampling.parameters import BeamParameters
from pair import Pair
from tests.support import checkpoints, published, reference
from tests.support.pairs import start
from tests.support.plain_decoder import MODELS, PlainModel

NUM_TOKENS = 32
LOGITS_TOLERANCE = 1e-4
CPU = torch.device("cpu")
LONG = [7] * 17 + [30, 31]
"""One word repeated more often than the capacity of OpenMoE's experts allows."""

Continuation = tuple[list[int], torch.Tensor]


@pytest.fixture(scope="module", params=published.CONFIGS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def directory(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def plain(family: str, directory: Path) -> PlainModel:
    return MODELS[family](directory)


@pytest.fixture(scope="module")
def running(directory: Path) -> Iterator[Pair]:
    with start(directory) as pair:
        yield pair


@pytest.fixture(scope="module")
def engine(directory: Path, running: Pair) -> Iterator[reference.RecordingEngine]:
    """An engine in this process that divides prompts after 16 tokens, if the model allows it."""
    engine = reference.RecordingEngine(directory, running.experts, prefill_chunk=16)
    yield engine
    engine.close()


def _assert_greedy(plain: PlainModel, prompt: Sequence[int], tokens: list[int]) -> torch.Tensor:
    """Checks that the reference chooses each of the tokens; returns its logits [tokens, vocab]."""
    assert len(tokens) == NUM_TOKENS
    logits = plain.continuation(list(prompt), tokens)
    assert logits.argmax(-1).tolist() == tokens
    return logits


def _assert_equal(plain: PlainModel, prompts: Sequence[Sequence[int]], continuations: list[Continuation]) -> None:
    for prompt, (tokens, logits) in zip(prompts, continuations, strict=True):
        expected = _assert_greedy(plain, prompt, tokens)
        torch.testing.assert_close(logits, expected, rtol=0, atol=LOGITS_TOLERANCE)


def _tokens(client: Client, prompt: list[int]) -> list[int]:
    messages = client.generate(prompt, max_tokens=NUM_TOKENS, temperature=0)
    return [token for message in messages if isinstance(message, GenerationChunk) for token in message.token_ids]


def _greedy(directory: Path, prompt: Sequence[int], dtype: torch.dtype = torch.float32) -> Continuation:
    """The engine of a model whose experts this process computes."""
    checkpoint = Checkpoint.open(directory)
    dispatcher = Dispatcher(checkpoint, CPU, InProcessExperts(checkpoint))
    model = Model(checkpoint, dispatcher, device=CPU, dtype=dtype, num_rows=1, max_context=128)
    tokens, logits = list(prompt), []
    with torch.inference_mode():
        for number in range(NUM_TOKENS):
            begin = len(tokens) - 1 if number else 0
            positions = torch.arange(begin, len(tokens))[None]
            logits.append(
                model.forward(torch.tensor([tokens[begin:]]), positions, first_row=0, wants=Logits.LAST)[0].clone()
            )
            tokens.append(int(logits[-1].argmax()))
    return tokens[len(prompt) :], torch.stack(logits)


def test_the_pair_gives_the_reference_s_tokens_alone_and_together(running: Pair, plain: PlainModel) -> None:
    with Client(running.target) as client:
        alone = [_tokens(client, prompt) for prompt in reference.PROMPTS]
        with ThreadPoolExecutor(3) as threads:
            together = list(threads.map(lambda prompt: _tokens(client, prompt), reference.PROMPTS))
    for prompt, tokens in zip(reference.PROMPTS, alone, strict=True):
        _assert_greedy(plain, prompt, tokens)
    assert together == alone


def test_logits_agree_alone(engine: reference.RecordingEngine, plain: PlainModel) -> None:
    alone = [engine.generate([prompt], NUM_TOKENS)[0] for prompt in reference.PROMPTS]
    _assert_equal(plain, reference.PROMPTS, alone)


def test_logits_agree_in_a_ragged_batch(engine: reference.RecordingEngine, plain: PlainModel) -> None:
    _assert_equal(plain, reference.PROMPTS, engine.generate(reference.PROMPTS, NUM_TOKENS))


def test_a_prompt_that_begins_like_an_earlier_one_gives_the_same(
    engine: reference.RecordingEngine, plain: PlainModel
) -> None:
    longer = [*LONG, 32, 33, 34]
    engine.generate([LONG], 2)
    _assert_equal(plain, [longer], engine.generate([longer], NUM_TOKENS))


def test_beams_have_the_reference_s_probabilities(engine: reference.RecordingEngine, plain: PlainModel) -> None:
    request = engine.request(LONG, 8, beam=BeamParameters(num_beams=3, num_return_sequences=3, length_penalty=0.0))
    engine.run(request)
    beams = engine.finished(request)
    assert len({tuple(beam.token_ids) for beam in beams}) == 3
    for beam in beams:
        log_probabilities = plain.continuation(LONG, list(beam.token_ids)).log_softmax(-1)
        due = sum(float(log_probabilities[place, token]) for place, token in enumerate(beam.token_ids))
        assert beam.score == pytest.approx(due, abs=1e-3)


def test_one_expert_scaled_by_a_hundredth_is_noticed(
    family: str, directory: Path, plain: PlainModel, tmp_path: Path
) -> None:
    scaled = Path(shutil.copytree(directory, tmp_path / "scaled"))
    checkpoints.scale_expert(scaled, layer=1, expert=3, factor=1.01)
    prompts = reference.PROMPTS[1:]
    with pytest.raises(AssertionError):
        _assert_equal(plain, prompts, [_greedy(scaled, prompt) for prompt in prompts])
    _assert_equal(MODELS[family](scaled), prompts, [_greedy(scaled, prompt) for prompt in prompts])


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("deepseek", {"norm_topk_prob": True}),
        ("deepseek", {"moe_layer_freq": 2, "num_hidden_layers": 4, "first_k_dense_replace": 2}),
        ("deepseek", {"n_shared_experts": None}),
        ("deepseek", {"num_key_value_heads": 2}),
        ("deepseek", {"tie_word_embeddings": True}),
        ("openmoe", {"moe_layer_interval": 4}),
        ("openmoe", {"num_experts": 5, "router_capacity_factor_eval": 1.0, "router_min_capacity": 2}),
        ("openmoe", {"router_drop_tks": False}),
        ("openmoe", {"head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}),
    ],
    ids=str,
)
def test_other_settings_of_a_config_agree(family: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    directory = published.write(family, tmp_path / "model", **overrides)
    _assert_equal(MODELS[family](directory), [LONG], [_greedy(directory, LONG)])


@pytest.mark.parametrize("family", published.CONFIGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sharded_checkpoint_in_half_precision_agrees(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    directory = published.write(family, tmp_path / "model", dtype=dtype, shards=3)
    _assert_equal(MODELS[family](directory), [LONG], [_greedy(directory, LONG)])


def test_bfloat16_stays_close(family: str, tmp_path: Path) -> None:
    directory = published.write(family, tmp_path / "model", dtype=torch.bfloat16)
    tokens, logits = _greedy(directory, LONG, torch.bfloat16)
    expected = MODELS[family](directory).continuation(LONG, tokens)
    relative = (logits - expected).norm() / expected.norm()
    assert 1e-4 < relative < 0.05


def test_openmoe_drops_what_finds_no_room_in_a_prompt_and_nothing_after_it(tmp_path: Path) -> None:
    directory = published.write("openmoe", tmp_path / "dropping")
    plain = MODELS["openmoe"](directory)
    plain.logits(LONG, len(LONG))
    assert plain.num_dropped > 0
    dropped_of_prompt = plain.num_dropped
    plain.continuation(LONG, [7] * NUM_TOKENS)
    assert plain.num_dropped == dropped_of_prompt
    _, dropping = _greedy(directory, LONG)
    _, roomy = _greedy(published.write("openmoe", tmp_path / "roomy", router_drop_tks=False), LONG)
    assert (dropping[0] - roomy[0]).abs().max() > 0.01
