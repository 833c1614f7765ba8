"""Keys, where they are passed on, and the model that is served."""

import datetime
from pathlib import Path

import grpc
import pytest

from fiddler import rpc
from fiddler.errors import UserError
from http_gateway.gateway import Gateway
from tests.support.certificates import Authority
from tests.support.fake_server import FakeServer, fail_with
from tests.support.http_gateways import CHAT, HELLO, calling, error_of, settings

KEY = {"authorization": "Bearer the-key"}


def _authorization(server: FakeServer) -> str | bytes | None:
    return server.service.metadata[-1].get("authorization")


def test_without_keys_of_its_own_any_key_is_passed_on(server: FakeServer) -> None:
    with calling(server.target) as http:
        assert http.post(CHAT, json={"messages": HELLO}, headers=KEY).status_code == 200
        assert _authorization(server) == "Bearer the-key"
        assert http.post(CHAT, json={"messages": HELLO}).status_code == 200
        assert _authorization(server) is None
        refused = http.post(CHAT, json={"messages": HELLO}, headers={"authorization": "Bearer two words"})
        assert error_of(refused)[0] == 401


def test_the_services_refusal_of_a_key_is_401(server: FakeServer) -> None:
    server.service.script = fail_with(rpc.StatusError(grpc.StatusCode.UNAUTHENTICATED, "its token is not valid"))
    with calling(server.target) as http:
        answer = http.post(CHAT, json={"messages": HELLO}, headers=KEY)
    assert error_of(answer)[0] == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_with_keys_of_its_own_one_of_them_is_required(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("the-key\n")
    with calling(server.target, tokens_file=tmp_path / "keys") as http:
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "Basic the-key"}):
            for path in (CHAT, "/tokenize"):
                assert error_of(http.post(path, json={"messages": HELLO}, headers=headers))[0] == 401
            assert error_of(http.get("/v1/models", headers=headers))[0] == 401
            assert error_of(http.get("/experts", headers=headers))[0] == 401
        assert server.service.requests == []
        assert http.post(CHAT, json={"messages": HELLO}, headers=KEY).status_code == 200
        assert _authorization(server) == "Bearer the-key"
        assert [http.get(path).status_code for path in ("/health", "/metrics", "/", "/docs")] == [200] * 4


async def test_a_key_is_not_sent_to_another_host_in_the_clear() -> None:
    gateway = Gateway(settings("10.0.0.1:50051"))
    assert gateway.client_of("the-key") is gateway.client
    local = Gateway(settings("127.0.0.1:50051"))
    assert local.client_of("") is local.client
    assert local.client_of("the-key") is not local.client
    await local.close()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokens_file": "/nowhere"}, "--tokens-file: cannot read /nowhere"),
        ({"target_tls_ca": "/nowhere"}, "--target-tls-ca: cannot read /nowhere"),
        ({"target_tls_cert": "/nowhere"}, "--target-tls-key: must be given with"),
        ({"gpu_metrics": "nowhere"}, "--gpu-metrics: must be HOST:PORT"),
    ],
    ids=str,
)
def test_what_a_flag_names_wrongly_is_told(changes: dict[str, str], problem: str) -> None:
    paths = {name: Path(value) if "metrics" not in name else value for name, value in changes.items()}
    with pytest.raises(UserError, match=f"^{problem}"):
        Gateway(settings("127.0.0.1:1", **paths))


def test_risks_are_told(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("the-key\n")
    assert Gateway(settings("127.0.0.1:1")).warnings() == []
    assert len(Gateway(settings("127.0.0.1:1", listen="0.0.0.0:1")).warnings()) == 2
    assert len(Gateway(settings("10.0.0.1:1", tokens_file=tmp_path / "keys")).warnings()) == 1
    expired = Authority(tmp_path).identity("gateway", valid_for=datetime.timedelta(hours=-1))
    encrypted = settings("127.0.0.1:1", tls_cert=expired.certificate, tls_key=expired.key)
    (told,) = Gateway(encrypted).warnings()
    assert told.startswith("a certificate in --tls-cert has expired on ")


async def test_the_model_is_asked_for_again_after_the_service_was_away(server: FakeServer) -> None:
    gateway = Gateway(settings(server.target))
    info = await gateway.model_info(gateway.client)
    assert await gateway.model_info(gateway.client) is info
    gateway._info_until = 0.0
    assert await gateway.model_info(gateway.client) is not info
    await gateway.close()


def test_a_service_that_is_away_is_503_and_says_when_to_try_again() -> None:
    with calling("127.0.0.1:1") as http:
        answer = http.post(CHAT, json={"messages": HELLO})
        assert error_of(answer)[0] == 503
        assert answer.json()["error"]["code"] == "service_unavailable"
        assert answer.headers["retry-after"] == "1"
        assert http.get("/health").status_code == 503
