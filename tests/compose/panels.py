"""Checks that every panel's queries have data, and change when they must."""

import math
from collections.abc import Callable

from tests.compose.dashboards import RATE_INTERVAL, PanelQuery, panel_queries
from tests.compose.expectations import event_of
from tests.compose.prometheus import Prometheus
from tests.compose.stack import ComposeError

_TOLERANCE = 0.25  # for Prometheus' extrapolation at a window's ends

Snapshot = dict[PanelQuery, dict[str, float | None]]
"""Values by labels, by query. None is the mean of nothing."""


def snapshot(prometheus: Prometheus, rate_interval: str = RATE_INTERVAL) -> Snapshot:
    """Returns what the panels show now."""
    return {query: _values(prometheus, query) for query in panel_queries(rate_interval)}


def _values(prometheus: Prometheus, query: PanelQuery) -> dict[str, float | None]:
    values = prometheus.query(query.expression)
    return {labels: None if math.isnan(value) else value for labels, value in values.items()}


def check_data(shown: Snapshot) -> None:
    """Raises ComposeError if a query returned no value other than means of nothing."""
    _check_data(shown, lambda event: event != "http")


def check_http_data(shown: Snapshot) -> None:
    """The same for the queries of the HTTP gateway, which has its own requests."""
    _check_data(shown, lambda event: event == "http")


def _check_data(shown: Snapshot, matters: Callable[[str], bool]) -> None:
    found = {query: values for query, values in shown.items() if matters(event_of(query))}
    empty = [str(query) for query, values in found.items() if all(value is None for value in values.values())]
    if empty:
        raise ComposeError("queries without data:\n" + "\n".join(empty))


def check_moved(event: str, idle: Snapshot, *later: Snapshot) -> int:
    """Raises ComposeError if a query that an event must change has the same values in all later snapshots.

    Returns:
        The number of these queries.
    """
    expected = [query for query in idle if event_of(query) == event]
    still = [str(query) for query in expected if all(shown[query] == idle[query] for shown in later)]
    if still:
        raise ComposeError(f"queries that {event} did not change:\n" + "\n".join(still))
    return len(expected)


def check_constant(idle: Snapshot, later: Snapshot, events: set[str]) -> None:
    """Raises ComposeError if a query has changed that only these events, which have not happened, may change."""
    moved = [
        f"{query}: from {idle[query]} to {later[query]}"
        for query in idle
        if event_of(query) in events and later[query] != idle[query]
    ]
    if moved:
        raise ComposeError("queries that changed:\n" + "\n".join(moved))


def check_integral(prometheus: Prometheus, metric: str, *, expected: int, seconds: int) -> float:
    """Integrates the panel of a counter's rate over the last seconds, and compares it with the expected count.

    Returns:
        The integral over the expected count.

    Raises:
        ComposeError: They differ, or no panel shows that rate alone.
    """
    queries = [query.expression for query in panel_queries() if _is_rate_of(query.expression, metric)]
    if not queries:
        raise ComposeError(f"no panel shows the rate of {metric}")
    total = 5 * prometheus.total(f"sum_over_time(({queries[0]})[{seconds}s:5s])")
    if abs(total / expected - 1) > _TOLERANCE:
        raise ComposeError(f"{queries[0]}: shows {total:.0f} in all, but {expected} were counted")
    return total / expected


def _is_rate_of(expression: str, metric: str) -> bool:
    return f"rate({metric}{{" in expression and RATE_INTERVAL in expression and "/" not in expression
