"""Times several cases in turn, so that other load on the machine affects all of them alike."""

import time
from collections.abc import Callable, Mapping

Work = Callable[[], object]
Samples = dict[str, list[float]]
"""Seconds by case, one for each round."""

# PyTorch's threads spin for a while after their work is done, and occupy the cores that the next case needs
_PAUSE_SECONDS = 0.01


def interleave(cases: Mapping[str, Work], rounds: int, warm_up: int = 1) -> Samples:
    """Runs all cases in each round, in alternating order. The `warm_up` rounds before the others are not counted."""
    samples: Samples = {name: [] for name in cases}
    names = list(cases)
    for number in range(-warm_up, rounds):
        for name in names if number % 2 else reversed(names):
            began = time.perf_counter()
            cases[name]()
            seconds = time.perf_counter() - began
            time.sleep(_PAUSE_SECONDS)
            if number >= 0:
                samples[name].append(seconds)
    return samples


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Divides round by round."""
    return [above / below for above, below in zip(numerator, denominator, strict=True)]


def milliseconds(seconds: list[float]) -> list[float]:
    """Converts seconds to milliseconds."""
    return [value * 1e3 for value in seconds]
