"""Times several ways to do the same thing side by side, so that what else the machine does falls on all alike."""

import time
from collections.abc import Callable, Mapping

Work = Callable[[], object]
Samples = dict[str, list[float]]
"""By case: seconds, one for each round."""

# PyTorch's threads spin for a while after their work is done, on the cores that the next case needs
_PAUSE_SECONDS = 0.01


def interleave(cases: Mapping[str, Work], rounds: int, warm_up: int = 1) -> Samples:
    """Runs all cases in turn, forwards and backwards by turns; the first rounds are not counted."""
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
    """Round by round."""
    return [above / below for above, below in zip(numerator, denominator, strict=True)]


def milliseconds(seconds: list[float]) -> list[float]:
    """The same in milliseconds."""
    return [value * 1e3 for value in seconds]
