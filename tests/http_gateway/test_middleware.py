"""Bounds on the body, other origins, headers for browsers, and counting."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from tests.support.fake_server import FakeServer
from tests.support.http_gateways import CHAT, COMPLETIONS, HELLO, calling, error_of

JSON = {"content-type": "application/json"}


@pytest.fixture
def small(server: FakeServer) -> Iterator[TestClient]:
    with calling(server.target, max_request_bytes=1024) as http:
        yield http


def test_a_body_that_is_too_large_is_refused_by_its_length_or_while_it_is_read(small: TestClient) -> None:
    assert error_of(small.post(COMPLETIONS, json={"prompt": "a" * 2000}))[0] == 413
    parts = iter([b'{"prompt": "', b"a" * 800, b"a" * 800, b'"}'])  # without a length
    status, _, message = error_of(small.post(COMPLETIONS, content=parts, headers=JSON))
    assert (status, message) == (413, "the body is larger than the limit of 1024 bytes")
    assert small.post(COMPLETIONS, json={"prompt": "a" * 500}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_of_another_type_is_refused(http: TestClient, server: FakeServer, kind: str) -> None:
    """A page of another origin may send these without asking."""
    answer = http.post(
        CHAT, content=b'{"messages": [{"role": "user", "content": "a"}]}', headers={"content-type": kind}
    )
    assert error_of(answer)[0] == 415
    assert server.service.requests == []


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 415), ("br, gzip", 415), ("identity", 200)])
def test_a_compressed_body_is_refused_as_such(http: TestClient, encoding: str, status: int) -> None:
    answer = http.post(COMPLETIONS, content=b'{"prompt": "a"}', headers={**JSON, "content-encoding": encoding})
    assert answer.status_code == status
    if status == 415:
        assert error_of(answer)[2] == f"Content-Encoding: a compressed body is not taken, got {encoding!r}"


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/metrics", "/page/main.js"])
def test_head_is_answered_as_get_without_the_body(http: TestClient, path: str) -> None:
    plain, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == plain.headers["content-type"]
    assert http.head(CHAT).status_code == 405


def test_head_counts_for_the_endpoint_that_answers_it(http: TestClient) -> None:
    def count() -> float:
        labels = {"endpoint": "/v1/models", "http_status": "200"}
        return REGISTRY.get_sample_value("fiddler_http_requests_total", labels) or 0.0

    before = count()
    http.head("/v1/models")
    assert count() == before + 1


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/models"])
def test_a_base_url_without_v1_is_told(http: TestClient, path: str) -> None:
    status, _, message = error_of(http.post(path, json={}))
    assert (status, message) == (404, f"POST {path} is not served; the API's base URL ends with /v1: /v1{path}")
    assert error_of(http.post("/embeddings", json={}))[2] == "POST /embeddings is not served"


def test_other_origins_may_not_call_unless_they_are_named(http: TestClient, server: FakeServer) -> None:
    asking = {"origin": "https://other.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in http.options(CHAT, headers=asking).headers
    with calling(server.target, cors_origins="https://other.example, https://third.example") as named:
        answer = named.options(CHAT, headers={**asking, "access-control-request-headers": "content-type"})
        assert answer.headers["access-control-allow-origin"] == "https://other.example"
        stranger = named.options(CHAT, headers={**asking, "origin": "https://stranger.example"})
        assert "access-control-allow-origin" not in stranger.headers


def test_browsers_load_nothing_from_elsewhere(http: TestClient) -> None:
    for path in ("/", "/docs", "/page/main.js", "/v1/models"):
        headers = http.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'"), path
        assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in http.get("/").headers["content-security-policy"]


def test_requests_are_counted_by_endpoint_and_status(http: TestClient) -> None:
    def count(endpoint: str, status: int) -> float:
        text = http.get("/metrics").text
        name = f'fiddler_http_requests_total{{endpoint="{endpoint}",http_status="{status}"}} '
        return next((float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name)), 0.0)

    before = {key: count(*key) for key in [(CHAT, 200), (CHAT, 400), ("other", 404)]}
    http.post(CHAT, json={"messages": HELLO, "stream": True})
    http.post(CHAT, json={})
    http.get("/nothing/here")
    assert {key: count(*key) for key in before} == {key: value + 1 for key, value in before.items()}
    text = http.get("/metrics").text
    assert f'fiddler_http_time_to_first_token_seconds_count{{endpoint="{CHAT}"}}' in text
    assert "fiddler_http_open_streams 0.0" in text


def test_what_is_not_served_has_openais_form(http: TestClient) -> None:
    assert error_of(http.get("/nothing"))[0] == 404
    assert error_of(http.get(CHAT))[0] == 405
    assert error_of(http.post("/nothing", json={}))[0] == 404


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_the_first_stream_is_an_increase(endpoint: str) -> None:
    """Prometheus' rate() sees none in a series that begins with its first observation."""
    code = (
        "import sys; from prometheus_client import REGISTRY; import http_gateway.app\n"
        "name = 'fiddler_http_time_to_first_token_seconds_count'\n"
        "print(REGISTRY.get_sample_value(name, {'endpoint': sys.argv[1]}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, endpoint], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "0.0\n"
