"""Which experts are prefetched, and whether a trial keeps to it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fiddler.checkpoint import Checkpoint
from gpu_service import metrics
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.moe.prefetch import Prefetcher, Trial


class _Router(nn.Module):
    """Chooses the same experts for every row."""

    def __init__(self, *experts: int) -> None:
        super().__init__()
        self._experts = experts

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids = torch.tensor([self._experts] * hidden.shape[0])
        return hidden, torch.ones(ids.shape), ids


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return Checkpoint.open(tiny)


@pytest.fixture
def slots(checkpoint: Checkpoint) -> Iterator[ExpertSlots]:
    """No expert is resident, and there is room for two copies."""
    slots = ExpertSlots(checkpoint, torch.device("cpu"), capacity=0)
    yield slots
    slots.close()


def _outcomes() -> dict[str, float]:
    return {
        f"{name} {outcome}": counter.labels(outcome)._value.get()
        for name, counter in (("guess", metrics.PREFETCH_GUESSES), ("copy", metrics.PREFETCHED_EXPERTS))
        for outcome in ("right", "wrong", "used", "wasted")
        if (name == "guess") == (outcome in ("right", "wrong"))
    }


def _counts(*experts: int) -> np.ndarray:
    return np.bincount(experts, minlength=8)


def _guess(prefetcher: Prefetcher, layer: int, rows: int = 1) -> np.ndarray:
    guess = prefetcher.guess(layer, torch.zeros(rows, 4))
    assert guess is not None
    assert guess.dtype is torch.int32
    return guess.numpy()


def test_the_next_layers_router_is_asked(slots: ExpertSlots) -> None:
    prefetcher = Prefetcher({1: _Router(3, 5)}, slots, always=True)
    assert _guess(prefetcher, 0, rows=2).tolist() == [[3, 5], [3, 5]]
    assert prefetcher.guess(1, torch.zeros(1, 4)) is None, "no layer follows"


def test_the_most_wanted_experts_that_are_not_there_are_copied(slots: ExpertSlots) -> None:
    prefetcher = Prefetcher({}, slots, always=True)
    guessed = np.array([[1, 2], [2, 3], [2, 4], [4, 1], [4, 7]], dtype=np.int32)
    prefetcher.start(1, guessed, not_wanted=[2])
    assert list(slots.pending(1)) == [4, 1]


def test_what_was_copied_in_vain_is_given_up_and_counted(slots: ExpertSlots) -> None:
    prefetcher = Prefetcher({}, slots, always=True)
    before = _outcomes()
    prefetcher.start(1, np.array([[3, 5]], dtype=np.int32), not_wanted=[])
    assert list(slots.pending(1)) == [3, 5]
    prefetcher.judge(1, _counts(3, 6), streamed=[3])
    assert list(slots.pending(1)) == [3]
    gained = {name: value - before[name] for name, value in _outcomes().items()}
    assert gained == {"guess right": 1, "guess wrong": 1, "copy used": 1, "copy wasted": 1}
    prefetcher.judge(1, _counts(3), streamed=[])
    assert list(slots.pending(1)) == [3], "a copy is judged once"


def test_guesses_that_are_mostly_wrong_end_it(slots: ExpertSlots) -> None:
    prefetcher = Prefetcher({1: _Router(3)}, slots, always=False)
    for _ in range(100):
        if prefetcher.guess(0, torch.zeros(1, 4)) is None:
            break
        prefetcher.start(1, np.array([[3]], dtype=np.int32), not_wanted=[])
        prefetcher.judge(1, _counts(4), streamed=[])
    else:
        pytest.fail("it guesses on")


def test_prefetching_that_does_not_pay_ends(slots: ExpertSlots) -> None:
    prefetcher = Prefetcher({1: _Router(3)}, slots, always=False)
    for _ in range(100):
        guesses = prefetcher.guess(0, torch.zeros(1, 4)) is not None
        prefetcher.end_of_step(1, 2.0 if guesses else 1.0)
    assert prefetcher.guess(0, torch.zeros(1, 4)) is None


def test_a_prefetcher_without_routers_tries_nothing(slots: ExpertSlots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "observe", lambda *_: pytest.fail("a trial costs every step"))
    prefetcher = Prefetcher({}, slots, always=False)
    assert prefetcher.guess(0, torch.zeros(1, 4)) is None
    prefetcher.end_of_step(1, 1.0)


def _run_trial(trial: Trial, steps: int, with_it: float, without: float, num_rows: int = 1) -> list[bool]:
    """Returns what was done in each step; a step takes so many seconds with it and without."""
    done = []
    for _ in range(steps):
        done.append(trial.active)
        trial.observe(num_rows, with_it if trial.active else without)
    return done


def test_it_tries_both_and_keeps_what_is_faster() -> None:
    trial = Trial(window_steps=3, rest_steps=5)
    assert _run_trial(trial, 6, with_it=1.0, without=2.0) == [True] * 3 + [False] * 3
    assert _run_trial(trial, 5, with_it=1.0, without=2.0) == [True] * 5


def test_it_leaves_what_is_slower_and_tries_again_later() -> None:
    trial = Trial(window_steps=3, rest_steps=5)
    _run_trial(trial, 6, with_it=2.0, without=1.0)
    assert _run_trial(trial, 5, with_it=2.0, without=1.0) == [False] * 5
    assert trial.active, "it tries again after the rest"


def test_what_makes_no_difference_is_left() -> None:
    trial = Trial(window_steps=3, rest_steps=5)
    _run_trial(trial, 6, with_it=0.99, without=1.0)
    assert not trial.active


def test_a_single_slow_step_does_not_decide() -> None:
    trial = Trial(window_steps=3, rest_steps=5)
    trial.observe(1, 1.0)
    trial.observe(1, 90.0)
    trial.observe(1, 1.0)
    _run_trial(trial, 3, with_it=1.0, without=2.0)
    assert trial.active


def test_steps_of_different_sizes_are_not_compared() -> None:
    trial = Trial(window_steps=2, rest_steps=5)
    _run_trial(trial, 2, with_it=1.0, without=0.0, num_rows=1)
    assert not trial.active
    trial.observe(8, 9.0)
    assert trial.active, "it starts again"
