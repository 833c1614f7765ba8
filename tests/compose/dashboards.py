"""What Grafana would ask Prometheus for: the queries of every panel, with the variables as a reader first finds them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.compose.stack import ROOT

_DASHBOARDS = ROOT / "observability" / "grafana" / "dashboards"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_SUFFIXES = ("_bucket", "_sum", "_count")
# of a dashboard that shows the last minutes of a server that is scraped every five seconds
_BUILT_IN = {"__rate_interval": "20s", "__range": "2m", "__interval": "5s"}


@dataclass(frozen=True)
class PanelQuery:
    """One query of one panel."""

    dashboard: str
    panel: str
    expression: str
    """As Prometheus takes it."""

    def __str__(self) -> str:
        return f"{self.dashboard}, {self.panel}: {self.expression}"


def panel_queries() -> list[PanelQuery]:
    """Every query of every dashboard."""
    found = []
    for path in sorted(_DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text())
        variables = {variable["name"]: ".*" for variable in dashboard["templating"]["list"]} | _BUILT_IN
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
    filled = re.sub(r"\$\{?([a-z_]{2,})\}?", lambda match: variables[match[1]], expression)
    return filled


def metrics_of(expression: str) -> set[str]:
    """The names in a query that may be metrics, histograms by their own name."""
    names = set(_NAME.findall(re.sub(r'"[^"]*"', "", expression)))
    return names | {name.removesuffix(suffix) for name in names for suffix in _SUFFIXES}
