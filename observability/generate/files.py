"""The generated files and their contents."""

import json
from pathlib import Path

from observability.generate import costs, routing, service
from observability.generate.metrics_page import metrics_page
from observability.generate.vllm_names import vllm_rules
from observability.generate.write import dashboard_json

ROOT = Path(__file__).parents[2]
DASHBOARDS = (routing.DASHBOARD, costs.DASHBOARD, service.DASHBOARD)


def files() -> dict[Path, str]:
    """The text of every generated file by path."""
    made = {
        ROOT / "docs" / "metrics.md": metrics_page(),
        ROOT / "observability" / "rules" / "vllm.yml": vllm_rules(),
    }
    for dashboard in DASHBOARDS:
        path = ROOT / "observability" / "grafana" / "dashboards" / f"{dashboard.uid}.json"
        made[path] = json.dumps(dashboard_json(dashboard), indent=2, ensure_ascii=False) + "\n"
    return made
