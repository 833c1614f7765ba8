"""Writes a dashboard as Grafana's JSON: places and numbers the panels, and fills in what all of them share."""

from collections.abc import Iterator

from observability.generate.defaults import custom, options
from observability.generate.model import (
    COLUMNS,
    DATASOURCE,
    DATASOURCE_VARIABLE,
    SCHEMA_VERSION,
    Dashboard,
    Json,
    Panel,
    Query,
    Variable,
)

_TABLES = ("table", "barchart")
_NOTHING = "Nothing was counted in this time range, or no service that counts it is scraped and chosen above."
_NOTHING_SHORT = "nothing counted"  # where a number would be
_SHORT = ("stat", "gauge", "bargauge")


def dashboard_json(dashboard: Dashboard) -> Json:
    """The content of a dashboard's file."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["fiddler"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "",
        "links": [_links()],
        "annotations": {"list": [_losses()]},
        "templating": {"list": [_datasource(), *(_variable(variable) for variable in dashboard.variables)]},
        "panels": list(_place(dashboard)),
    }


def _links() -> Json:
    return {
        "type": "dashboards",
        "title": "fiddler",
        "tags": ["fiddler"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }


def _losses() -> Json:
    """Marks on every panel at the times when the CPU expert service was lost."""
    return {
        "name": "CPU expert service lost",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "expr": "changes(fiddler_expert_service_losses_total[1m]) > 0",
        "step": "15s",
        "titleFormat": "CPU expert service lost",
    }


def _datasource() -> Json:
    """The choice of the Prometheus server: Grafana's default one at first."""
    return {
        "name": DATASOURCE_VARIABLE,
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "options": [],
        "regex": "",
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "skipUrlSync": False,
    }


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.metric}, {variable.of_label})"
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "variable"},
        "refresh": 2,  # with the time range
        "sort": 3 if variable.numeric else 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
    }


def _place(dashboard: Dashboard) -> Iterator[Json]:
    number, top = 1, 0
    for row in dashboard.rows:
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        number, top, left, height = number + 1, top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, height = top + height, 0, 0
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            number, left, height = number + 1, left + panel.width, max(height, panel.height)
        top += height


def _panel(panel: Panel) -> Json:
    steps = [{"color": colour, "value": value} for value, colour in panel.thresholds.items()]
    steps[0]["value"] = None  # for Grafana: from the lowest value on
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if panel.kind in ("stat", "gauge", "bargauge") else "palette-classic"},
        "custom": {**custom(panel.kind, panel.stacked, len(panel.thresholds) > 1), **panel.custom},
        "mappings": list(panel.mappings),
        "noValue": panel.when_empty or (_NOTHING_SHORT if panel.kind in _SHORT else _NOTHING),
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    limits = {"min": panel.minimum, "max": panel.maximum}
    defaults |= {name: value for name, value in limits.items() if value is not None}
    result: Json = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [_target(query, number, panel) for number, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults, "overrides": list(panel.overrides)},
        "options": {**options(panel.kind), **panel.options},
        "transformations": list(panel.transformations),
    }
    if panel.y_unit:
        result["options"]["yAxis"] = {"axisPlacement": "left", "unit": panel.y_unit}
    if panel.repeat:
        result |= {"repeat": panel.repeat, "repeatDirection": "h", "maxPerRow": COLUMNS // panel.width}
    return result


def _target(query: Query, number: int, panel: Panel) -> Json:
    return {
        "refId": chr(ord("A") + number),
        "datasource": DATASOURCE,
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
        "format": "heatmap" if query.is_histogram else "table" if panel.kind in _TABLES else "time_series",
        "instant": query.instant,
        "range": not query.instant,
        "editorMode": "code",
    }
