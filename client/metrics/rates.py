"""Compares two readings of a service: the growth of its counters, and quantiles of its histograms."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from client.metrics import names
from client.metrics.scrape import Exposition, Labels, Series
from client.metrics.snapshot import Quantiles


@dataclass(frozen=True, slots=True)
class Growth(Series):
    """By how much each series grew. Meaningless for gauges.

    Attributes:
        seconds: The time between the two readings.
    """

    seconds: float


def increase(older: Exposition, newer: Exposition) -> Growth:
    """By how much each series grew between two readings.

    A counter that fell was reset by a restart of its service, as were all counters of a process with a later start
    time. They then count from 0, as in Prometheus' increase().
    """
    restarted = older.value(names.START) != newer.value(names.START)
    series: dict[str, dict[Labels, float]] = {}
    for name, values in newer.series.items():
        before: Mapping[Labels, float] = {} if restarted else older.series.get(name, {})
        series[name] = {key: _growth(before.get(key, 0.0), value) for key, value in values.items()}
    return Growth(series, newer.at_seconds - older.at_seconds)


def _growth(before: float, after: float) -> float:
    return after - before if after >= before else after


def quantiles(growth: Growth, histogram: str) -> Quantiles | None:
    """Quantiles of what a histogram counted between two readings; None if it counted nothing."""
    counts = growth.by(f"{histogram}_bucket", "le")
    # cumulative counts up to and including each bound
    buckets = sorted((float(bound), count) for (bound,), count in counts.items())
    if not buckets or buckets[-1][1] <= 0:
        return None
    return Quantiles(*(_quantile(buckets, share) for share in (0.5, 0.9, 0.99)))


def _quantile(buckets: list[tuple[float, float]], share: float) -> float:
    """As Prometheus' histogram_quantile: linear within a bucket; past the last finite bound, that bound."""
    rank = share * buckets[-1][1]
    lower_bound, lower_count = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > lower_count:
            if math.isinf(bound):
                return lower_bound
            return lower_bound + (bound - lower_bound) * (rank - lower_count) / (count - lower_count)
        lower_bound, lower_count = bound, count
    return lower_bound
