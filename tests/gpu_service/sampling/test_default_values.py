"""Numbers of a generation_config.json that no request may have: taken for what they mean, or left out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from transformers import GenerationConfig

from gpu_service.errors import ModelError
from gpu_service.sampling.logits_processors import processors
from gpu_service.sampling.outputs import TokenLogprobs
from gpu_service.sampling.parameters import SamplingParameters
from gpu_service.sampling.rules import check_generation_config
from gpu_service.sampling.sampler import Sampler, choose

NAN, INFINITY = float("nan"), float("inf")


def _resolved(**settings: Any) -> SamplingParameters:
    config = GenerationConfig(**{"do_sample": True, "top_k": 0} | settings)  # type: ignore[no-untyped-call]
    check_generation_config(Path("model"), config)
    return SamplingParameters.resolve(config, {})


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("temperature", 1e-6, 0.0),
        ("temperature", 0, 0.0),
        ("temperature", 0.001, 0.001),
        ("temperature", -1.0, 1.0),
        ("temperature", NAN, 1.0),
        ("temperature", INFINITY, 1e6),
        ("temperature", 10**60, 1e6),
        ("top_k", -1, 0),
        ("top_k", 20.0, 20),
        ("top_k", INFINITY, 2**31 - 1),
        ("top_p", 1.5, 1.0),
        ("top_p", -0.5, 1.0),
        ("min_p", 1.5, 0.0),
        ("min_p", -0.1, 0.0),
        ("typical_p", 2, 1.0),
        ("typical_p", 0, 1.0),
        ("typical_p", -1.0, 1.0),
        ("repetition_penalty", 0, 1.0),
        ("repetition_penalty", -2.0, 1.0),
        ("repetition_penalty", 1e-9, 0.001),
        ("repetition_penalty", 5000.0, 1000.0),
    ],
)
def test_the_value_that_is_served(name: str, value: float, meant: float) -> None:
    assert getattr(_resolved(**{name: value}), name) == meant


def test_a_top_p_of_zero_leaves_the_likeliest_token() -> None:
    parameters = _resolved(top_p=0.0)
    sampler = Sampler(parameters, processors=processors(parameters))
    logits = torch.tensor([[1.0, 3.0, 2.9, 2.0]])
    outcomes = [choose(logits, [sampler], [[]], num_top=[None])[0] for _ in range(20)]
    assert {outcome.token_id for outcome in outcomes if isinstance(outcome, TokenLogprobs)} == {1}


def test_what_is_replaced_or_left_out_is_in_the_log() -> None:
    with capture_logs() as log:
        _resolved(temperature=-1.0, top_k=-1, top_p=0.9)
    assert [(entry["event"], entry["setting"]) for entry in log] == [
        ("generation setting left out", "temperature"),
        ("generation setting taken for another value", "top_k"),
    ]


def test_settings_for_drawing_do_not_matter_if_nothing_is_drawn() -> None:
    assert _resolved(do_sample=False, temperature="hot", top_p=7) == SamplingParameters()


@pytest.mark.parametrize(
    ("name", "value"), [("min_p", "much"), ("temperature", True), ("top_k", [1]), ("do_sample", "no")]
)
def test_what_is_not_a_number_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"generation_config\.json: {name}: must be"):
        _resolved(**{name: value})
