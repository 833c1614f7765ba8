"""What both services serve on /metrics."""

import socket
import urllib.request

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter

from fiddler import __version__, metrics
from fiddler.errors import UserError
from fiddler.transport import http
from tests.support.ports import free_port


def test_metrics_are_served_in_the_prometheus_format() -> None:
    registry, port = CollectorRegistry(), free_port()
    Counter("fiddler_toys_total", "Toys.", registry=registry).inc(3)
    metrics.serve("127.0.0.1", port, registry)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        body = response.read().decode()
    assert "# HELP fiddler_toys_total Toys." in body
    assert "fiddler_toys_total 3.0" in body


def test_port_zero_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "Server", lambda *_: pytest.fail("it served"))
    metrics.serve("127.0.0.1", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "not-a-host.invalid"])
def test_an_address_that_cannot_be_served_is_named(host: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^--metrics-port: cannot serve on {host}:{port}: .+"):
            metrics.serve(host, port, CollectorRegistry())


def test_build_information_names_service_and_versions() -> None:
    def value(**labels: str) -> float | None:
        (sample,) = [
            sample
            for family in REGISTRY.collect()
            if family.name == "fiddler_build"
            for sample in family.samples
            if labels.items() <= sample.labels.items()
        ]
        assert {"version", "python_version"} < sample.labels.keys()
        assert all(sample.labels.values())
        return sample.value

    metrics.set_build_info("toy_service", colour="red")
    assert value(service="toy_service", version=__version__, colour="red") == 1


def test_buckets_ascend_over_all_latencies_that_matter() -> None:
    assert list(metrics.LATENCY_BUCKETS) == sorted(set(metrics.LATENCY_BUCKETS))
    assert metrics.LATENCY_BUCKETS[0] <= 1e-4
    assert metrics.LATENCY_BUCKETS[-1] >= 30
