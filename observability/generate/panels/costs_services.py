"""Panels of *Where the time goes*: bandwidth and its limit, the hop, the CPU expert service."""

from observability.generate.expressions import HERE, THERE, dashed, matrix, mean, percentiles, total_rate
from observability.generate.kinds import chart, number
from observability.generate.model import Panel, Query

_DEMANDED_BYTES = total_rate("fiddler_expert_copied_bytes_total", f'{HERE}, reason="demand"')
_TRANSFER_SECONDS = total_rate("fiddler_layer_actual_seconds_total", f'{HERE}, part="transfer"')

NORMAL = (
    Panel(
        "Bandwidth achieved",
        "Bytes of weights per second that the CPU expert service reads, over the rate of the same kernel at the start, "
        "when it ran alone. Only messages with few rows count, whose time is that of reading weights. Far below 1, "
        "other programs use its cores or memory, or experts are as small as those of models/demo and everything else "
        "takes longer.",
        "gauge",
        [Query(f"avg(instance:fiddler_expert_weight_read:ratio5m{{{THERE}}})", "achieved")],
        "percentunit",
        width=5,
        height=7,
        minimum=0,
        maximum=1.2,
        thresholds={0: "red", 0.5: "orange", 0.8: "green"},
    ),
    chart(
        "Read bandwidth",
        "Achieved: by messages with few rows. Alone: by the kernel at the start. Limit: by the same threads if they "
        "read the same weights and compute nothing, or by the kernel if that was faster, as with experts that are "
        "small enough to stay in caches.",
        [
            Query(f"avg(instance:fiddler_expert_weight_read:bytes_per_second5m{{{THERE}}})", "achieved"),
            Query(f"avg(fiddler_expert_kernel_read_bytes_per_second{{{THERE}}})", "alone"),
            Query(f"avg(fiddler_expert_memory_read_bytes_per_second{{{THERE}}})", "limit"),
        ],
        "Bps",
        width=9,
        height=7,
        overrides=[dashed("alone"), dashed("limit")],
    ),
    chart(
        "Tokens generated",
        "Tokens per second, of all requests together.",
        [Query(f"sum by (instance) (instance:fiddler_generation_tokens:rate1m{{{HERE}}})", "{{instance}}")],
        "cps",
        width=5,
        height=7,
    ),
    number(
        "Costs against start-up",
        "The factor that corrects the measured costs by the time that messages and copies actually take. Far from 1, "
        "the machine is not as it was when the costs were measured.",
        [Query(f"avg by (of) (fiddler_cost_correction_ratio{{{HERE}}})", "{{of}}")],
        "short",
        width=5,
        height=7,
        thresholds={0: "orange", 0.5: "green", 2: "orange"},
    ),
)

HOP = (
    chart(
        "Round trip",
        "Seconds from sending a layer's rows until the answer is received, including computing.",
        percentiles("fiddler_expert_call_seconds", HERE),
        "s",
        width=6,
    ),
    chart(
        "Bytes between the services",
        "Bytes per second: hidden rows, ids and routing weights sent, and partial sums received.",
        [Query(total_rate("fiddler_expert_call_bytes_total", HERE, "direction"), "{{direction}}")],
        "Bps",
        width=6,
    ),
    chart(
        "Copies to the device",
        "Bytes per second of the copies that a batch waited for, while they ran: the bandwidth of the link to the "
        "device. It is 0 if nothing is copied.",
        [
            Query(
                f"{_DEMANDED_BYTES} / ({_TRANSFER_SECONDS} > 0) or 0 * sum(fiddler_expert_slots{{{HERE}}})",
                "achieved",
            )
        ],
        "Bps",
        width=6,
    ),
    Panel(
        "Costs",
        "The seconds that plans are based on now: one expert with one row on either side, one copy, one message.",
        "bargauge",
        [Query(f"avg by (of) (fiddler_cost_seconds{{{HERE}}})", "{{of}}")],
        "s",
        width=6,
        minimum=0,
    ),
)

CPU = (
    chart(
        "The CPU expert service's time",
        "Share of the time in which it computes a message, or is idle. If it is never idle, it limits the speed.",
        [
            Query(f"avg(instance:fiddler_expert_busy:ratio_rate1m{{{THERE}}})", "computing"),
            Query(f"avg(rate(fiddler_expert_idle_seconds_total{{{THERE}}}[1m]))", "idle"),
        ],
        "percentunit",
        width=6,
        stacked=True,
        maximum=1,
    ),
    chart(
        "One message there",
        "Mean seconds that a message waits for others, and that it takes to compute.",
        [Query(mean(f"fiddler_expert_{stage}_seconds", THERE), stage) for stage in ("queue", "compute")],
        "s",
        width=6,
    ),
    chart(
        "Rows in a message",
        "Each token of a batch that needs the CPU is one row.",
        percentiles("fiddler_expert_call_rows", THERE),
        "short",
        width=6,
    ),
    Panel(
        "One expert at start-up",
        "Seconds of each kernel by the number of rows (with more than one row, for a part of an expert). The table is "
        "empty if PyTorch is the only kernel.",
        "table",
        [Query(f"avg by (kernel, rows) (fiddler_expert_kernel_seconds{{{THERE}}})", instant=True)],
        "s",
        width=6,
        transformations=matrix("rows", "kernel"),
    ),
)
