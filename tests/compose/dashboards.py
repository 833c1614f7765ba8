"""The queries that Grafana sends to Prometheus: those of every panel, with the variables' initial values."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.compose.stack import ROOT

_DASHBOARDS = ROOT / "observability" / "grafana" / "dashboards"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_SUFFIXES = ("_bucket", "_sum", "_count")
_METRIC = re.compile(r"(fiddler_|process_|python_)|.*:fiddler_|vllm:|up$")
RATE_INTERVAL = "20s"
"""The shortest $__rate_interval of Grafana: four scrapes."""


@dataclass(frozen=True)
class PanelQuery:
    """One query of one panel."""

    dashboard: str
    panel: str
    expression: str
    """The query with all variables replaced."""

    def __str__(self) -> str:
        return f"{self.dashboard}, {self.panel}: {self.expression}"


def panel_queries(rate_interval: str = RATE_INTERVAL) -> list[PanelQuery]:
    """Every query of every dashboard; at least one.

    Args:
        rate_interval: The window of rates.
    """
    built_in = {"__rate_interval": rate_interval, "__range": "5m", "__interval": "5s"}
    found = []
    for path in sorted(_DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text())
        variables = {variable["name"]: ".*" for variable in dashboard["templating"]["list"]} | built_in
        for panel in _panels(dashboard["panels"]):
            for target in panel.get("targets", []):
                found.append(PanelQuery(dashboard["title"], panel["title"], _filled(target["expr"], variables)))
    assert found, f"no queries in {_DASHBOARDS}"
    return found


def _panels(panels: list[Any]) -> Iterator[Any]:
    for panel in panels:
        yield panel
        yield from _panels(panel.get("panels", []))


def _filled(expression: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{?([a-z_]{2,})\}?", lambda match: variables[match[1]], expression)


def metrics_of(expression: str) -> set[str]:
    """The metrics and recorded series in a query; histograms without their suffixes."""
    names = {name for name in _NAME.findall(re.sub(r'"[^"]*"', "", expression)) if _METRIC.match(name)}
    histograms = {name for name in names if name.endswith(_SUFFIXES)}
    return names - histograms | {name[: name.rindex("_")] for name in histograms}
