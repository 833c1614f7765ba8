"""Settings of config.json that a family's class ignores: tokens are those of transformers' generate() with its cache.

transformers' cache follows them all the same and forgets keys beyond a window, so that its own tokens without a cache
are others.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cpu_expert_service.kernel import Kernel
from gpu_service.model_runner.forwards import RowByRow, Together
from gpu_service.models.families import SWEPT
from gpu_service.models.registry import ALIASES, architecture_of
from tests.support import reference
from tests.support.families import tiny
from tests.support.families.engine import Engine

PROMPTS = (reference.PROMPTS[1], reference.PROMPTS[0])
NUM_TOKENS = 8
WINDOW = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2, "sliding_window_pattern": 2}
CHUNK = {"attention_chunk_size": 8}
MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2}


def _fields(family: str) -> dict[str, Any]:
    fields: dict[str, Any] = CONFIG_MAPPING[family]().to_dict()
    return fields


FAMILIES = [
    family
    for family, row in SWEPT.items()
    if row.is_batched and family not in ALIASES and not CONFIG_MAPPING[family].sub_configs
    and not _fields(family).get("is_encoder_decoder")
]  # fmt: skip
"""Those whose rows are computed together, without the ones that add other input to one of them."""


def _stray(family: str) -> dict[str, Any]:
    """A window, or a chunk if the family's own configuration has the former; transformers refuses both for Gemma."""
    return {} if family == "gemma4_text" else CHUNK if "sliding_window" in _fields(family) else WINDOW


def _check(family: str, directory: Path, kernel: Kernel, settings: dict[str, Any]) -> Engine:
    tiny.write(family, directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    model = architecture_of(family).auto_class.from_pretrained(directory, dtype=torch.float32).eval()
    engine = Engine(directory, kernel)
    for prompt, (tokens, logits) in zip(PROMPTS, engine.generate(PROMPTS, NUM_TOKENS), strict=True):
        due = reference.generate(model, prompt, NUM_TOKENS)
        assert tokens == due[0]
        assert (logits - due[1]).abs().max() < 1e-3
    return engine


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path, kernel: Kernel) -> None:
    _check(family, tmp_path, kernel, _stray(family))


@pytest.mark.parametrize(
    ("family", "settings", "form"),
    [
        ("olmoe", WINDOW | MIXED, RowByRow),
        ("olmoe", {"sliding_window": 8, "layer_types": ["full_attention"] * 4}, Together),
        # longer than any sequence that is computed
        ("olmoe", {"sliding_window": 512}, Together),
        ("olmoe", {"sliding_window": 511}, RowByRow),
        ("minimax_m2", WINDOW, RowByRow),
        # its class follows sliding_window and ignores layer_types, which the cache follows
        ("mixtral", {"layer_types": ["full_attention"] * 4}, RowByRow),
        ("mixtral", {}, Together),
    ],
)
def test_rows_are_computed_together_if_class_and_cache_agree(
    family: str, settings: dict[str, Any], form: type, tmp_path: Path, kernel: Kernel
) -> None:
    assert type(_check(family, tmp_path, kernel, settings).model._forward) is form
