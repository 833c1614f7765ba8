from collections.abc import Sequence
from random import Random

import pytest

from gpu_service.placement import usage as usage_module
from gpu_service.placement.usage import HALF_LIFE_STEPS, MAX_WEIGHT, LayerUsage


def _one(expert: int, num_experts: int = 8) -> list[int]:
    counts = [0] * num_experts
    counts[expert] = 1
    return counts


def _probabilities(usage: LayerUsage) -> list[float]:
    probability = usage.estimate()
    return [probability(expert) for expert in range(len(usage.used))]


def _after(steps: Sequence[Sequence[int]]) -> LayerUsage:
    usage = LayerUsage(len(steps[0]))
    for counts in steps:
        usage.observe(counts)
    return usage


def test_an_expert_is_as_likely_as_it_was_used() -> None:
    usage = _after([_one(0) if step % 4 else _one(5) for step in range(40 * HALF_LIFE_STEPS)])
    assert _probabilities(usage) == pytest.approx([0.75, 0, 0, 0, 0, 0.25, 0, 0], abs=0.02)


def test_after_a_half_life_the_past_weighs_half() -> None:
    past, present = [_one(0)] * 20 * HALF_LIFE_STEPS, [_one(5)] * HALF_LIFE_STEPS
    assert _probabilities(_after(past + present))[0] == pytest.approx(0.5, abs=0.02)


def test_several_rows_on_one_expert_use_it_once() -> None:
    several = _after([[3, 1, 0, 0, 0, 0, 0, 0]] * 100)
    assert _probabilities(several)[0] == pytest.approx(_probabilities(several)[1])


def test_a_prompt_says_how_likely_a_usual_step_uses_an_expert() -> None:
    """A step of one row selects two experts, so that half of such steps use one with 100 of 400 selections."""
    usual, prompt = [[1, 1, 0, 0]] * 2000, [100, 20, 80, 200]
    usage = _after(usual)
    before = [used / usage._mass for used in usage.used]
    usage.observe(prompt)
    after = [used / usage._mass for used in usage.used]
    weight = (before[0] - after[0]) / (after[0] - 0.5)
    assert weight > 0
    assert after[2] == pytest.approx(0.4 * weight / (1 + weight), rel=0.01)
    assert after[3] == pytest.approx(1.0 * weight / (1 + weight), rel=0.01)


def test_a_prompt_weighs_no_more_than_so_many_steps() -> None:
    usage = _after([[1, 1, 0, 0]] * 100)
    step, mass = usage._increment, usage._mass
    usage.observe([10**6, 10**6, 10**6, 10**6])
    assert usage._mass - mass == pytest.approx(MAX_WEIGHT * step, rel=0.01)


def test_the_first_prompt_weighs_one_step() -> None:
    usage = _after([[100, 100, 100, 100]])
    assert usage.num_steps == pytest.approx(1)
    for _ in range(50):
        usage.observe([1, 1, 0, 0])
    assert _probabilities(usage)[0] > 0.95


def test_a_step_without_rows_says_nothing() -> None:
    usage = _after([_one(0)] * 9)
    before = _probabilities(usage)
    usage.observe([0] * 8)
    assert _probabilities(usage) == before


def test_chance_is_not_taken_for_popularity() -> None:
    random = Random(0)
    usage = _after([_one(random.randrange(8)) for _ in range(60)])
    raw = [used / usage._mass for used in usage.used]
    estimated = _probabilities(usage)
    assert max(raw) - min(raw) > 0.1
    assert max(estimated) - min(estimated) < 0.03


def test_what_is_more_than_chance_is_kept() -> None:
    usage = _after([_one(step % 2) for step in range(200)])
    assert _probabilities(usage) == pytest.approx([0.5, 0.5, 0, 0, 0, 0, 0, 0], abs=0.01)


def test_experts_keep_their_order() -> None:
    random = Random(1)
    usage = _after([_one(min(random.randrange(8), random.randrange(8))) for _ in range(300)])
    probabilities = _probabilities(usage)
    assert max(probabilities) > min(probabilities) + 0.05
    by_evidence = sorted(range(8), key=usage.used.__getitem__)
    assert by_evidence == sorted(range(8), key=probabilities.__getitem__)


def test_a_seed_is_half_forgotten_after_its_weight_in_steps() -> None:
    usage = LayerUsage(4)
    usage.seed([0.8, 0.2, 0.5, 0.5])
    assert usage.num_steps == pytest.approx(HALF_LIFE_STEPS)
    assert _probabilities(usage)[0] > _probabilities(usage)[2] > _probabilities(usage)[1]
    for _ in range(HALF_LIFE_STEPS):
        usage.observe([0, 1, 0, 0])
    assert _probabilities(usage)[1] > _probabilities(usage)[0]


def test_numbers_are_divided_before_they_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(2)
    steps = [_one(min(random.randrange(8), random.randrange(8))) for _ in range(2000)]
    expected = _after(steps)
    monkeypatch.setattr(usage_module, "_LARGE", 3.0)
    usage = _after(steps)
    assert usage._increment < 4
    assert expected._increment > 100
    assert _probabilities(usage) == pytest.approx(_probabilities(expected))
    assert usage.num_steps == pytest.approx(expected.num_steps)


def test_nothing_is_known_before_the_first_step() -> None:
    usage = LayerUsage(3)
    assert usage.num_steps == 0
    assert _probabilities(usage) == [0, 0, 0]
