"""The dashboard *Expert routing*: how experts are used. Panels of single experts are in panels/routing_experts.py."""

from typing_extensions import Unpack

from observability.generate.expressions import HERE, LAYERS, on_the_right, total_rate
from observability.generate.kinds import Look, chart, layers_over_time, number
from observability.generate.model import INSTANCE, LAYER, Dashboard, Panel, Query, Row
from observability.generate.panels.routing_experts import EXPERTS

_SELECTIONS = "fiddler_expert_selections_total"
_UNEVEN = {1.0: "green", 3.0: "yellow", 6.0: "orange"}


def _small(title: str, description: str, expression: str, unit: str, legend: str, **look: Unpack[Look]) -> Panel:
    """One of six figures side by side."""
    return number(title, description, [Query(expression, legend)], unit, width=4, height=4, **look)


_NOW = (
    _small(
        "Resident hits",
        "Share of the chosen experts whose weights were resident on the device. By default 0 with --device cpu.",
        f"avg(instance:fiddler_resident_hits:ratio_rate1m{{{HERE}}})",
        "percentunit",
        "hits",
        thresholds={0: "text", 0.2: "orange", 0.5: "yellow", 0.8: "green"},
    ),
    _small(
        "Selections",
        "Experts chosen per second in all layers together. One token at top-2 counts 2 in each layer.",
        f"sum(instance_route:fiddler_expert_selections:rate1m{{{HERE}}})",
        "cps",
        "selections",
    ),
    _small(
        "Largest imbalance",
        "Selections of the most chosen expert in the most uneven layer, over the mean of the layer's experts. 1 is "
        "even. The more uneven, the more a few resident experts gain.",
        f"max(fiddler_expert_imbalance_ratio{{{LAYERS}}})",
        "short",
        "imbalance",
        thresholds=_UNEVEN,
    ),
    _small(
        "Resident experts",
        "Experts of all layers whose weights stay on the device.",
        f"sum(fiddler_resident_experts{{{HERE}}})",
        "short",
        "resident",
    ),
    _small(
        "Slots",
        "Number of experts that fit on the device (--gpu-expert-memory).",
        f"sum(fiddler_expert_slots{{{HERE}}})",
        "short",
        "slots",
    ),
    _small(
        "Swaps",
        "Experts per minute that replaced another one on the device.",
        f"60 * {total_rate('fiddler_placement_swaps_total', HERE)}",
        "cpm",
        "swaps",
    ),
)

_LAYER_BY_LAYER = (
    layers_over_time(
        "Imbalance",
        "Each layer is a row: recent selections of the most chosen expert over the mean of all experts. 1 is even.",
        f"max by (layer) (fiddler_expert_imbalance_ratio{{{LAYERS}}})",
        "short",
        height=12,
    ),
    layers_over_time(
        "Hits by layer",
        "Each layer is a row: the share of the chosen experts whose weights were resident on the device.",
        total_rate(_SELECTIONS, f'{LAYERS}, route="resident"', "layer")
        + f" / {total_rate(_SELECTIONS, LAYERS, 'layer')}",
        "percentunit",
        height=12,
        when_empty="No token was computed in this time range, so that no expert was chosen.",
    ),
    layers_over_time(
        "Resident experts by layer",
        "Each layer is a row: the number of its experts that are resident on the device, as the placement policy "
        "divides the slots.",
        f"sum by (layer) (fiddler_resident_experts{{{LAYERS}}})",
        "short",
        height=12,
    ),
)

_MOVING = (
    chart(
        "Swaps over time",
        "Experts that replaced another one on the device. Demand: a batch needed their copy anyway, and they stay. "
        "Swap: the placement policy copied them in the background. Many follow a change of the load, few come later.",
        [Query(total_rate("fiddler_placement_swaps_total", HERE, "reason"), "{{reason}}")],
        "cps",
    ),
    chart(
        "Prefetched experts",
        "Experts that were copied ahead of their layer, by whether the layer used them; guesses of a layer's experts, "
        "by whether they were right; and the share of the copies that was used.",
        [
            Query(total_rate("fiddler_prefetched_experts_total", HERE, "outcome"), "{{outcome}}"),
            Query(total_rate("fiddler_prefetch_guesses_total", HERE, "outcome"), "guessed {{outcome}}"),
            Query(f"instance:fiddler_prefetch_hits:ratio_rate5m{{{HERE}}}", "hits"),
        ],
        "cps",
        overrides=[on_the_right("hits", "percentunit")],
    ),
    chart(
        "Copied to the device",
        "Bytes of weights per second by reason. Demand: a batch waited for them. Prefetch: ahead of their layer. Swap: "
        "by the placement policy, in the background.",
        [Query(total_rate("fiddler_expert_copied_bytes_total", HERE, "reason"), "{{reason}}")],
        "Bps",
        stacked=True,
    ),
)

DASHBOARD = Dashboard(
    "fiddler-routing",
    "Expert routing",
    "Which experts tokens choose, where they are computed, and which are resident on the device.",
    (INSTANCE, LAYER),
    (
        Row("Now", _NOW),
        Row("Experts", EXPERTS),
        Row("Layer by layer", _LAYER_BY_LAYER),
        Row("Copies to the device", _MOVING),
    ),
)
