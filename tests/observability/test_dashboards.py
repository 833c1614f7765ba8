"""Grafana's dashboards and docs/metrics.md against what they are made from, and against what the services declare."""

import json
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import cpu_expert_service.metrics
import gpu_service.metrics
import http_gateway.metrics
from fiddler.metrics import BUILD_NAME, declared
from observability.generate.files import DASHBOARDS, ROOT, files
from observability.generate.metrics_page import undescribed
from observability.generate.model import COLUMNS, DATASOURCE, DATASOURCE_VARIABLE
from observability.generate.unplotted import UNPLOTTED
from tests.compose.dashboards import metrics_of, panel_queries
from tests.support.rules import ALERTS, RECORDS

MODULES: tuple[ModuleType, ...] = (gpu_service.metrics, cpu_expert_service.metrics, http_gateway.metrics)
DECLARED = {metric.name for module in MODULES for metric in declared(module)} | {BUILD_NAME}
OF_THE_PYTHON_CLIENT = re.compile("process_|python_|up$")
BUILT_IN = {"__rate_interval", "__range", "__interval"}


def _panels(dashboard: Any) -> Iterator[Any]:
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


@pytest.fixture(scope="module")
def written() -> list[Any]:
    """The dashboards as Grafana reads them."""
    folder = ROOT / "observability" / "grafana" / "dashboards"
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir())]


def test_what_is_committed_is_what_make_observability_writes(written: list[Any]) -> None:
    stale = [path.name for path, text in files().items() if path.read_text() != text]
    assert stale == []
    assert {dashboard["uid"] for dashboard in written} == {dashboard.uid for dashboard in DASHBOARDS}


def test_every_panel_says_what_it_shows_in_which_unit_and_from_when_on_it_is_bad(written: list[Any]) -> None:
    for dashboard in written:
        for panel in _panels(dashboard):
            name = dashboard["title"], panel["title"]
            defaults = panel["fieldConfig"]["defaults"]
            assert len(panel["description"]) > 30, name
            assert panel["description"].endswith("."), name
            assert defaults["unit"], name
            assert defaults["thresholds"]["steps"], name
            assert panel["targets"], name


def test_panels_lie_side_by_side_and_not_on_each_other(written: list[Any]) -> None:
    for dashboard in written:
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= COLUMNS
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, (dashboard["title"], panel["title"])
            taken |= cells
        numbers = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(numbers)) == len(numbers)


def test_no_colour_is_set_that_one_of_the_themes_would_hide(written: list[Any]) -> None:
    """Grafana's own names follow the theme; black and white do not."""
    for dashboard in written:
        text = json.dumps(dashboard)
        assert not re.search(r'"#[0-9a-fA-F]{3,8}"|"(black|white)"|rgba?\(', text), dashboard["title"]


def test_every_variable_that_a_query_uses_can_be_chosen_and_every_choice_is_used(written: list[Any]) -> None:
    for dashboard in written:
        queries = " ".join(target["expr"] for panel in _panels(dashboard) for target in panel["targets"])
        used = set(re.findall(r"\$\{?([a-z_]{2,})", queries)) - BUILT_IN
        source, *variables = dashboard["templating"]["list"]
        assert used == {variable["name"] for variable in variables}, dashboard["title"]
        assert (source["name"], source["type"]) == (DATASOURCE_VARIABLE, "datasource")


def test_dashboards_can_be_imported_anywhere_with_jobs_of_any_name(written: list[Any]) -> None:
    for dashboard in written:
        sources = [found for found in _found(dashboard, "datasource") if found is not None]
        assert len(sources) > len(dashboard["panels"])
        assert all(source == DATASOURCE for source in sources)
        queries = [*_found(dashboard, "expr"), *_found(dashboard, "definition")]
        assert [query for query in queries if re.search(r"\bjob\s*(=|!)", query)] == []


def _found(part: Any, name: str) -> Iterator[Any]:
    """The values of a field, however deep it is."""
    if isinstance(part, dict):
        yield from (value for key, value in part.items() if key == name)
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _found(value, name)


def test_every_panel_says_why_it_is_empty(written: list[Any]) -> None:
    """Grafana shows this text, also where a chart would be."""
    for dashboard in written:
        for panel in _panels(dashboard):
            why = panel["fieldConfig"]["defaults"]["noValue"]
            is_number = panel["type"] in ("stat", "gauge", "bargauge")
            assert len(why) > (10 if is_number else 30), panel["title"]


def test_queries_name_what_is_declared_or_recorded() -> None:
    for query in panel_queries():
        for name in metrics_of(query.expression):
            assert name in DECLARED | RECORDS.keys() or OF_THE_PYTHON_CLIENT.match(name), str(query)


def test_every_metric_is_on_a_panel_or_listed_with_the_reason_why_not() -> None:
    shown = set().union(*(metrics_of(query.expression) for query in panel_queries()))
    shown |= set().union(*(metrics_of(RECORDS[name]) for name in shown & RECORDS.keys()))
    assert DECLARED - shown - UNPLOTTED.keys() == set()
    assert UNPLOTTED.keys() & shown == set()
    assert all(reason for reason in UNPLOTTED.values())


def test_nothing_is_recorded_that_nobody_looks_at() -> None:
    looked_at = set().union(*(metrics_of(query.expression) for query in panel_queries()))
    looked_at |= set().union(*(metrics_of(alert["expr"]) for alert in ALERTS.values()))
    looked_at |= set().union(*(metrics_of(expression) for expression in RECORDS.values()))
    assert RECORDS.keys() - looked_at == set()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_label_is_described_and_every_name_ends_with_its_unit(module: ModuleType) -> None:
    metrics = list(declared(module))
    assert undescribed(metrics) == set()
    for metric in metrics:
        assert metric.name.startswith("fiddler_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.description.endswith(".") or ":" in metric.description, metric.name
