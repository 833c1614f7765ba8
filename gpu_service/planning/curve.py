"""Seconds as a curve over rows, fitted to timings of anything."""

import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

Sample = tuple[int, float]
"""(rows, seconds): one timing."""


class Curve:
    """Seconds by rows: straight lines between the medians of the timings, never falling.

    Below the first measured point it is flat, because reading the weights takes the time there. Beyond the last point
    it continues with the slope of the last rise.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        """Fits the curve to at least one sample."""
        self._samples = tuple(samples)
        by_rows = medians(self._samples)
        self._rows = list(by_rows)
        self._seconds = _never_falling(list(by_rows.values()))
        self._last_slope = 0.0
        for rows, seconds in zip(reversed(self._rows), reversed(self._seconds), strict=True):
            if seconds < self._seconds[-1]:
                self._last_slope = (self._seconds[-1] - seconds) / (self._rows[-1] - rows)
                break

    def __call__(self, rows: int) -> float:
        """Returns the seconds at a number of rows."""
        if rows <= 0:
            return 0.0
        after = bisect_right(self._rows, rows)
        if after == 0:
            return self._seconds[0]
        rows_before, seconds = self._rows[after - 1], self._seconds[after - 1]
        if after == len(self._rows):
            return seconds + self._last_slope * (rows - rows_before)
        share = (rows - rows_before) / (self._rows[after] - rows_before)
        return seconds + share * (self._seconds[after] - seconds)

    @property
    def fit_error(self) -> float:
        """The median relative error of the curve at numbers of rows that it was not fitted to.

        Each number of rows between the first and the last is left out in turn, and its timings are compared with the
        curve fitted to the rest. 0 if there are no numbers between the first and the last.
        """
        errors = []
        for left_out in self._rows[1:-1]:
            curve = Curve(sample for sample in self._samples if sample[0] != left_out)
            predicted = curve(left_out)
            errors += [abs(predicted - seconds) / seconds for rows, seconds in self._samples if rows == left_out]
        return statistics.median(errors) if errors else 0.0

    def table(self, max_rows: int) -> list[float]:
        """Returns the seconds at 0 to `max_rows` rows."""
        return [self(rows) for rows in range(max_rows + 1)]


def medians(samples: Iterable[Sample]) -> dict[int, float]:
    """Returns the median seconds by rows, ascending."""
    by_rows = defaultdict(list)
    for rows, seconds in samples:
        by_rows[rows].append(seconds)
    return {rows: statistics.median(by_rows[rows]) for rows in sorted(by_rows)}


def _never_falling(values: Sequence[float]) -> list[float]:
    """Returns the least-squares non-decreasing fit: neighbours that are out of order become their mean."""
    pools: list[tuple[float, int]] = []  # (mean, how many)
    for value in values:
        mean, size = value, 1
        while pools and pools[-1][0] > mean:
            other_mean, other_size = pools.pop()
            mean = (mean * size + other_mean * other_size) / (size + other_size)
            size += other_size
        pools.append((mean, size))
    return [mean for mean, size in pools for _ in range(size)]
