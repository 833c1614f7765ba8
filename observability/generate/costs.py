"""The dashboard *Where the time goes*: each part of a layer, predicted and actual. The rest is in panels."""

from observability.generate.expressions import HERE, LAYERS, matrix, mean, total_rate
from observability.generate.kinds import chart, layers_over_time
from observability.generate.model import EXPERT_INSTANCE, INSTANCE, LAYER, Dashboard, Panel, Query, Row
from observability.generate.panels.costs_services import CPU, HOP, NORMAL

_STEPS = total_rate("fiddler_step_seconds_count", HERE)
_LAYER, _EXPERTS = (total_rate("fiddler_layer_seconds_total", which) for which in (LAYERS, HERE))
_ACTUAL, _PREDICTED = "fiddler_layer_actual_seconds_total", "fiddler_layer_predicted_seconds_total"


def _side(side: str, description: str) -> Panel:
    """One side of the layers, predicted and actual."""
    which = f'{LAYERS}, part="{side.lower()}"'
    queries = [Query(total_rate(_PREDICTED, which), "predicted"), Query(total_rate(_ACTUAL, which), "actual")]
    return chart(f"{side} side: predicted and actual", description, queries, "percentunit")


_WHOLE = (
    chart(
        "The engine's time",
        "Shares of the engine's time: experts, and the rest of the model (attention, routers, head). The remainder is "
        "sampling and idle time.",
        [
            Query(_EXPERTS, "experts"),
            Query(f"{total_rate('fiddler_step_seconds_sum', HERE)} - {_EXPERTS}", "rest of the model"),
        ],
        "percentunit",
        stacked=True,
    ),
    chart(
        "One step",
        "Mean seconds of a batch: with pieces of prompts (prefill), or with next tokens alone (decode).",
        [Query(mean("fiddler_step_seconds", HERE, "phase"), "{{phase}}")],
        "s",
    ),
    chart(
        "Both sides at once",
        "Share of the layers' time in which the device and the CPU expert service worked at the same time. It is 0 if "
        "all experts are on one side.",
        [Query(f"{total_rate('fiddler_layer_overlap_seconds_total', LAYERS)} / {_LAYER}", "overlap")],
        "percentunit",
        maximum=1,
    ),
)

_PARTS = (
    chart(
        "Parts of the layers",
        "Mean seconds per batch, of the chosen layers together. cpu: experts in the CPU expert service. hop: transport "
        "of messages, both ways. gpu: experts on the device, including waits for copies. transfer: copies that a batch "
        "waited for. Parts overlap.",
        [Query(f"{total_rate(_ACTUAL, LAYERS, 'part')} / ignoring (part) group_left {_STEPS}", "{{part}}")],
        "s",
    ),
    Panel(
        "Parts by layer",
        "Mean seconds per batch over the time range, layer by layer.",
        "barchart",
        [
            Query(
                f"{total_rate(_ACTUAL, LAYERS, 'layer, part', window='$__range')} / ignoring (layer, part) group_left "
                + total_rate("fiddler_step_seconds_count", HERE, window="$__range"),
                instant=True,
            )
        ],
        "s",
        minimum=0,
        transformations=matrix("layer", "part"),
    ),
    layers_over_time(
        "Each layer",
        "Each layer is a row: mean seconds per batch from the router's choice in a layer until the sum of its experts "
        "was computed.",
        f"{total_rate('fiddler_layer_seconds_total', LAYERS, 'layer')} / ignoring (layer) group_left {_STEPS}",
        "s",
        when_empty="No batch was computed in this time range.",
    ),
    chart(
        "Actual over predicted",
        "By part: the actual time over the time that the costs predicted. Near 1, plans are based on correct costs.",
        [Query(f"{total_rate(_ACTUAL, LAYERS, 'part')} / {total_rate(_PREDICTED, LAYERS, 'part')}", "{{part}}")],
        "short",
        thresholds={0: "orange", 0.5: "green", 2: "orange"},
    ),
    _side(
        "CPU",
        "Share of the time in which the CPU expert service computed, as predicted and as it reported.",
    ),
    _side(
        "GPU",
        "Share of the time in which the device computed experts, including waits for copies, predicted and actual. It "
        "is 0 if the device computes none.",
    ),
)

DASHBOARD = Dashboard(
    "fiddler-costs",
    "Where the time goes",
    "The time of each layer on either side and between them, the prediction, and whether this speed is normal.",
    (INSTANCE, EXPERT_INSTANCE, LAYER),
    (
        Row("Is this speed normal?", NORMAL),
        Row("A step", _WHOLE),
        Row("The parts of a layer", _PARTS),
        Row("Between the services, and to the device", HOP),
        Row("The CPU expert service", CPU),
    ),
)
