"""/metrics, over real sockets: callers that say nothing, little, or are too many."""

import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, make_wsgi_app

from fiddler.transport import http

_LONG_SECONDS = 20.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def server() -> Iterator[http.Server]:
    registry = CollectorRegistry()
    Counter("fiddler_toys_total", "Toys.", registry=registry).inc(3)
    server = http.Server("127.0.0.1", 0, make_wsgi_app(registry))
    server.start()
    yield server
    server.shutdown()
    server.server_close()


def scrape(server: http.Server) -> str:
    with _OPENER.open(f"http://127.0.0.1:{server.server_port}/metrics", timeout=5) as response:
        return str(response.read().decode())


def connections(server: http.Server, count: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", server.server_port), timeout=5) for _ in range(count)]


def test_silent_connections_take_few_threads_and_keep_no_scrape_waiting(server: http.Server) -> None:
    before = threading.active_count()
    silent = connections(server, 100)
    time.sleep(0.5)
    assert threading.active_count() - before <= 20
    for _ in range(3):
        assert "fiddler_toys_total 3.0" in scrape(server)
    for each in silent:
        each.close()


def test_a_connection_that_never_finishes_its_request_is_ended(
    server: http.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SECONDS", 0.5)
    (slow,) = connections(server, 1)
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - began < _LONG_SECONDS:
            slow.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() - began < _LONG_SECONDS
    slow.close()


def test_requests_under_way_are_not_ended_for_others(server: http.Server) -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    def slow(environ: object, start_response: object) -> list[bytes]:
        entered.release()
        leave.wait(20)
        start_response("200 OK", [])  # type: ignore[operator]
        return [b"whole"]

    server.set_app(slow)
    bodies: list[str] = []
    scrapes = [threading.Thread(target=lambda: bodies.append(scrape(server))) for _ in range(http.MOST_CONNECTIONS)]
    for each in scrapes:
        each.start()
    for _ in scrapes:
        assert entered.acquire(timeout=20)
    time.sleep(0.3)
    with pytest.raises(OSError, match=r".*"):  # one too many
        scrape(server)
    leave.set()
    for each in scrapes:
        each.join()
    assert bodies == ["whole"] * http.MOST_CONNECTIONS


@pytest.mark.parametrize("host", ["::1", "::", "localhost", "0.0.0.0"])
def test_every_kind_of_address_is_served_on(host: str) -> None:
    server = http.Server(host, 0, make_wsgi_app(CollectorRegistry()))
    server.start()
    with socket.create_connection((server.server_name, server.server_port), timeout=5) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert connection.recv(15) == b"HTTP/1.0 200 OK"
    server.shutdown()
    server.server_close()
