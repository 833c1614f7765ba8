"""What both services share of metrics: how they are declared, build information, /metrics over HTTP."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Info, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase

from fiddler import __version__, exposition
from fiddler.access.certificates import Certificates
from fiddler.errors import UserError
from fiddler.transport import http, ports

LATENCY_BUCKETS = (
    5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
"""In seconds: from the round trip of an empty message to a long prefill on a slow CPU."""

LOG_LINES_DROPPED = Counter(
    "fiddler_log_lines_dropped_total", "Lines of the log that were dropped because nobody read it."
)

BUILD_NAME = "fiddler_build_info"
BUILD_DESCRIPTION = "Always 1: versions of the software and what it computes with, as labels."


@dataclass(frozen=True, slots=True)
class CollectedMetric:
    """A metric whose number a part keeps as plain Python numbers; a collector publishes it when /metrics is scraped."""

    name: str
    """As it is served: a counter's ends with _total."""
    kind: Literal["counter", "gauge"]
    description: str
    labels: tuple[str, ...] = ()

    def new(self) -> CounterMetricFamily | GaugeMetricFamily:
        """prometheus_client's object for one scrape, without samples yet."""
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        return make(self.name, self.description, labels=self.labels)


def single(metric: CollectedMetric, value: float) -> Metric:
    """One scrape of a metric without labels."""
    family = metric.new()
    family.add_metric([], value)
    return family


def by_label(metric: CollectedMetric, values: Mapping[str, float]) -> Metric:
    """One scrape of a metric with one label."""
    family = metric.new()
    for label, value in values.items():
        family.add_metric([label], value)
    return family


def by_two_labels(metric: CollectedMetric, first: Sequence[str], values: Sequence[Mapping[str, float]]) -> Metric:
    """One scrape of a metric with two labels.

    Args:
        metric: The metric.
        first: The values of the first label.
        values: For each of them, values by the second label.
    """
    family = metric.new()
    for label, by_second in zip(first, values, strict=True):
        for second, value in by_second.items():
            family.add_metric([label, second], value)
    return family


@dataclass(frozen=True, slots=True)
class Declared:
    """The declaration of a metric of any kind."""

    name: str
    kind: str
    description: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    """Of a histogram."""


def declared(module: ModuleType) -> Iterator[Declared]:
    """The metrics that a module declares, in the order of the module."""
    for value in vars(module).values():
        if isinstance(value, CollectedMetric):
            yield Declared(value.name, value.kind, value.description, value.labels)
        elif isinstance(value, MetricWrapperBase):
            (family,) = value.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            buckets = tuple(value._kwargs.get("buckets", ()))
            yield Declared(name, family.type, family.documentation, tuple(value._labelnames), buckets)


def set_build_info(service: str, **labels: str) -> None:
    """Publishes fiddler_build_info of this process. Labels are what the service computes with, e.g. torch_version."""
    info = Info(BUILD_NAME.removesuffix("_info"), BUILD_DESCRIPTION)
    info.info(
        {
            "service": service,
            "version": __version__,
            "python_version": platform.python_version(),
            **labels,
        }
    )


def serve(
    host: str,
    port: int,
    registry: CollectorRegistry = REGISTRY,
    *,
    certificates: Certificates | None = None,
    is_serving: Callable[[], bool] = lambda: True,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Serves /metrics and /health from a daemon thread; port 0 serves none.

    Args:
        host: The host to bind.
        port: Its port.
        registry: What /metrics serves.
        certificates: Of TLS; None serves without.
        is_serving: What /health answers: status 200 if it is true, else 503. Containers ask it, since a command that
            asks over gRPC would be a start of Python every few seconds.
        before: Called before the metrics are read: what is still to be counted.

    Raises:
        UserError: The address cannot be bound.
    """
    if port == 0:
        return
    # these say when each series began, which would double the number of series
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        context = certificates.context() if certificates else None
        http.Server(host, port, exposition.application(registry, is_serving, before), context).start()
    except OSError as error:
        why = ports.refusal(f"{host}:{port}", error.strerror or str(error))
        raise UserError(f"--metrics-port: {why}") from error
