"""Panels of the dashboard *Expert routing* on single experts and their routes."""

from observability.generate.expressions import HERE, LAYERS, matrix, padded, total_rate, value_names
from observability.generate.model import Panel, Query

_BY_EXPERT = "fiddler_expert_selections_by_expert_total"
_OVER_TIME = padded(total_rate(_BY_EXPERT, LAYERS, "layer, expert"))
_IN_RANGE = total_rate(_BY_EXPERT, LAYERS, "layer, expert", window="$__range")
_ROUTES = f"sum by (route) (instance_route:fiddler_expert_selections:rate1m{{{HERE}}})"

EXPERTS = (
    Panel(
        "Layers x experts over time",
        "Selections per second of each expert of the chosen layers, named layer.expert. When the topic changes, some "
        "rows fade and others light up. The panel is empty if --metrics-by-expert is off, or auto with more than 1024 "
        "experts in all.",
        "heatmap",
        [
            Query(
                f'sum by (cell) (label_join({_OVER_TIME}, "cell", ".", "layer", "expert"))',
                "{{cell}}",
            )
        ],
        "cps",
        width=16,
        height=18,
    ),
    Panel(
        "Hottest experts",
        "The ten experts of the chosen layers that were chosen most often in the time range, per second.",
        "bargauge",
        [Query(f"topk(10, {_IN_RANGE})", "layer {{layer}}, expert {{expert}}", instant=True)],
        "cps",
        width=8,
        height=9,
        minimum=0,
    ),
    Panel(
        "Where experts are computed",
        "Share of the chosen experts by route. Resident: computed with weights that are resident on the device. "
        "Streamed: with weights that are copied there for the batch, or in the GPU service while the CPU expert "
        "service is lost. Remote: by the CPU expert service. More resident experts are faster.",
        "timeseries",
        [Query(f"{_ROUTES} / ignoring (route) group_left sum ({_ROUTES})", "{{route}}")],
        "percentunit",
        height=9,
        stacked=True,
        minimum=0,
        maximum=1,
    ),
    Panel(
        "Selections by layer and expert",
        "Selections per second over the time range, with a row for each layer and a column for each expert.",
        "table",
        [Query(padded(_IN_RANGE), instant=True)],
        "cps",
        width=12,
        height=9,
        custom={"cellOptions": {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}},
        transformations=matrix("layer", "expert"),
    ),
    Panel(
        "What is resident",
        "Whether an expert's weights stay on the device, with a row for each layer and a column for each expert.",
        "table",
        [Query(padded(f"max by (layer, expert) (fiddler_expert_resident{{{LAYERS}}})"), instant=True)],
        "short",
        width=12,
        height=9,
        thresholds={0: "text", 1: "green"},
        mappings=[value_names({0: ("·", "text"), 1: ("■", "green")})],
        custom={"cellOptions": {"type": "color-text"}},
        transformations=matrix("layer", "expert"),
    ),
)
