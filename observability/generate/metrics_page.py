"""Writes docs/metrics.md from the declarations of both services and of the gateway."""

from collections.abc import Iterable

import cpu_expert_service.metrics
import gpu_service.metrics
import http_gateway.metrics
from fiddler.metrics import BUILD_DESCRIPTION, BUILD_NAME, Declared, declared
from observability.generate.vllm_names import VLLM_NAMES

_BUILD = Declared(BUILD_NAME, "gauge", BUILD_DESCRIPTION, ("service", "version", "..."))
_LABELS = {
    "dense_format": "what linear layers outside the experts are kept in, e.g. `bfloat16` or `int8`",
    "layer": "the decoder layer's number in the model, from 0",
    "expert": "the expert's number in its layer, from 0",
    "band": "neighbouring experts of a layer, as `000-003`, or one expert if the layer has at most 32",
    "route": "`resident`, `streamed`, `remote`: where an expert was computed",
    "option": "`--tls-cert` or `--tls-client-ca`: the option that names the file",
    "part": (
        "`cpu`: experts in the CPU expert service, as it reports. `hop`: the transport of messages that a batch waited "
        "for, both ways. `gpu`: resident and streamed experts on the device, including waits for copies. `transfer`: "
        "the copies of streamed experts"
    ),
    "of": "`cpu`, `gpu`: one expert with one row; `transfer`: one copy; `round_trip`: one message",
    "reason": (
        "`demand`: a batch waited for it, and it stays resident if the placement policy keeps it; `prefetch`: ahead of "
        "its layer; `swap`: by the placement policy, in the background"
    ),
    "phase": "`prefill`: pieces of prompts, beside which others may decode; `decode`: only next tokens",
    "finish_reason": "`eos`, `stop`, `length`, `cancelled`, `deadline`, `error`",
    "endpoint": "a path of the HTTP API, such as `/v1/chat/completions`; `other` for all that are not served",
    "http_status": "the HTTP status of the answer, such as `200`",
    "status": "a gRPC status code, such as `OK` or `UNAVAILABLE`",
    "code": "a gRPC status code, such as `OK` or `UNAVAILABLE`",
    "outcome": "`right` or `wrong` for a guess; `used` or `wasted` for a copy",
    "direction": "`sent`, `received`",
    "kernel": "a kernel's name, such as `avx512`",
    "rows": "rows of the expert in a measurement at the start",
}
"""The values of each label. All are bounded."""

_HEAD = """\
# Metrics

The GPU service serves its metrics on port 9100, the CPU expert service on 9101 (`--metrics-host`, `--metrics-port`),
both at `/metrics` in Prometheus' format; the HTTP gateway serves its own on the port of its API, 8000.
[observability](../observability) has Prometheus' configuration, rules and alerts, and Grafana's dashboards. `make
observability` generates this page from the programs' declarations.

Names end with the unit, and counters with `_total`. Prometheus computes rates. An event that has not happened yet is 0,
not missing. Values are formatted when `/metrics` is read; `python -m benchmarks.metrics` measures the cost of counting.
"""
_TAIL = """
Both services also serve the `process_*` and `python_*` metrics of Prometheus' Python client: memory, CPU seconds, open
files.

## Series for each expert

`fiddler_expert_selections_by_expert_total` and `fiddler_expert_resident` have a series for each expert of each layer.
They are served if layers x experts is at most 20000. With more, `fiddler_hot_expert_selections_ratio` has the 8
hottest experts of each layer instead. `fiddler_expert_selections_by_band_total` and
`fiddler_expert_band_resident_ratio` have at most 32 series for each layer and are served in both cases.
`--metrics-by-expert on` serves each expert however many there are, `off` serves neither experts nor bands. All other
metrics have at most a few series for each layer.

## vLLM's names

With [vllm.yml](../observability/rules/vllm.yml), Prometheus records these metrics under vLLM's names and with its label
`model_name`, so that dashboards and alerts that were made for vLLM show this service too. vLLM's `finished_reason` is
`stop`, `length` or `abort`.

| vLLM's | made of |
|---|---|
"""


def metrics_page() -> str:
    """The whole page."""
    parts = [_HEAD]
    modules = {"The GPU service": gpu_service.metrics, "The CPU expert service": cpu_expert_service.metrics}
    for title, module in modules.items():
        parts.append(f"\n## {title}\n\n{_table([*declared(module), _BUILD])}")
    parts.append(f"\n## The HTTP gateway\n\n{_table([*declared(http_gateway.metrics), _BUILD])}")
    parts.append(f"\n## Labels\n\n| label | values |\n|---|---|\n{_labels()}")
    parts.append(_TAIL)
    parts += [f"| `{name}` | `{ours}` |\n" for name, ours in VLLM_NAMES.items()]
    return "".join(parts)


def _table(metrics: Iterable[Declared]) -> str:
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    rows += [_row(metric) for metric in metrics]
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
    """Labels whose values the page does not describe."""
    return {label for metric in metrics for label in metric.labels} - _LABELS.keys()
