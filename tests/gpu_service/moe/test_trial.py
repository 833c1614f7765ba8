from gpu_service.moe.prefetch import Trial


def _run(trial: Trial, steps: int, with_it: float, without: float, num_rows: int = 1) -> list[bool]:
    """What was done in each step, where a step takes so long with it and without."""
    done = []
    for _ in range(steps):
        done.append(trial.active)
        trial.observe(num_rows, with_it if trial.active else without)
    return done


def test_it_tries_both_and_keeps_what_is_faster() -> None:
    trial = Trial(window_steps=3, rest_steps=5)
    assert _run(trial, 6, with_it=1.0, without=2.0) == [True] * 3 + [False] * 3
    assert _run(trial, 5, with_it=1.0, without=2.0) == [True] * 5


def test_it_leaves_what_is_slower_and_tries_again_later() -> None:
    trial = Trial(window_steps=3, rest_steps=5)
    _run(trial, 6, with_it=2.0, without=1.0)
    assert _run(trial, 5, with_it=2.0, without=1.0) == [False] * 5
    assert trial.active, "it has rested"


def test_what_makes_no_difference_is_left() -> None:
    trial = Trial(window_steps=3, rest_steps=5)
    _run(trial, 6, with_it=0.99, without=1.0)
    assert not trial.active


def test_a_single_slow_step_does_not_decide() -> None:
    trial = Trial(window_steps=3, rest_steps=5)
    trial.observe(1, 1.0)
    trial.observe(1, 90.0)
    trial.observe(1, 1.0)
    _run(trial, 3, with_it=1.0, without=2.0)
    assert trial.active


def test_steps_of_different_sizes_are_not_compared() -> None:
    trial = Trial(window_steps=2, rest_steps=5)
    _run(trial, 2, with_it=1.0, without=0.0, num_rows=1)
    assert not trial.active
    trial.observe(8, 9.0)
    assert trial.active, "begun anew"
