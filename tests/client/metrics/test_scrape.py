"""Addresses, readings, and the errors for endpoints that are not the service's."""

import math
import socket
import threading

import pytest

from client import ClientError, DeadlineError, InvalidRequestError, ServerError, UnavailableError
from client.metrics.scrape import Endpoint, parse
from tests.support.expositions import CPU_BUILD, GPU_BUILD
from tests.support.metrics_pages import Page
from tests.support.ports import free_port


def _endpoint(address: str) -> Endpoint:
    return Endpoint("--gpu", "gpu_service", address)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:9100", "http://127.0.0.1:9100/metrics"),
        ("[::1]:9100", "http://[::1]:9100/metrics"),
        ("gpu-1:9100", "http://gpu-1:9100/metrics"),
        ("http://127.0.0.1:9100", "http://127.0.0.1:9100/metrics"),
        ("http://127.0.0.1:9100/", "http://127.0.0.1:9100/metrics"),
        ("http://127.0.0.1:9100/metrics", "http://127.0.0.1:9100/metrics"),
        ("https://proxy/gpu-1/metrics", "https://proxy/gpu-1/metrics"),
    ],
)
def test_an_address_is_a_url_or_host_and_port(address: str, url: str) -> None:
    assert _endpoint(address).url == url


@pytest.mark.parametrize("address", ["", "nowhere", "host:port", "host:0", ":9100", "host:99999", "ftp://h/x", "a b:1"])
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _endpoint(address)
    assert caught.value.message.startswith("--gpu: must be HOST:PORT or the URL of")
    assert repr(address) in caught.value.message


def test_values_are_found_by_name_and_labels(page: Page) -> None:
    page.bodies = [(GPU_BUILD + 'x{layer="0",route="remote"} 3\nx{layer="1",route="remote"} 4\nbad NaN\n').encode()]
    exposition = _endpoint(f"127.0.0.1:{page.port}").scrape(20)
    assert exposition.value("x") == 7
    assert exposition.value("x", layer="1") == 4
    assert exposition.value("x", layer="2") is None
    assert exposition.value("bad") is None
    assert exposition.by("x", "layer") == {("0",): 3, ("1",): 4}
    assert exposition.by("y", "layer") == {}


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (404, b"no", "answers HTTP 404 Not Found"),
        (200, b"<html><body>Hello</body></html>", "serves no Prometheus metrics"),
        (200, b"\xff\xfe", "serves no Prometheus metrics"),
        (200, b"up 1\n", "serves metrics, but none of fiddler's, not those of gpu_service"),
        (200, CPU_BUILD.encode(), "serves the metrics of cpu_expert_service, not those of gpu_service"),
    ],
)
def test_what_is_not_the_services_metrics_is_said(page: Page, status: int, body: bytes, problem: str) -> None:
    page.status, page.bodies = status, [body]
    with pytest.raises(ServerError) as caught:
        _endpoint(f"127.0.0.1:{page.port}").scrape(20)
    assert caught.value.message.startswith(f"--gpu http://127.0.0.1:{page.port}/metrics: ")
    assert problem in caught.value.message


def test_nobody_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must be ignored
    with pytest.raises(UnavailableError, match="connection refused"):
        _endpoint(f"127.0.0.1:{free_port()}").scrape(20)
    with pytest.raises(UnavailableError):
        _endpoint("nobody.invalid:9100").scrape(20)


def test_no_answer_in_time_is_a_deadline() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as stuck,
        pytest.raises(DeadlineError, match=r"no answer within 0\.2 s"),
    ):
        _endpoint(f"127.0.0.1:{stuck.getsockname()[1]}").scrape(0.2)


def test_what_speaks_no_http_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"\x00\x00\x12\x04\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ClientError) as caught:
            _endpoint(f"127.0.0.1:{server.getsockname()[1]}").scrape(20)
        thread.join()
    assert isinstance(caught.value, ServerError)
    assert "no HTTP answer" in caught.value.message


def test_infinite_bounds_are_kept() -> None:
    series = parse('h_bucket{le="+Inf"} 3\nx +Inf\n', 0.0)
    assert series.by("h_bucket", "le") == {("+Inf",): 3}
    assert series.value("x") == math.inf
