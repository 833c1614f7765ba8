"""Which event of the test changes which query of the dashboards' panels.

Load must change every query that is not listed here.
"""

from tests.compose.dashboards import PanelQuery, metrics_of

CONSTANT = {
    "fiddler_expert_kernel_read_bytes_per_second": "measured at the start",
    "fiddler_expert_memory_read_bytes_per_second": "measured at the start",
    "fiddler_expert_kernel_seconds": "measured at the start",
    "fiddler_requests_waiting_limit": "a setting",
    "fiddler_build_info": "versions",
    "fiddler_dense_weight_bytes": "the model's",
    "fiddler_expert_repacked_bytes": "the model's",
    "fiddler_expert_weight_bytes": "the model's",
    "fiddler_expert_threads": "fixed at the start",
    "fiddler_expert_streams": "one GPU service has one stream",
    "instance:fiddler_expert_resident_bytes:ratio": "models/demo is in memory, and stays there",
    "fiddler_spoiled_rows_total": "no weight is damaged",
    "fiddler_expert_requests_total not OK": "no message is wrong",
}
"""Metrics that no event of the test changes, with the reasons."""

HTTP = "fiddler_http_"
"""What the metrics of the gateway begin with, which only a request over HTTP changes."""

SLOTS = {"fiddler_expert_slots", "fiddler_resident_experts of all layers"}
"""Metrics that only --gpu-expert-memory changes: the slots are full from the start."""

LOSS = {
    "up",
    "fiddler_degraded",
    "fiddler_degraded_seconds_total",
    "fiddler_expert_service_up",
    "fiddler_expert_service_losses_total",
    "fiddler_expert_service_reconnects_total",
    "fiddler_replanned_layers_total",
    "fiddler_expert_call_failures_total",
}
"""Metrics that only the loss or the return of the CPU expert service changes."""


def event_of(query: PanelQuery) -> str:
    """What changes a query: "load", "loss", "slots", "http" or "never"."""
    metrics = metrics_of(query.expression)
    if all(metric.startswith(HTTP) for metric in metrics):
        return "http"
    if len(metrics) > 1:
        metrics -= {"fiddler_build_info"}  # which service another series is of
    if 'code!="OK"' in query.expression:
        metrics = {f"{metric} not OK" for metric in metrics}
    if "by (layer)" not in query.expression:
        metrics = {f"{metric} of all layers" if metric == "fiddler_resident_experts" else metric for metric in metrics}
    if metrics <= CONSTANT.keys():
        return "never"
    if metrics <= SLOTS:
        return "slots"
    return "loss" if metrics & LOSS else "load"
