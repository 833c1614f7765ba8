"""Pieces of queries, and of what is done with their results, that several panels share."""

from collections.abc import Mapping

from observability.generate.model import Json, Query

HERE = 'instance=~"$instance"'
"""Of the GPU services that the reader chose."""
THERE = 'instance=~"$expert_instance"'
"""Of the CPU expert services."""
BOTH = 'instance=~"$instance|$expert_instance"'
LAYERS = f'{HERE}, layer=~"$layer"'
WINDOW = "$__rate_interval"
PERCENTILES = (0.5, 0.9, 0.99)


def rate(metric: str, selector: str, window: str = WINDOW) -> str:
    """Per second."""
    return f"rate({metric}{{{selector}}}[{window}])"


def total_rate(metric: str, selector: str, by: str = "", window: str = WINDOW) -> str:
    """Per second, summed up but for the labels in `by`."""
    return f"sum by ({by}) ({rate(metric, selector, window)})" if by else f"sum({rate(metric, selector, window)})"


def mean(histogram: str, selector: str, by: str = "") -> str:
    """The mean of what a histogram was told."""
    return f"{total_rate(f'{histogram}_sum', selector, by)} / {total_rate(f'{histogram}_count', selector, by)}"


def percentiles(histogram: str, selector: str) -> list[Query]:
    """Three of a histogram."""
    buckets = total_rate(f"{histogram}_bucket", selector, "le")
    return [Query(f"histogram_quantile({quantile}, {buckets})", f"p{quantile}") for quantile in PERCENTILES]


def padded(expression: str) -> str:
    """Numbers of layers and experts with two and three digits, so that they are in order when sorted as texts."""
    for label in ("layer", "expert"):
        expression = f'label_replace({expression}, "{label}", "0$1", "{label}", "^(.)$")'
    return f'label_replace({expression}, "expert", "0$1", "expert", "^(..)$")'


def matrix(row: str, column: str) -> list[Json]:
    """Makes a table of one label by another."""
    return [{"id": "groupingToMatrix", "options": {"rowField": row, "columnField": column, "valueField": "Value"}}]


def value_names(names: Mapping[int, tuple[str, str]]) -> Json:
    """Shows values as texts, each in a colour."""
    return {
        "type": "value",
        "options": {str(value): {"text": text, "color": colour} for value, (text, colour) in names.items()},
    }


def on_the_right(name: str, unit: str) -> Json:
    """Gives one series an axis of its own."""
    properties = [{"id": "unit", "value": unit}, {"id": "custom.axisPlacement", "value": "right"}]
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}


def dashed(name: str) -> Json:
    """Draws one series as a limit."""
    style = {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 8]}}
    return {"matcher": {"id": "byName", "options": name}, "properties": [style]}
