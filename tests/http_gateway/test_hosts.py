"""The gateway answers to its own names only, so that no page can reach it through a name of its own."""

import pytest
from starlette.testclient import TestClient

from tests.support.fake_server import FakeServer
from tests.support.http_gateways import CHAT, HELLO, calling, error_of


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "app.localhost",
        "localhost.",
        "127.0.0.1:8000",
        "[::1]:8000",
        "192.168.7.1",
        "[::1]",
    ],
)
def test_addresses_and_names_of_this_machine_are_known(http: TestClient, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["rebound.example", "rebound.example:8000", "localhost.example", "127.0.0.1.example", ""]
)
def test_other_names_are_refused_and_nothing_is_generated(http: TestClient, server: FakeServer, host: str) -> None:
    for path in ("/", "/docs", "/experts", "/v1/models"):
        assert http.get(path, headers={"host": host}).status_code == 403
    answer = http.post(CHAT, json={"messages": HELLO}, headers={"host": host})
    status, _, message = error_of(answer)
    assert (status, answer.json()["error"]["code"]) == (403, "host_not_allowed")
    assert "--allowed-hosts" in message
    assert server.service.requests == []


def test_probes_come_by_any_name(http: TestClient) -> None:
    assert http.get("/health", headers={"host": "http-gateway:8000"}).status_code == 200
    assert http.get("/metrics", headers={"host": "http-gateway:8000"}).status_code == 200


def test_names_are_allowed_by_a_flag_and_by_the_address_to_listen_on(server: FakeServer) -> None:
    def status(host: str, **settings: str) -> int:
        with calling(server.target, **settings) as http:
            return http.get("/v1/models", headers={"host": host}).status_code

    assert status("Models.example:80", allowed_hosts="a.example, models.example") == 200
    assert status("other.example", allowed_hosts="a.example, models.example") == 403
    assert status("other.example", allowed_hosts="*") == 200
    assert status("box.example:8000", listen="box.example:8000") == 200
