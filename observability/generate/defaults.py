"""The default looks of each kind of panel. No colour is set that either theme would hide."""

from observability.generate.model import Json, Kind

_TOOLTIP: Json = {"mode": "multi", "sort": "desc"}
_LEGEND: Json = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
_REDUCE: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}


def custom(kind: Kind, stacked: bool, has_thresholds: bool) -> Json:
    """fieldConfig.defaults.custom."""
    stacking = {"mode": "normal" if stacked else "none", "group": "A"}
    match kind:
        case "timeseries":
            return {
                "drawStyle": "line",
                "lineInterpolation": "linear",
                "lineWidth": 1,
                "fillOpacity": 40 if stacked else 10,
                "showPoints": "auto",
                "spanNulls": False,
                "stacking": stacking,
                "thresholdsStyle": {"mode": "dashed" if has_thresholds else "off"},
            }
        case "barchart":
            return {"fillOpacity": 80, "lineWidth": 1}
        case "table":
            return {"align": "center", "cellOptions": {"type": "auto"}}
        case "state-timeline":
            return {"fillOpacity": 70, "lineWidth": 0}
    return {}


def options(kind: Kind) -> Json:
    """A panel's options."""
    match kind:
        case "timeseries":
            return {"legend": _LEGEND, "tooltip": _TOOLTIP}
        case "stat":
            return {
                "reduceOptions": _REDUCE,
                "colorMode": "value",
                "graphMode": "area",
                "justifyMode": "auto",
                "textMode": "auto",
                "orientation": "auto",
            }
        case "gauge":
            return {"reduceOptions": _REDUCE, "showThresholdLabels": False, "showThresholdMarkers": True}
        case "bargauge":
            return {"reduceOptions": _REDUCE, "displayMode": "basic", "orientation": "horizontal", "valueMode": "text"}
        case "barchart":
            return {
                "legend": _LEGEND,
                "tooltip": _TOOLTIP,
                "stacking": "none",
                "showValue": "never",
            }
        case "table":
            return {"showHeader": True, "cellHeight": "sm"}
        case "state-timeline":
            return {"legend": _LEGEND, "tooltip": _TOOLTIP, "showValue": "auto", "mergeValues": True, "rowHeight": 0.8}
        case "heatmap":
            return _heatmap()


def _heatmap() -> Json:
    return {
        "calculate": False,  # every series is a row
        "cellGap": 1,
        "rowsFrame": {"layout": "auto"},
        "color": {"mode": "scheme", "scheme": "Turbo", "steps": 64, "reverse": False, "exponent": 0.5},
        "filterValues": {"le": 1e-9},  # 0 shows the theme's background
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": True},
        "yAxis": {"axisPlacement": "left", "reverse": True},
    }
