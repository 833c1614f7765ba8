"""How many positions a model has, by what published configurations say about RoPE."""

from typing import Any

import pytest

from gpu_service.model_runner.context import context_limit
from tests.support.families.configs import config_of

THETA = {"rope_theta": 10000.0}


def _limit(family: str, positions: int, rope: dict[str, Any] | None = None) -> int | None:
    settings: dict[str, Any] = {"max_position_embeddings": positions}
    if rope is not None:
        settings["rope_parameters"] = rope
    limit = context_limit(config_of(family, **settings))
    return limit.num_tokens if limit else None


def _factors(kind: str, factor: float, original: int | None = None) -> dict[str, Any]:
    rope = THETA | {"rope_type": kind, "factor": factor}
    return rope if original is None else rope | {"original_max_position_embeddings": original}


@pytest.mark.parametrize(
    ("positions", "rope", "limit"),
    [
        (512, THETA | {"rope_type": "default"}, 512),
        # as Qwen's model cards advise: the number before scaling stays
        (40960, _factors("yarn", 4.0, 32768), 131072),
        (128, _factors("yarn", 4.0), 512),
        # as DeepSeek-V3 and gpt-oss are published: the number is the product already
        (163840, _factors("yarn", 40, 4096), 163840),
        # a model that was trained beyond the product
        (40960, _factors("yarn", 2.0, 8192), 40960),
        (1000, _factors("yarn", 1.5, 1001), 1501),
        (128, _factors("linear", 4.0), 512),
        (128, _factors("dynamic", 2.0), 256),
        (131072, _factors("llama3", 32.0, 8192) | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}, 131072),
        (512, _factors("longrope", 8.0, 64) | {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}, 512),
    ],
)
def test_the_limit_of_each_type_of_rope(positions: int, rope: dict[str, Any], limit: int) -> None:
    assert _limit("qwen3_moe", positions, rope) == limit


def test_layers_with_ropes_of_their_own() -> None:
    rope = {"full_attention": _factors("yarn", 4.0, 128), "sliding_attention": THETA | {"rope_type": "default"}}
    assert _limit("laguna", 128, rope) == 512


def test_a_family_whose_number_is_final() -> None:
    rope = {"full_attention": _factors("linear", 8.0), "sliding_attention": THETA | {"rope_type": "default"}}
    assert _limit("gemma4_text", 512, rope) == 512


def test_a_family_without_a_limit() -> None:
    assert context_limit(config_of("switch_transformers")) is None


def test_the_reason_names_the_fields() -> None:
    limit = context_limit(config_of("qwen3_moe", max_position_embeddings=128, rope_parameters=_factors("yarn", 4, 128)))
    assert limit is not None
    assert limit.reason == "original_max_position_embeddings 128 x factor 4 of rope type yarn"
