"""Panels of *Where the time goes*: bandwidth against what is possible, the hop, the CPU expert service."""

from observability.generate.expressions import HERE, THERE, dashed, matrix, mean, percentiles, total_rate
from observability.generate.model import Panel, Query

_DEMANDED_BYTES = total_rate("fiddler_expert_copied_bytes_total", f'{HERE}, reason="demand"')
_TRANSFER_SECONDS = total_rate("fiddler_layer_actual_seconds_total", f'{HERE}, part="transfer"')

NORMAL = (
    Panel(
        "Bandwidth achieved",
        "Bytes of weights per second that the CPU expert service reads, over what the same kernel read at start-up, "
        "alone on the machine. Of messages with few rows, for which reading weights is what takes the time. Far below "
        "1: others use its cores or memory; or experts are as small as those of models/demo, so that all else takes "
        "longer.",
        "gauge",
        [Query(f"avg(instance:fiddler_expert_weight_read:ratio5m{{{THERE}}})", "achieved")],
        "percentunit",
        width=5,
        height=7,
        minimum=0,
        maximum=1.2,
        thresholds={0: "red", 0.5: "orange", 0.8: "green"},
    ),
    Panel(
        "Read bandwidth",
        "Achieved: by messages with few rows. Alone: by the kernel at start-up. Limit: by the same threads reading the "
        "same weights and computing nothing. Above the limit where experts are so small that they stay in caches.",
        "timeseries",
        [
            Query(f"avg(instance:fiddler_expert_weight_read:bytes_per_second5m{{{THERE}}})", "achieved"),
            Query(f"avg(fiddler_expert_kernel_read_bytes_per_second{{{THERE}}})", "alone"),
            Query(f"avg(fiddler_expert_memory_read_bytes_per_second{{{THERE}}})", "limit"),
        ],
        "Bps",
        width=9,
        height=7,
        minimum=0,
        overrides=[dashed("alone"), dashed("limit")],
    ),
    Panel(
        "Tokens generated",
        "Per second, of all requests together.",
        "timeseries",
        [Query(f"sum by (instance) (instance:fiddler_generation_tokens:rate1m{{{HERE}}})", "{{instance}}")],
        "cps",
        width=5,
        height=7,
        minimum=0,
    ),
    Panel(
        "Costs against start-up",
        "What measured costs are multiplied with by now, since real messages and copies took longer or shorter. Far "
        "from 1: the machine is not what it was when they were measured.",
        "stat",
        [Query(f"avg by (of) (fiddler_cost_correction_ratio{{{HERE}}})", "{{of}}")],
        "short",
        width=5,
        height=7,
        thresholds={0: "orange", 0.5: "green", 2: "orange"},
    ),
)

HOP = (
    Panel(
        "Round trip",
        "Seconds from sending a layer's rows until the answer is joined, computing included.",
        "timeseries",
        percentiles("fiddler_expert_call_seconds", HERE),
        "s",
        width=6,
        minimum=0,
    ),
    Panel(
        "Bytes between the services",
        "Hidden rows, ids and weights sent, and partial sums received.",
        "timeseries",
        [Query(total_rate("fiddler_expert_call_bytes_total", HERE, "direction"), "{{direction}}")],
        "Bps",
        width=6,
        minimum=0,
    ),
    Panel(
        "Copies to the device",
        "Bytes per second while weights were copied that a batch waited for: the bandwidth of the link to the device. "
        "0 where nothing is.",
        "timeseries",
        [
            Query(
                f"{_DEMANDED_BYTES} / ({_TRANSFER_SECONDS} > 0) or 0 * sum(fiddler_expert_slots{{{HERE}}})",
                "achieved",
            )
        ],
        "Bps",
        width=6,
        minimum=0,
    ),
    Panel(
        "Costs",
        "Seconds that plans are made with now: one expert with one row on either side, one copy, one message.",
        "bargauge",
        [Query(f"avg by (of) (fiddler_cost_seconds{{{HERE}}})", "{{of}}")],
        "s",
        width=6,
        minimum=0,
    ),
)

CPU = (
    Panel(
        "The CPU expert service's time",
        "Computing a message, or idle. Where it is never idle, it is what all wait for.",
        "timeseries",
        [
            Query(f"avg(instance:fiddler_expert_busy:ratio_rate1m{{{THERE}}})", "computing"),
            Query(f"avg(rate(fiddler_expert_idle_seconds_total{{{THERE}}}[1m]))", "idle"),
        ],
        "percentunit",
        width=6,
        stacked=True,
        minimum=0,
        maximum=1,
    ),
    Panel(
        "One message there",
        "Mean seconds that a message waited for others, and that it took to compute.",
        "timeseries",
        [Query(mean(f"fiddler_expert_{stage}_seconds", THERE), stage) for stage in ("queue", "compute")],
        "s",
        width=6,
        minimum=0,
    ),
    Panel(
        "Rows in a message",
        "One for each token of a batch that needs the CPU.",
        "timeseries",
        percentiles("fiddler_expert_call_rows", THERE),
        "short",
        width=6,
        minimum=0,
    ),
    Panel(
        "One expert at start-up",
        "Seconds that each kernel took, by how many rows the expert had (with more than one row, a part of an expert). "
        "None where PyTorch is the only kernel.",
        "table",
        [Query(f"avg by (kernel, rows) (fiddler_expert_kernel_seconds{{{THERE}}})", instant=True)],
        "s",
        width=6,
        transformations=matrix("rows", "kernel"),
    ),
)
