"""Converted checkpoints in the engine: tokens and logits are those of transformers on what they stand for."""

from pathlib import Path

import pytest
import torch

from cpu_expert_service.kernel import Kernel
from fiddler.convert.conversion import convert
from fiddler.convert.recipe import DenseFormat, ExpertFormat, Recipe
from tests.support import checkpoints, reference
from tests.support.converted import write_decoded
from tests.support.families.engine import Engine

NUM_TOKENS = 16
TOLERANCE = 5e-5
"""Largest difference of a logit, in units of the largest logit."""


@pytest.mark.parametrize(
    ("family", "experts", "dense"),
    [
        ("mixtral", "int4", "auto"),
        ("qwen3_moe", "int4", "int8"),
        ("deepseek_v2", "int8", "int8"),
        ("deepseek_v2", "int4", "int4"),
    ],
)
def test_tokens_are_those_of_what_the_result_stands_for(
    family: str, experts: ExpertFormat, dense: DenseFormat, kernel: Kernel, tmp_path: Path
) -> None:
    source = checkpoints.write(family, tmp_path / "source", dtype=torch.bfloat16, eos_token_id=None)
    convert(source, tmp_path / "converted", Recipe(experts, dense))
    plain = write_decoded(tmp_path / "converted", source, tmp_path / "plain")
    prompt = reference.PROMPTS[2]
    with torch.inference_mode():
        tokens, expected = reference.generate(reference.load(plain), prompt, NUM_TOKENS)
    ((actual, logits),) = Engine(tmp_path / "converted", kernel).generate([prompt], NUM_TOKENS)
    assert actual == tokens
    assert float((logits - expected).abs().max() / expected.abs().max()) < TOLERANCE
    with torch.inference_mode():
        _, before = reference.generate(reference.load(source), prompt, 1)
    assert float((logits[0] - before[0]).abs().max() / before.abs().max()) > 10 * TOLERANCE
