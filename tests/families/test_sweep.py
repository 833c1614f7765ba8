"""Every verified family: its tokens are those of transformers, alone and batched with others, and its experts matter.

In one process, with the real engine, dispatcher and kernel. sweep.py runs the same families through the two services.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cpu_expert_service.kernel import Kernel
from fiddler.checkpoint.safetensors_index import StoredTensor
from gpu_service.models.families import SWEPT
from gpu_service.models.registry import architecture_of
from tests.support import checkpoints, reference
from tests.support.families import published
from tests.support.families.engine import Engine
from tests.support.families.features import features_of

NUM_TOKENS = 32
TOLERANCE = 5e-5
"""Largest difference of a logit, in units of the largest logit."""

MAX_ROWS = 48
"""Rows of a layer at once: fewer than the longest prompt has, so that it is computed in parts."""

Expected = list[tuple[list[int], torch.Tensor]]


@dataclass(frozen=True)
class Case:
    """A family's checkpoint as it is published, and what transformers generates with it, or its form in float32."""

    directory: Path
    expected: Expected


@pytest.fixture(scope="module", params=sorted(SWEPT))
def case(request: pytest.FixtureRequest, kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory, plain = published.write(request.param, tmp_path_factory.mktemp(request.param))
    architecture = architecture_of(request.param)
    model = architecture.auto_class.from_pretrained(plain, dtype=torch.float32).eval()
    return Case(directory, [reference.generate(model, prompt, NUM_TOKENS) for prompt in reference.PROMPTS])


@pytest.fixture(scope="module")
def engine(case: Case, kernel: Kernel) -> Engine:
    return Engine(case.directory, kernel, MAX_ROWS)


def _largest_difference(actual: Expected, expected: Expected) -> float:
    """In units of the largest logit."""
    pairs = zip(actual, expected, strict=True)
    return max(_difference(logits, due) for (_, logits), (_, due) in pairs)


def _difference(logits: torch.Tensor, due: torch.Tensor) -> float:
    return float((logits - due).abs().max() / due.abs().max())


def test_tokens_are_those_of_transformers_alone(case: Case, engine: Engine) -> None:
    alone = [engine.generate([prompt], NUM_TOKENS)[0] for prompt in reference.PROMPTS]
    assert [tokens for tokens, _ in alone] == [tokens for tokens, _ in case.expected]
    assert _largest_difference(alone, case.expected) < TOLERANCE


def test_tokens_are_the_same_beside_others(case: Case, engine: Engine) -> None:
    together = engine.generate(reference.PROMPTS, NUM_TOKENS)
    assert [tokens for tokens, _ in together] == [tokens for tokens, _ in case.expected]
    assert _largest_difference(together, case.expected) < TOLERANCE


def test_one_expert_scaled_by_a_hundredth_is_noticed(case: Case, engine: Engine, kernel: Kernel) -> None:
    prompt, num_tokens = reference.PROMPTS[2], 8
    engine.model.dispatcher.selections.clear()
    ((_, unscaled),) = engine.generate([prompt], num_tokens)
    expected = case.expected[2][1][:num_tokens]
    enough = max(10 * _difference(unscaled, expected), TOLERANCE)
    selections = engine.model.dispatcher.selections.read()

    def is_noticed(layer: int) -> bool:
        counts, decoder_layer = selections[layer], engine.checkpoint.layers[layer].decoder_layer
        expert = counts.index(max(counts))
        with checkpoints.scaled_expert(case.directory, layer=decoder_layer, expert=expert, factor=1.01):
            ((_, logits),) = Engine(case.directory, kernel).generate([prompt], num_tokens)
        return _difference(logits, expected) > enough

    # norms hide much of an early layer; of the last layer, only the latest tokens' experts matter
    assert any(is_noticed(layer) for layer in (len(selections) // 2, len(selections) - 1))


def test_its_structure_is_what_the_table_says(case: Case, engine: Engine) -> None:
    family = SWEPT[engine.checkpoint.model_type]
    assert (family.features, family.is_batched) == (
        features_of(engine.checkpoint, engine.model.config),
        engine.model.cache.is_divisible,
    )


def test_it_is_in_the_format_that_it_is_published_in(case: Case, engine: Engine) -> None:
    formats = {
        "": "float32",
        "FP8": "fp8 16x16",
        "FP8 and FP4": "fp4 group 32",
        "MXFP4": "fp4 group 32",
        "INT4": "int4 group 32",
        "INT4 or FP8": "int4 group 32",
    }
    family = SWEPT[engine.checkpoint.model_type]
    assert engine.checkpoint.weight_format == formats[family.published_as]
    coded = [tensor.name for tensor in engine.checkpoint.dense_tensors if not isinstance(tensor, StoredTensor)]
    assert bool(coded) == family.published_as.startswith("FP8"), coded
