"""The parts of Grafana's dashboards that are used here (Grafana 11 and later). write.py writes them as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Kind = Literal["timeseries", "stat", "heatmap", "table", "bargauge", "barchart", "gauge", "state-timeline"]

DATASOURCE_VARIABLE = "datasource"
DATASOURCE: Json = {"type": "prometheus", "uid": f"${{{DATASOURCE_VARIABLE}}}"}
"""The Prometheus that is chosen at the top of a dashboard, so that the dashboards can be imported into any Grafana."""
SCHEMA_VERSION = 39  # of Grafana 11; later versions migrate it
COLUMNS = 24  # of Grafana's grid


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    expression: str
    legend: str = ""
    instant: bool = False
    """One value at the end of the time range instead of a series."""
    is_histogram: bool = False
    """Whether its series are a histogram's buckets, for a heat map."""


@dataclass(frozen=True)
class Panel:
    """One panel, without its position."""

    title: str
    description: str
    kind: Kind
    queries: Sequence[Query]
    unit: str
    """One of Grafana's units: s, percentunit, short, Bps, ..."""
    width: int = 8
    height: int = 8
    thresholds: Mapping[float, str] = field(default_factory=lambda: {0: "green"})
    """Colours by the value from which they apply; the first is the base."""
    stacked: bool = False
    y_unit: str = ""
    """Of a heat map's rows."""
    minimum: float | None = None
    maximum: float | None = None
    options: Json = field(default_factory=dict)
    custom: Json = field(default_factory=dict)
    """fieldConfig.defaults.custom, in addition to the defaults of the kind."""
    mappings: Sequence[Json] = ()
    overrides: Sequence[Json] = ()
    transformations: Sequence[Json] = ()
    when_empty: str = ""
    """What the panel shows if its queries find nothing; empty: what write.py says for its kind."""
    repeat: str | None = None
    """A variable; the panel is repeated for each of its values."""


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label."""

    name: str
    label: str
    metric: str
    of_label: str
    numeric: bool = False


@dataclass(frozen=True)
class Dashboard:
    """One dashboard."""

    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Row]


INSTANCE = Variable("instance", "GPU service", 'fiddler_build_info{service="gpu_service"}', "instance")
EXPERT_INSTANCE = Variable(
    "expert_instance", "CPU expert service", 'fiddler_build_info{service="cpu_expert_service"}', "instance"
)
GATEWAY = Variable("gateway", "HTTP gateway", 'fiddler_build_info{service="http_gateway"}', "instance")
LAYER = Variable("layer", "Layer", 'fiddler_expert_selections_total{instance=~"$instance"}', "layer", numeric=True)
