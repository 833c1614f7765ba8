"""Parts of queries, transformations and overrides that several panels share."""

from collections.abc import Mapping

from observability.generate.model import Json, Query

HERE = 'instance=~"$instance"'
"""Selects the chosen GPU services."""
THERE = 'instance=~"$expert_instance"'
"""Selects the chosen CPU expert services."""
BOTH = 'instance=~"$instance|$expert_instance"'
GATEWAYS = 'instance=~"$gateway"'
LAYERS = f'{HERE}, layer=~"$layer"'
WINDOW = "$__rate_interval"
PERCENTILES = (0.5, 0.9, 0.99)


def rate(metric: str, selector: str, window: str = WINDOW) -> str:
    """The rate per second."""
    return f"rate({metric}{{{selector}}}[{window}])"


def total_rate(metric: str, selector: str, by: str = "", *, window: str = WINDOW) -> str:
    """The rate per second, summed by the labels in `by`."""
    return f"sum by ({by}) ({rate(metric, selector, window)})" if by else f"sum({rate(metric, selector, window)})"


def mean(histogram: str, selector: str, by: str = "") -> str:
    """The mean of a histogram's observations."""
    return f"{total_rate(f'{histogram}_sum', selector, by)} / {total_rate(f'{histogram}_count', selector, by)}"


def percentiles(histogram: str, selector: str) -> list[Query]:
    """Three percentiles of a histogram."""
    buckets = total_rate(f"{histogram}_bucket", selector, "le")
    return [Query(f"histogram_quantile({quantile}, {buckets})", f"p{quantile}") for quantile in PERCENTILES]


def of_both_services(expression: str) -> str:
    """Gives the series of both services' processes the label `service`, whatever their jobs are called.

    A service that is down has been seen within the day.
    """
    known = f"max by (job, instance, service) (last_over_time(fiddler_build_info{{{BOTH}}}[1d]))"
    return f"{expression} * on (job, instance) group_left (service) {known}"


def padded_layer(expression: str) -> str:
    """Pads layers to two digits, so that their order as texts is that of the numbers."""
    return f'label_replace({expression}, "layer", "0$1", "layer", "^(.)$")'


def padded(expression: str) -> str:
    """Pads layers to two and experts to three digits, so that their order as texts is that of the numbers."""
    for label in ("layer", "expert"):
        expression = f'label_replace({expression}, "{label}", "0$1", "{label}", "^(.)$")'
    return f'label_replace({expression}, "expert", "0$1", "expert", "^(..)$")'


def matrix(row: str, column: str) -> list[Json]:
    """Makes a table with a row for each value of one label and a column for each value of another."""
    return [{"id": "groupingToMatrix", "options": {"rowField": row, "columnField": column, "valueField": "Value"}}]


def value_names(names: Mapping[int, tuple[str, str]]) -> Json:
    """Shows values as coloured texts."""
    return {
        "type": "value",
        "options": {str(value): {"text": text, "color": colour} for value, (text, colour) in names.items()},
    }


def on_the_right(name: str, unit: str) -> Json:
    """Gives one series an axis of its own."""
    properties = [{"id": "unit", "value": unit}, {"id": "custom.axisPlacement", "value": "right"}]
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}


def dashed(name: str) -> Json:
    """Draws one series as a dashed line: a limit."""
    style = {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 8]}}
    return {"matcher": {"id": "byName", "options": name}, "properties": [style]}
