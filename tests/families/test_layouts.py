"""However a checkpoint is stored: one file or several, in half precision, its head tied to its embeddings."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cpu_expert_service.kernel import Kernel
from fiddler.checkpoint import Checkpoint
from gpu_service.models.registry import architecture_of
from tests.support import reference
from tests.support.families import tiny
from tests.support.families.engine import Engine

NUM_TOKENS = 32
TOLERANCE = 5e-5
"""Largest difference of a logit, in units of the largest logit."""

STRUCTURES = ("deepseek_v3", "gpt_oss", "granitemoe", "mixtral", "nemotron_h")
"""Corrected routers and shared experts; biases, interleaved and transposed; fused; separate; not gated, with states."""

SMALL_SHARD = "200KB"


def _assert_same(directory: Path, kernel: Kernel) -> None:
    """Compares tokens and every logit after the longest prompt, computed in float32 whatever dtype is stored."""
    model = (
        architecture_of(Checkpoint.open(directory).model_type)
        .auto_class.from_pretrained(directory, dtype=torch.float32)
        .eval()
    )
    prompt = reference.PROMPTS[2]
    tokens, expected = reference.generate(model, prompt, NUM_TOKENS)
    ((actual, logits),) = Engine(directory, kernel).generate([prompt], NUM_TOKENS)
    assert actual == tokens
    assert float((logits - expected).abs().max() / expected.abs().max()) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", STRUCTURES)
def test_a_sharded_checkpoint_in_half_precision(
    family: str, dtype: torch.dtype, kernel: Kernel, tmp_path: Path
) -> None:
    tiny.write(family, tmp_path, dtype=dtype, max_shard_size=SMALL_SHARD)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    _assert_same(tmp_path, kernel)


@pytest.mark.parametrize("family", STRUCTURES)
def test_a_tied_head(family: str, kernel: Kernel, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tie_word_embeddings": True}
    tiny.write(family, tmp_path, config=settings)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    _assert_same(tmp_path, kernel)
