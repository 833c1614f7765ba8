"""Panels of the dashboard *Service*: health, memory and errors of both services."""

from observability.generate.expressions import BOTH, HERE, THERE, of_both_services, rate, total_rate, value_names
from observability.generate.kinds import chart, number
from observability.generate.model import Panel, Query

_VERSIONS = ["service", "version", "model_name", "model_type", "device", "kernel"]
_BAD_ABOVE_ZERO = {0.0: "green", 1.0: "red"}

HEALTH = (
    number(
        "Scraped",
        "Whether Prometheus reaches both services' /metrics. A service that it has not reached for a day is not shown.",
        [Query(f"min by (service) ({of_both_services(f'up{{{BOTH}}}')})", "{{service}}")],
        "short",
        width=6,
        height=5,
        thresholds={0: "red", 1: "green"},
        mappings=[value_names({0: ("down", "red"), 1: ("up", "green")})],
        options={"graphMode": "none"},
    ),
    number(
        "Degraded",
        "Whether a GPU service has lost its CPU expert service and computes without it: the same tokens, slower.",
        [Query(f"max(fiddler_degraded{{{HERE}}})", "degraded")],
        "short",
        width=3,
        height=5,
        thresholds=_BAD_ABOVE_ZERO,
        mappings=[value_names({0: ("no", "green"), 1: ("degraded", "red")})],
        options={"graphMode": "none"},
    ),
    number(
        "Failed",
        "Share of failures among the generations that ended within five minutes. Invalid requests and refusals by a "
        "full queue are not failures.",
        [Query(f"max(instance:fiddler_requests_failed:ratio_rate5m{{{HERE}}})", "failed")],
        "percentunit",
        width=3,
        height=5,
        thresholds={0: "green", 0.01: "orange", 0.05: "red"},
    ),
    Panel(
        "The CPU expert service in use",
        "Green while the GPU service uses its CPU expert service.",
        "state-timeline",
        [Query(f"min by (instance) (fiddler_expert_service_up{{{HERE}}})", "{{instance}}")],
        "short",
        width=6,
        height=5,
        thresholds={0: "red", 1: "green"},
        mappings=[value_names({0: ("not in use", "red"), 1: ("in use", "green")})],
        options={"showValue": "never"},
    ),
    Panel(
        "Versions",
        "Versions of both services, with model, model type, device and kernel.",
        "table",
        [Query(f"fiddler_build_info{{{BOTH}}}", instant=True)],
        "short",
        width=6,
        height=5,
        transformations=[
            {
                "id": "filterFieldsByName",
                "options": {"include": {"names": _VERSIONS}},
            }
        ],
    ),
)

MEMORY = (
    chart(
        "Keys and values",
        "Share of the memory for keys and values (--kv-memory) and of the KV rows (--max-slots) that is reserved for "
        "running requests.",
        [
            Query(f"sum(fiddler_kv_used_bytes{{{HERE}}}) / sum(fiddler_kv_capacity_bytes{{{HERE}}})", "bytes"),
            Query(f"sum(fiddler_kv_used_slots{{{HERE}}}) / sum(fiddler_kv_capacity_slots{{{HERE}}})", "rows"),
        ],
        "percentunit",
        width=6,
        maximum=1,
        thresholds={0: "green", 0.9: "orange"},
    ),
    chart(
        "Expert weights in memory",
        "Share of the weights that are resident in the CPU expert service's memory. The rest is read from disk when it "
        "is needed, which is slow.",
        [
            Query(f"min(instance:fiddler_expert_resident_bytes:ratio{{{THERE}}})", "in memory"),
        ],
        "percentunit",
        width=6,
        maximum=1,
        thresholds={0: "red", 0.95: "green"},
    ),
    chart(
        "Memory",
        "Resident memory of both processes. The CPU expert service's includes the weights' pages, which the system can "
        "reclaim.",
        [
            Query(f"sum by (service) ({of_both_services(f'process_resident_memory_bytes{{{BOTH}}}')})", "{{service}}"),
            Query(f"sum(fiddler_expert_weight_bytes{{{THERE}}})", "expert weights"),
            Query(f"sum(fiddler_expert_repacked_bytes{{{THERE}}})", "experts that were repacked"),
            Query(f"sum(fiddler_dense_weight_bytes{{{HERE}}})", "dense weights"),
        ],
        "bytes",
        width=6,
    ),
    chart(
        "CPUs in use",
        "CPU seconds per second of both processes, and the number of threads that compute experts.",
        [
            Query(f"sum by (service) ({of_both_services(rate('process_cpu_seconds_total', BOTH))})", "{{service}}"),
            Query(f"sum(fiddler_expert_threads{{{THERE}}})", "expert threads"),
        ],
        "short",
        width=6,
    ),
)

ERRORS = (
    chart(
        "Errors by status",
        "Generations per second that were refused or failed, by gRPC status.",
        [
            Query(total_rate("fiddler_requests_total", f'{HERE}, finish_reason="error"', "status"), "{{status}}"),
        ],
        "reqps",
        width=6,
    ),
    chart(
        "Failed calls to experts",
        "Calls per second that failed in the GPU service, and messages that the CPU expert service answered with an "
        "error, by gRPC status.",
        [
            Query(total_rate("fiddler_expert_call_failures_total", HERE, "code"), "{{code}}, as called"),
            Query(total_rate("fiddler_expert_requests_total", f'{THERE}, code!="OK"', "code"), "{{code}}, as answered"),
        ],
        "cps",
        width=6,
    ),
    number(
        "Losses of the CPU expert service",
        "In the time range: losses, returns, the seconds without it, the layers whose messages the GPU service "
        "computed instead, and rows with non-finite answers.",
        [
            Query(f"sum(increase({metric}{{{HERE}}}[$__range]))", legend, instant=True)
            for legend, metric in {
                "lost": "fiddler_expert_service_losses_total",
                "back": "fiddler_expert_service_reconnects_total",
                "seconds": "fiddler_degraded_seconds_total",
                "replanned": "fiddler_replanned_layers_total",
                "non-finite rows": "fiddler_spoiled_rows_total",
            }.items()
        ],
        "short",
        width=6,
        thresholds={0: "green", 1: "orange"},
        options={"graphMode": "none"},
    ),
    chart(
        "Streams to the CPU expert service",
        "Open streams, and answered messages per second.",
        [
            Query(f"sum(fiddler_expert_streams{{{THERE}}})", "streams"),
            Query(total_rate("fiddler_expert_requests_total", f'{THERE}, code="OK"'), "messages/s"),
        ],
        "short",
        width=6,
    ),
)
