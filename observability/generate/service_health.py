"""Panels of the dashboard *Service*: whether both services are well, and what memory they use."""

from observability.generate.expressions import BOTH, HERE, THERE, total_rate, value_names
from observability.generate.model import Panel, Query

_JOBS = 'job=~"gpu_service|cpu_expert_service"'
_BAD_ABOVE_ZERO = {0.0: "green", 1.0: "red"}


HEALTH = (
    Panel(
        "Scraped",
        "Whether Prometheus reaches both services' /metrics.",
        "stat",
        [Query(f"min by (job) (up{{{_JOBS}, {BOTH}}})", "{{job}}")],
        "short",
        width=6,
        height=5,
        thresholds={0: "red", 1: "green"},
        mappings=[value_names({0: ("down", "red"), 1: ("up", "green")})],
        options={"graphMode": "none"},
    ),
    Panel(
        "Degraded",
        "Whether a GPU service that had its CPU expert service computes without it: the same tokens, slower.",
        "stat",
        [Query(f"max(fiddler_degraded{{{HERE}}})", "degraded")],
        "short",
        width=3,
        height=5,
        thresholds=_BAD_ABOVE_ZERO,
        mappings=[value_names({0: ("no", "green"), 1: ("degraded", "red")})],
        options={"graphMode": "none"},
    ),
    Panel(
        "Failed",
        "Share of the generations that ended within five minutes and failed; not those that a client asked wrongly or "
        "a full queue refused.",
        "stat",
        [Query(f"max(instance:fiddler_requests_failed:ratio_rate5m{{{HERE}}})", "failed")],
        "percentunit",
        width=3,
        height=5,
        thresholds={0: "green", 0.01: "orange", 0.05: "red"},
    ),
    Panel(
        "The CPU expert service in use",
        "Over time: green while the GPU service uses its CPU expert service.",
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
        "Of both services, and what they compute with.",
        "table",
        [Query(f"fiddler_build_info{{{BOTH}}}", instant=True)],
        "short",
        width=6,
        height=5,
        transformations=[
            {
                "id": "filterFieldsByName",
                "options": {"include": {"names": ["service", "version", "model_type", "device", "kernel"]}},
            }
        ],
    ),
)

MEMORY = (
    Panel(
        "Keys and values",
        "Share of the memory for keys and values that running requests may come to need (--kv-memory), and of the rows "
        "(--max-slots).",
        "timeseries",
        [
            Query(f"sum(fiddler_kv_used_bytes{{{HERE}}}) / sum(fiddler_kv_capacity_bytes{{{HERE}}})", "bytes"),
            Query(f"sum(fiddler_kv_used_slots{{{HERE}}}) / sum(fiddler_kv_capacity_slots{{{HERE}}})", "rows"),
        ],
        "percentunit",
        width=6,
        minimum=0,
        maximum=1,
        thresholds={0: "green", 0.9: "orange"},
    ),
    Panel(
        "Expert weights in memory",
        "Share of the weights that lie in the CPU expert service's memory. The rest is read from disk when it is "
        "needed, which is slow.",
        "timeseries",
        [
            Query(f"min(instance:fiddler_expert_resident_bytes:ratio{{{THERE}}})", "in memory"),
        ],
        "percentunit",
        width=6,
        minimum=0,
        maximum=1,
        thresholds={0: "red", 0.95: "green"},
    ),
    Panel(
        "Memory",
        "Resident memory of both processes. The CPU expert service's holds the weights' pages, which the system may "
        "take back.",
        "timeseries",
        [
            Query(f"sum by (job) (process_resident_memory_bytes{{{_JOBS}, {BOTH}}})", "{{job}}"),
            Query(f"sum(fiddler_expert_weight_bytes{{{THERE}}})", "expert weights"),
        ],
        "bytes",
        width=6,
        minimum=0,
    ),
    Panel(
        "CPUs in use",
        "CPU seconds per second of both processes, and the threads that compute experts.",
        "timeseries",
        [
            Query(total_rate("process_cpu_seconds_total", f"{_JOBS}, {BOTH}", "job"), "{{job}}"),
            Query(f"sum(fiddler_expert_threads{{{THERE}}})", "expert threads"),
        ],
        "short",
        width=6,
        minimum=0,
    ),
)

ERRORS = (
    Panel(
        "Errors by status",
        "Generations that were refused or failed, per second, by gRPC status.",
        "timeseries",
        [
            Query(total_rate("fiddler_requests_total", f'{HERE}, finish_reason="error"', "status"), "{{status}}"),
        ],
        "reqps",
        width=6,
        minimum=0,
    ),
    Panel(
        "Failed calls to experts",
        "Per second, by gRPC status, as the GPU service saw them; and messages that the CPU expert service answered "
        "with a status.",
        "timeseries",
        [
            Query(total_rate("fiddler_expert_call_failures_total", HERE, "code"), "{{code}}, as called"),
            Query(total_rate("fiddler_expert_requests_total", f'{THERE}, code!="OK"', "code"), "{{code}}, as answered"),
        ],
        "cps",
        width=6,
        minimum=0,
    ),
    Panel(
        "Losses of the CPU expert service",
        "In the time range: how often it was lost and came back, for how many seconds it was gone, whose messages were "
        "computed here instead, and rows whose answer was not finite.",
        "stat",
        [
            Query(f"sum(increase({metric}{{{HERE}}}[$__range]))", legend, instant=True)
            for legend, metric in {
                "lost": "fiddler_expert_service_losses_total",
                "back": "fiddler_expert_service_reconnects_total",
                "seconds": "fiddler_degraded_seconds_total",
                "replanned": "fiddler_replanned_layers_total",
                "spoiled rows": "fiddler_spoiled_rows_total",
            }.items()
        ],
        "short",
        width=6,
        thresholds={0: "green", 1: "orange"},
        options={"graphMode": "none"},
    ),
    Panel(
        "Streams to the CPU expert service",
        "Open streams, and messages answered per second.",
        "timeseries",
        [
            Query(f"sum(fiddler_expert_streams{{{THERE}}})", "streams"),
            Query(total_rate("fiddler_expert_requests_total", f'{THERE}, code="OK"'), "messages/s"),
        ],
        "short",
        width=6,
        minimum=0,
    ),
)
