"""Spans of several sequences in one forward: each sequence's tokens and logits are what transformers computes alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cpu_expert_service.kernel import Kernel
from gpu_service.engine.events import Event, Prompt
from gpu_service.engine.generation import Answer
from gpu_service.errors import ExpertServiceError
from gpu_service.models.registry import architecture_of
from gpu_service.sampling.outputs import FinishReason
from gpu_service.sampling.parameters import BeamParameters
from tests.support import reference
from tests.support.families import tiny
from tests.support.families.engine import Engine, RunnerExperts

PACKED = ["deepseek_v3", "gpt_oss", "mixtral", "phimoe", "qwen3_moe"]
"""Latents, sinks and windows, a window, angles that depend on length, and plain attention."""
APART = {
    "jetmoe": "changes the keys",
    "llama4_text": "temperature",
    "qwen3_next": "more than keys",
    "switch_transformers": "encoder",
}
NUM_TOKENS = 10
TOLERANCE = 5e-5
"""Largest difference of a logit, in units of the largest logit."""

FIRST = [5, 9, 11]
SECOND = list(range(40, 59))
LONG = [*SECOND[:17], *range(100, 153)]
"""Begins as SECOND does, and is longer than a chunk."""
CANCELLED = [7] * 40
SCORED = list(range(160, 173))


class Case:
    """Our engine, and transformers' model."""

    def __init__(self, family: str, directory: Path, kernel: Kernel) -> None:
        tiny.write(family, directory)
        self.engine = Engine(directory, kernel)
        self.theirs = architecture_of(family).auto_class.from_pretrained(directory, dtype=torch.float32).eval()
        self.answers: list[Answer] = []

    def add(self, prompt: Sequence[int], num_tokens: int = NUM_TOKENS, **more: Any) -> Answer:
        self.answers.append(self.engine.answer(prompt, num_tokens, **more))
        self.engine.stepper.add(self.answers[-1])
        return self.answers[-1]

    def steps(self, most: int = 1000) -> None:
        while most and self.engine.stepper.step():
            most -= 1

    def assert_due(self, answer: Answer) -> None:
        """The answer's tokens and logits are transformers'."""
        (generation,) = answer.generations
        tokens, due = reference.generate(self.theirs, answer.request.prompt, answer.request.ending.max_tokens)
        assert generation.output == tokens
        logits = torch.stack(self.engine.stepper.logits[generation])
        assert (logits - due).abs().max() / due.abs().max() < TOLERANCE

    @property
    def most_prompts(self) -> int:
        """The most prompts of which one forward computed pieces."""
        return max(sum(part.is_prompt for part in batch.parts) for batch in self.engine.stepper.batches)

    @property
    def is_mixed(self) -> bool:
        """Whether a forward computed a piece of a prompt and a token that follows another."""
        kinds = [{part.is_prompt for part in batch.parts} for batch in self.engine.stepper.batches]
        return {True, False} in kinds


@pytest.mark.parametrize("family", [*PACKED, "qwen3_next", "switch_transformers"])
def test_sequences_of_mixed_batches_are_those_of_transformers(family: str, kernel: Kernel, tmp_path: Path) -> None:
    case = Case(family, tmp_path, kernel)
    with torch.inference_mode():
        first = case.add(FIRST)
        case.steps(2)
        second, long, cancelled = case.add(SECOND), case.add(LONG), case.add(CANCELLED)
        case.steps(1)
        case.engine.stepper.cancel(cancelled.request, FinishReason.CANCELLED)
        case.steps(1)
        third = case.add(FIRST[::-1])  # in the row that was given up
        case.steps()
        for answer in (first, second, long, third):
            case.assert_due(answer)
        assert not cancelled.generations[0].output
        assert (case.most_prompts > 1, case.is_mixed) == ((family in PACKED,) * 2)
        if family in PACKED:
            assert long.cached_prompt_tokens == 17, "it waited for the beginning that the other one computed"
        _assert_beams_and_scores(case)


def _assert_beams_and_scores(case: Case) -> None:
    """Beams beside a prompt whose log probabilities are wanted."""
    if case.theirs.config.is_encoder_decoder:
        return  # it has no log probabilities of a prompt
    events: list[Event] = []
    plain = case.add(FIRST)
    case.steps(1)
    beams = case.add(SECOND[::-1], beam=BeamParameters(2))
    case.add(SCORED, 1, prompt_logprobs=0, emit=events.append)
    case.steps()
    case.assert_due(plain)
    assert beams.search is not None
    due = case.theirs.generate(torch.tensor([SECOND[::-1]]), max_new_tokens=NUM_TOKENS, do_sample=False, num_beams=2)
    assert list(beams.search.results()[0].token_ids) == due[0, len(SECOND) :].tolist()
    (prompt,) = (event for event in events if isinstance(event, Prompt))
    scores = case.theirs(torch.tensor([SCORED])).logits[0].float().log_softmax(-1)
    for position, entry in enumerate(prompt.logprobs[1:], 1):
        assert entry.logprob == pytest.approx(float(scores[position - 1, SCORED[position]]), abs=1e-3)


@pytest.mark.parametrize("family", sorted(APART))
def test_a_family_that_cannot_be_packed_says_why(family: str, kernel: Kernel, tmp_path: Path) -> None:
    model = Engine(tiny.write(family, tmp_path), kernel).model
    assert not model.packs_spans
    assert APART[family] in (model.why_not_packed or "")


class _Lost(RunnerExperts):
    """Is lost at a call, after it has taken the rows of the call."""

    def __init__(self, of: RunnerExperts, calls: int) -> None:
        self._runner = of._runner
        self._calls = calls

    @property
    def available(self) -> bool:  # type: ignore[override]
        return self._calls > 0

    def submit(self, *arguments: Any, **named: Any) -> Any:
        self._calls -= 1
        return super().submit(*arguments, **named) if self._calls else _NoAnswer()


class _NoAnswer:
    compute_seconds = None

    def join(self) -> torch.Tensor:
        raise ExpertServiceError("lost")


@pytest.mark.parametrize("calls", [1, 6])
def test_experts_that_are_lost_in_the_middle_of_a_mixed_batch_change_no_token(
    calls: int, kernel: Kernel, tmp_path: Path
) -> None:
    case = Case("mixtral", tmp_path, kernel)
    dispatcher, experts = case.engine.model.dispatcher, RunnerExperts(case.engine.checkpoint, kernel)
    dispatcher.answers.in_process = experts
    with torch.inference_mode(), dispatcher.with_backend(_Lost(experts, calls)):
        answers = [case.add(prompt) for prompt in (FIRST, SECOND, LONG)]
        case.steps()
        assert not dispatcher._remote.available
        for answer in answers:
            case.assert_due(answer)
    assert case.most_prompts > 1
