"""Writes docs/metrics.md from what both services declare."""

from collections.abc import Iterable
from types import ModuleType

import cpu_expert_service.metrics
import gpu_service.metrics
from fiddler.metrics import BUILD_DESCRIPTION, BUILD_NAME, Declared, declared

_BUILD = Declared(BUILD_NAME, "gauge", BUILD_DESCRIPTION, ("service", "version", "..."))
_LABELS = {
    "layer": "the decoder layer's number in the model, from 0",
    "expert": "the expert's number in its layer, from 0",
    "route": "`resident`, `streamed`, `remote`: where an expert was computed",
    "part": (
        "`cpu`: experts in the CPU expert service, as that says. `hop`: the way there and back, of messages that were "
        "waited for. `gpu`: resident and streamed experts on the device, waiting for copies included. `transfer`: the "
        "copies of streamed ones"
    ),
    "of": "`cpu`, `gpu`: one expert with one row; `transfer`: one copy; `round_trip`: one message",
    "reason": (
        "`demand`: a batch waited for it, and it stays where the placement policy says so; `prefetch`: ahead of its "
        "layer; `swap`: the placement policy's, in the background"
    ),
    "phase": "`prefill`: a part of one prompt; `decode`: the next token of all who decode",
    "finish_reason": "`eos`, `stop`, `length`, `cancelled`, `deadline`, `error`",
    "status": "a gRPC status code, such as `OK` or `UNAVAILABLE`",
    "code": "a gRPC status code, such as `OK` or `UNAVAILABLE`",
    "outcome": "of a guess `right` or `wrong`; of a copy `used` or `wasted`",
    "direction": "`sent`, `received`",
    "kernel": "a kernel's name, such as `avx512`",
    "rows": "rows of the expert, one of those that are measured at start-up",
}
"""What each label's values are. All are bounded."""

_HEAD = """\
# Metrics

The GPU service serves these on port 9100, the CPU expert service on 9101 (`--metrics-host`, `--metrics-port`), both at
`/metrics` as Prometheus reads them. [observability](../observability) holds Prometheus' configuration, rules and
alerts, and Grafana's dashboards. This page is made from the services' own declarations by `make observability`.

Names end with the unit, and with `_total` where a number only grows. Rates are Prometheus' to compute. What has never
happened is 0, not missing. Numbers are counted where things happen and put into words when they are asked for:
`python -m benchmarks.metrics` measures what that costs.
"""
_TAIL = """
Both services also serve the Python client's own `process_*` and `python_*`: memory, CPU seconds, open files.

## Of each expert

`fiddler_expert_selections_by_expert_total` and `fiddler_expert_resident` have a series for each expert of each layer.
They are served while layers x experts are at most 1024, which `--metrics-by-expert on` or `off` overrules. All others
have at most a few series for each layer.
"""


def metrics_page() -> str:
    """The whole page."""
    parts = [_HEAD]
    modules = {"The GPU service": gpu_service.metrics, "The CPU expert service": cpu_expert_service.metrics}
    for title, module in modules.items():
        parts.append(f"\n## {title}\n\n{_table(module)}")
    parts.append(f"\n## Labels\n\n| label | values |\n|---|---|\n{_labels()}")
    parts.append(_TAIL)
    return "".join(parts)


def _table(module: ModuleType) -> str:
    rows = ["| metric | kind | labels | what it is |", "|---|---|---|---|"]
    rows += [_row(metric) for metric in (*declared(module), _BUILD)]
    return "\n".join(rows) + "\n"


def _row(metric: Declared) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    kind = metric.kind
    if metric.buckets:
        kind += f", {metric.buckets[0]:g} to {metric.buckets[-1]:g}"
    return f"| `{metric.name}` | {kind} | {labels} | {metric.description} |"


def _labels() -> str:
    return "".join(f"| `{label}` | {values} |\n" for label, values in _LABELS.items())


def undescribed(metrics: Iterable[Declared]) -> set[str]:
    """Labels whose values the page does not tell."""
    return {label for metric in metrics for label in metric.labels} - _LABELS.keys()
