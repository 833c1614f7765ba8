"""/metrics with and without many series, against prometheus_client's own text."""

import gzip
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from fiddler.exposition import DenseMetric, SeriesNames, application, text_of

SERIES = {"kind": "counter", "name": "fiddler_toys_total"}, {"kind": "gauge", "name": "fiddler_shelves"}


class _Toys(Collector):
    def collect(self) -> Iterable[Metric]:
        for each in SERIES:
            names = SeriesNames(each["name"], ("room", "box"), [("1", "a"), ("1", "b"), ("2", "a")])
            yield DenseMetric(each["name"], each["kind"], "Toys, by room.", names, [1, 0, 12345678901])


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("fiddler_games_total", "Games.", registry=registry).inc(2)
    registry.register(_Toys())
    return registry


def _parsed(text: bytes) -> Any:
    return sorted(
        (family.name, family.type, family.documentation, [tuple(each)[:3] for each in family.samples])
        for family in text_string_to_metric_families(text.decode())
    )


def test_the_text_says_what_prometheus_clients_does(registry: CollectorRegistry) -> None:
    assert _parsed(text_of(registry)) == _parsed(generate_latest(registry))
    assert b'fiddler_toys_total{room="2",box="a"} 12345678901\n' in text_of(registry)


@pytest.mark.parametrize("accepted", ["", "gzip, deflate"])
def test_the_answer_is_compressed_for_those_who_can_read_it(registry: CollectorRegistry, accepted: str) -> None:
    started: list[Any] = []
    environ = {"REQUEST_METHOD": "GET", "HTTP_ACCEPT_ENCODING": accepted}
    body = b"".join(application(registry)(environ, lambda *each: started.append(each)))  # type: ignore[arg-type]
    ((status, headers),) = started
    assert (status, dict(headers)["Content-Length"]) == ("200 OK", str(len(body)))
    assert dict(headers)["Content-Type"].startswith("text/plain; version=0.0.4")
    assert (gzip.decompress(body) if accepted else body) == text_of(registry)


def test_only_reading_is_served(registry: CollectorRegistry) -> None:
    started: list[str] = []
    body = application(registry)({"REQUEST_METHOD": "POST"}, lambda status, _: started.append(status))  # type: ignore[arg-type]
    assert (started, len(b"".join(body)) < 100) == (["405 Method Not Allowed"], True)


@pytest.mark.parametrize(
    ("serving", "expected"), [(True, ("200 OK", b"SERVING\n")), (False, ("503", b"NOT_SERVING\n"))]
)
def test_health_is_what_the_service_says(serving: bool, expected: tuple[str, bytes]) -> None:
    started: list[str] = []
    app = application(CollectorRegistry(), lambda: serving)
    body = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/health"}, lambda status, _: started.append(status))  # type: ignore[arg-type]
    assert (started[0].startswith(expected[0]), b"".join(body)) == (True, expected[1])
