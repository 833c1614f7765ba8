"""Answers /metrics, also where one metric has ten thousand series and more.

prometheus_client formats each series on its own, which takes 5 us: 0.15 s for 30,000 series, in which the process
computes nothing else. A `DenseMetric` has the same series at every scrape, so that all of a line but its value is
prepared, and formatting takes 0.1 us.
"""

import gzip
from collections.abc import Callable, Iterable, Sequence
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from typing_extensions import override

_COMPRESSION = 1  # of gzip: a scrape every few seconds has to be cheap, not small


class SeriesNames:
    """The series of a metric: its labels, and the values that they have."""

    def __init__(self, name: str, labels: Sequence[str], values: Iterable[Sequence[str]]) -> None:
        """Prepares the beginning of each line.

        Args:
            name: The metric's, as it is served.
            labels: The names of its labels.
            values: The labels' values, of each series; without quotes, backslashes and ends of lines.
        """
        self.labels = [dict(zip(labels, each, strict=True)) for each in values]
        pairs = (",".join(f'{label}="{value}"' for label, value in each.items()) for each in self.labels)
        self.heads = [f"{name}{{{each}}} " for each in pairs]


class DenseMetric(Metric):
    """One scrape of a metric with very many series."""

    def __init__(self, name: str, kind: str, description: str, series: SeriesNames, values: Sequence[float]) -> None:
        """Keeps the values.

        Args:
            name: As it is served: a counter's ends with _total.
            kind: counter or gauge.
            description: What it means.
            series: All of its series.
            values: One for each series.
        """
        super().__init__(name.removesuffix("_total") if kind == "counter" else name, description, kind)
        self._name, self._series, self._values = name, series, values

    @property
    def samples(self) -> list[Sample]:
        """The values as prometheus_client holds them."""
        return [
            Sample(self._name, labels, value) for labels, value in zip(self._series.labels, self._values, strict=True)
        ]

    @samples.setter
    def samples(self, samples: list[Sample]) -> None:
        """The parent's constructor sets none."""

    def text(self) -> str:
        """The lines in Prometheus' text format."""
        about = f"# HELP {self._name} {self.documentation}\n# TYPE {self._name} {self.type}\n"
        lines = [f"{head}{value}\n" for head, value in zip(self._series.heads, self._values, strict=True)]
        return about + "".join(lines)


class _Collected(Collector):
    """Metrics that are collected already, as generate_latest takes them."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    @override
    def collect(self) -> Iterable[Metric]:
        return self._metrics


def text_of(registry: CollectorRegistry) -> bytes:
    """What a registry's collectors say now, in Prometheus' text format."""
    sparse: list[Metric] = []
    dense: list[str] = []
    for metric in registry.collect():
        if isinstance(metric, DenseMetric):
            dense.append(metric.text())
        else:
            sparse.append(metric)
    return generate_latest(_Collected(sparse)) + "".join(dense).encode()


def application(
    registry: CollectorRegistry,
    is_serving: Callable[[], bool] = lambda: True,
    before: Callable[[], None] = lambda: None,
) -> WSGIApplication:
    """Answers GET with a registry's metrics, compressed if the caller accepts gzip, and /health with a status.

    Args:
        registry: The metrics.
        is_serving: What /health answers.
        before: Called before the metrics are read.
    """

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response("405 Method Not Allowed", [("Allow", "GET, HEAD")])
            return [b"# only GET and HEAD are served\n"]
        if environ.get("PATH_INFO") == "/health":
            serving = is_serving()
            start_response("200 OK" if serving else "503 Service Unavailable", [("Content-Type", "text/plain")])
            return [b"SERVING\n" if serving else b"NOT_SERVING\n"]
        before()
        body = text_of(registry)
        headers = [("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            body = gzip.compress(body, _COMPRESSION)
            headers.append(("Content-Encoding", "gzip"))
        headers.append(("Content-Length", str(len(body))))
        start_response("200 OK", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return answer
