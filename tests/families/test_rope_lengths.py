"""Types of RoPE whose angles depend on a sequence's length: each request computes what transformers computes alone."""

import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_service.engine.events import Event, Prompt
from gpu_service.models.families import SWEPT
from gpu_service.models.registry import ALIASES, architecture_of
from tests.support import reference
from tests.support.families import tiny
from tests.support.families.configs import config_of
from tests.support.families.engine import Engine, best_kernel

ORIGINAL = 40
"""The length beyond which angles change."""
LONG_FACTORS = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 8.0]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": ORIGINAL,
    "factor": 8.0,
    "short_factor": [1.0] * 8,
    "long_factor": LONG_FACTORS,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe longrope": ("qwen3_moe", {"sliding_window": None, "rope_parameters": LONGROPE}),
    "phimoe longrope": (
        "phimoe",
        {"sliding_window": None, "rope_parameters": LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.5}},
    ),
    "mixtral dynamic": (
        "mixtral",
        {"sliding_window": None, "rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL},
    ),
    # recurrent layers, so that rows are computed one after another
    "qwen3_next dynamic": ("qwen3_next", {"rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL}),
    # other angles for layers of each type
    "laguna longrope": (
        "laguna",
        {
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "rope_parameters": {
                "full_attention": LONGROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
}
SHORT, CROSSING, LONG = list(range(60, 72)), list(range(100, 136)), list(range(200, 270))
NUM_TOKENS = 12
TOLERANCE = 1e-3
"""Largest difference of a log probability."""

Continuation = tuple[list[int], torch.Tensor]


class Case:
    """Our model, and what transformers' own generates alone, each time without having computed anything before."""

    def __init__(self, name: str, directory: Path) -> None:
        family, config = MODELS[name]
        self.directory = tiny.write(family, directory, config=config)
        self.engine = Engine(self.directory, best_kernel())
        self._auto_class = architecture_of(family).auto_class
        self._due: dict[tuple[int, ...], Continuation] = {}

    def fresh(self) -> Any:
        """Transformers' model, which has not computed anything: with dynamic RoPE, it would keep angles of before."""
        return self._auto_class.from_pretrained(self.directory, dtype=torch.float32).eval()

    def due(self, prompt: Sequence[int]) -> Continuation:
        """Transformers' tokens and the logits [tokens, vocab] that they were chosen by."""
        if (key := tuple(prompt)) not in self._due:
            self._due[key] = reference.generate(self.fresh(), prompt, NUM_TOKENS)
        return self._due[key]


@pytest.fixture(scope="module", params=sorted(MODELS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("rope"))


def _assert_same(ours: Continuation, due: Continuation) -> None:
    assert ours[0] == due[0]
    assert (ours[1].log_softmax(-1) - due[1].log_softmax(-1)).abs().max() < TOLERANCE


def test_sequences_of_all_lengths_at_once(case: Case) -> None:
    # CROSSING gets longer than ORIGINAL while it is generated, beside a longer and a shorter one
    prompts = [SHORT, CROSSING, LONG]
    for ours, prompt in zip(case.engine.generate(prompts, NUM_TOKENS), prompts, strict=True):
        _assert_same(ours, case.due(prompt))


def test_one_after_another_with_beginnings_that_others_have_left(case: Case) -> None:
    # generated tokens are shared, too: the second of them crosses ORIGINAL on its own, the others have crossed before
    crossed = CROSSING + case.due(CROSSING)[0]
    for prompt in (LONG, LONG[:ORIGINAL], LONG[:-1], CROSSING, crossed[: ORIGINAL - 1], crossed[: ORIGINAL + 2], SHORT):
        _assert_same(case.engine.generate([prompt], NUM_TOKENS)[0], case.due(prompt))


def test_beams_that_get_longer(case: Case) -> None:
    output = case.fresh().generate(torch.tensor([CROSSING]), max_new_tokens=NUM_TOKENS, do_sample=False, num_beams=3)
    assert case.engine.search(CROSSING, NUM_TOKENS, 3) == output[0, len(CROSSING) :].tolist()


def test_log_probabilities_of_a_prompt_in_chunks(case: Case) -> None:
    events: list[Event] = []
    tokens = LONG if case.engine.model.cache.is_divisible else LONG[:32]
    case.engine.run(case.engine.answer(tokens, 1, prompt_logprobs=0, emit=events.append))
    (prompt,) = (event for event in events if isinstance(event, Prompt))
    with torch.inference_mode():
        due = case.fresh()(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    for position, entry in enumerate(prompt.logprobs[1:], 1):
        assert entry.logprob == pytest.approx(float(due[position - 1, tokens[position]]), abs=TOLERANCE)


def test_families_that_compute_a_sequence_again_have_a_row() -> None:
    modules = {
        family: import_module(architecture_of(family).class_of(config_of(family)).__module__)
        for family in SWEPT
        if family not in ALIASES
    }
    texts = {family: inspect.getsource(module) for family, module in modules.items()}
    again = {family for family, text in texts.items() if "original_max_position_embeddings + 1" in text}
    assert again == {family for family in texts if architecture_of(family).recomputes_for_angles}
    assert again
