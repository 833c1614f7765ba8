"""Panels by their kind: what all charts, numbers and maps of layers have in common."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from typing_extensions import Unpack

from observability.generate.expressions import matrix, padded_layer
from observability.generate.model import Json, Panel, Query


class Look(TypedDict, total=False):
    """What differs from one panel of a kind to another; the fields are those of Panel."""

    thresholds: Mapping[float, str]
    stacked: bool
    maximum: float
    options: Json
    custom: Json
    mappings: Sequence[Json]
    overrides: Sequence[Json]
    when_empty: str


class SizedLook(Look, total=False):
    """The same, of panels whose size differs, too."""

    width: int
    height: int


def chart(title: str, description: str, queries: Sequence[Query], unit: str, **look: Unpack[SizedLook]) -> Panel:
    """Values over time, from 0 on."""
    return Panel(title, description, "timeseries", queries, unit, minimum=0, **look)


def number(title: str, description: str, queries: Sequence[Query], unit: str, **look: Unpack[SizedLook]) -> Panel:
    """The latest values as large figures."""
    return Panel(title, description, "stat", queries, unit, **look)


def layers_over_time(title: str, description: str, expression: str, unit: str, **look: Unpack[SizedLook]) -> Panel:
    """A heat map over time with a row for each layer, from a query with one series for each."""
    return Panel(title, description, "heatmap", [Query(padded_layer(expression), "{{layer}}")], unit, **look)


def layers_by_band(title: str, description: str, expression: str, unit: str, **look: Unpack[Look]) -> Panel:
    """A table over the full width, with a row for each layer and a column for each band of experts."""
    queries, columns = [Query(padded_layer(expression), instant=True)], matrix("layer", "band")
    return Panel(title, description, "table", queries, unit, width=24, height=14, transformations=columns, **look)
