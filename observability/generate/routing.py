"""The dashboard *Expert routing*: how experts are used. Panels of single experts are in panels/routing_experts.py."""

from observability.generate.expressions import HERE, LAYERS, on_the_right, padded_layer, total_rate
from observability.generate.model import INSTANCE, LAYER, Dashboard, Panel, Query, Row
from observability.generate.panels.routing_experts import EXPERTS

_SELECTIONS = "fiddler_expert_selections_total"
_UNEVEN = {1.0: "green", 3.0: "yellow", 6.0: "orange"}

_NOW = (
    Panel(
        "Resident hits",
        "Share of the chosen experts whose weights were resident on the device. By default 0 with --device cpu.",
        "stat",
        [Query(f"avg(instance:fiddler_resident_hits:ratio_rate1m{{{HERE}}})", "hits")],
        "percentunit",
        width=4,
        height=4,
        thresholds={0: "text", 0.2: "orange", 0.5: "yellow", 0.8: "green"},
    ),
    Panel(
        "Selections",
        "Experts chosen per second in all layers together. One token at top-2 counts 2 in each layer.",
        "stat",
        [Query(f"sum(instance_route:fiddler_expert_selections:rate1m{{{HERE}}})", "selections")],
        "cps",
        width=4,
        height=4,
    ),
    Panel(
        "Largest imbalance",
        "Selections of the most chosen expert in the most uneven layer, over the mean of the layer's experts. 1 is "
        "even. The more uneven, the more a few resident experts gain.",
        "stat",
        [Query(f"max(fiddler_expert_imbalance_ratio{{{LAYERS}}})", "imbalance")],
        "short",
        width=4,
        height=4,
        thresholds=_UNEVEN,
    ),
    Panel(
        "Resident experts",
        "Experts of all layers whose weights stay on the device.",
        "stat",
        [Query(f"sum(fiddler_resident_experts{{{HERE}}})", "resident")],
        "short",
        width=4,
        height=4,
    ),
    Panel(
        "Slots",
        "Number of experts that fit on the device (--gpu-expert-memory).",
        "stat",
        [Query(f"sum(fiddler_expert_slots{{{HERE}}})", "slots")],
        "short",
        width=4,
        height=4,
    ),
    Panel(
        "Swaps",
        "Experts per minute that replaced another one on the device.",
        "stat",
        [Query(f"60 * {total_rate('fiddler_placement_swaps_total', HERE)}", "swaps")],
        "cpm",
        width=4,
        height=4,
    ),
)

_LAYER_BY_LAYER = (
    Panel(
        "Imbalance",
        "Each layer is a row: recent selections of the most chosen expert over the mean of all experts. 1 is even.",
        "heatmap",
        [Query(padded_layer(f"max by (layer) (fiddler_expert_imbalance_ratio{{{LAYERS}}})"), "{{layer}}")],
        "short",
        height=12,
    ),
    Panel(
        "Hits by layer",
        "Each layer is a row: the share of the chosen experts whose weights were resident on the device.",
        "heatmap",
        [
            Query(
                padded_layer(
                    total_rate(_SELECTIONS, f'{LAYERS}, route="resident"', "layer")
                    + f" / {total_rate(_SELECTIONS, LAYERS, 'layer')}"
                ),
                "{{layer}}",
            )
        ],
        "percentunit",
        height=12,
        when_empty="No token was computed in this time range, so that no expert was chosen.",
    ),
    Panel(
        "Resident experts by layer",
        "Each layer is a row: the number of its experts that are resident on the device, as the placement policy "
        "divides the slots.",
        "heatmap",
        [Query(padded_layer(f"sum by (layer) (fiddler_resident_experts{{{LAYERS}}})"), "{{layer}}")],
        "short",
        height=12,
    ),
)

_MOVING = (
    Panel(
        "Swaps over time",
        "Experts that replaced another one on the device. Demand: a batch needed their copy anyway, and they stay. "
        "Swap: the placement policy copied them in the background. Many follow a change of the load, few come later.",
        "timeseries",
        [Query(total_rate("fiddler_placement_swaps_total", HERE, "reason"), "{{reason}}")],
        "cps",
        minimum=0,
    ),
    Panel(
        "Prefetched experts",
        "Experts that were copied ahead of their layer, by whether the layer used them; guesses of a layer's experts, "
        "by whether they were right; and the share of the copies that was used.",
        "timeseries",
        [
            Query(total_rate("fiddler_prefetched_experts_total", HERE, "outcome"), "{{outcome}}"),
            Query(total_rate("fiddler_prefetch_guesses_total", HERE, "outcome"), "guessed {{outcome}}"),
            Query(f"instance:fiddler_prefetch_hits:ratio_rate5m{{{HERE}}}", "hits"),
        ],
        "cps",
        minimum=0,
        overrides=[on_the_right("hits", "percentunit")],
    ),
    Panel(
        "Copied to the device",
        "Bytes of weights per second by reason. Demand: a batch waited for them. Prefetch: ahead of their layer. Swap: "
        "by the placement policy, in the background.",
        "timeseries",
        [Query(total_rate("fiddler_expert_copied_bytes_total", HERE, "reason"), "{{reason}}")],
        "Bps",
        stacked=True,
        minimum=0,
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
