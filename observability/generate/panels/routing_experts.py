"""Panels of the dashboard *Expert routing* on single experts and their routes.

A model has up to 20,000 experts, which no screen shows one by one: maps over time show those that were chosen most
often in the time range, and maps of layers x experts have a column for each band of neighbouring experts.
"""

from observability.generate.expressions import HERE, LAYERS, WINDOW, padded, rate, total_rate
from observability.generate.kinds import chart, layers_by_band
from observability.generate.model import Json, Panel, Query

_BY_EXPERT = "fiddler_expert_selections_by_expert_total"
_BY_BAND = "fiddler_expert_selections_by_band_total"
_HOTTEST = "fiddler_hot_expert_selections_ratio"
_MOST_ROWS = 64
_ROUTES = f"sum by (route) (instance_route:fiddler_expert_selections:rate1m{{{HERE}}})"
_OFF = (
    "No selections by expert in this time range: the GPU service runs with --metrics-by-expert off, is not scraped, or "
    "is not chosen above."
)


def _by_expert(window: str) -> str:
    """Selections per second of each expert; of a model with more than 20,000, of the hottest ones of each layer."""
    share = f"{_HOTTEST}{{{LAYERS}}}"
    layers = f"sum by (instance, layer) ({rate('fiddler_expert_selections_total', LAYERS, window)})"
    hottest = f"sum by (layer, expert) ({share} * on (instance, layer) group_left {layers})"
    return f"{total_rate(_BY_EXPERT, LAYERS, 'layer, expert', window=window)} or {hottest}"


def _hottest_over_time() -> str:
    """The same at each moment, of those that were chosen most often in the whole time range."""
    counted = f"sum by (layer, expert) (increase({_BY_EXPERT}{{{LAYERS}}}[$__range] @ end()))"
    shares = (
        f"sum by (layer, expert) (avg_over_time(fiddler_hot_expert_selections_ratio{{{LAYERS}}}[$__range] @ end()))"
    )
    return f"({_by_expert(WINDOW)}) and on (layer, expert) topk({_MOST_ROWS}, {counted} or {shares})"


def _states() -> list[Json]:
    """Texts for shares of a band: none, some, all."""
    return [
        {"type": "value", "options": {"0": {"text": "·", "color": "text"}, "1": {"text": "■", "color": "green"}}},
        {"type": "range", "options": {"from": 1e-9, "to": 0.999999, "result": {"text": "◧", "color": "yellow"}}},
    ]


EXPERTS = (
    Panel(
        "Experts over time",
        f"Selections per second of the {_MOST_ROWS} experts of the chosen layers that were chosen most often in the "
        "time range, named layer.expert. When the topic changes, some rows fade and others light up.",
        "heatmap",
        [
            Query(
                f'sum by (cell) (label_join({padded(f"({_hottest_over_time()})")}, "cell", ".", "layer", "expert"))',
                "{{cell}}",
            )
        ],
        "cps",
        width=16,
        height=18,
        when_empty=_OFF,
    ),
    Panel(
        "Hottest experts",
        "The ten experts of the chosen layers that were chosen most often in the time range, per second.",
        "bargauge",
        [Query(f"topk(10, {_by_expert('$__range')})", "layer {{layer}}, expert {{expert}}", instant=True)],
        "cps",
        width=8,
        height=9,
        minimum=0,
        when_empty="--metrics-by-expert is off, or nothing was computed",
    ),
    chart(
        "Where experts are computed",
        "Share of the chosen experts by route. Resident: computed with weights that are resident on the device. "
        "Streamed: with weights that are copied there for the batch, or in the GPU service while the CPU expert "
        "service is lost. Remote: by the CPU expert service. More resident experts are faster.",
        [Query(f"{_ROUTES} / ignoring (route) group_left sum ({_ROUTES})", "{{route}}")],
        "percentunit",
        height=9,
        stacked=True,
        maximum=1,
        when_empty="No token was computed in this time range, so that no expert was chosen.",
    ),
    layers_by_band(
        "Selections by layer and expert",
        "Selections per second over the time range, with a row for each layer and a column for each expert; with more "
        "than 32 experts, for each band of neighbouring experts, whose selections are added up.",
        total_rate(_BY_BAND, LAYERS, "layer, band", window="$__range"),
        "cps",
        custom={"minWidth": 36, "cellOptions": {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}},
        when_empty=_OFF,
    ),
    layers_by_band(
        "What is resident",
        "Which experts' weights stay on the device, with a row for each layer and a column for each expert, or band of "
        "neighbouring experts if there are more than 32: ■ all of them, ◧ some, · none.",
        f"max by (layer, band) (fiddler_expert_band_resident_ratio{{{LAYERS}}})",
        "percentunit",
        thresholds={0: "text", 1: "green"},
        mappings=_states(),
        custom={"minWidth": 36, "cellOptions": {"type": "color-text"}},
        when_empty=_OFF,
    ),
)
