"""TLS and tokens in the client. tests/end_to_end has real servers that require them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from client import AsyncClient, Client, InvalidRequestError, UnauthenticatedError, UnavailableError
from client.health import main as health_main
from fiddler import rpc
from tests.support.certificates import Authority, Identity
from tests.support.fake_server import PIECES, FakeServer, fail_with, serving

TOKEN = "secret-token"
STORY = "".join(PIECES)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def identity(authority: Authority) -> Identity:
    return authority.identity("someone", "127.0.0.1")


@pytest.fixture(scope="module")
def mutual(authority: Authority, identity: Identity) -> Iterator[FakeServer]:
    """A server with mutual TLS."""
    pair = (identity.key.read_bytes(), identity.certificate.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], authority.certificate.read_bytes(), require_client_auth=True)
    with serving(credentials=credentials) as fake:
        yield fake


async def test_both_clients_show_their_certificate_and_send_their_token(
    mutual: FakeServer, authority: Authority, identity: Identity
) -> None:
    options: Any = {
        "tls_ca": str(authority.certificate),
        "tls_cert": identity.certificate,
        "tls_key": identity.key,
        "token": TOKEN,
    }
    with Client(mutual.target, **options) as client:
        assert client.generate("a prompt").text() == STORY
    async with AsyncClient(mutual.target, **options) as asynchronous:
        assert await asynchronous.generate("a prompt").text() == STORY
    assert [metadata["authorization"] for metadata in mutual.service.metadata] == [f"Bearer {TOKEN}"] * 2
    with Client(mutual.target, tls_ca=authority.certificate) as client, pytest.raises(UnavailableError):
        client.model_info(timeout=20)


def test_health_is_asked_over_tls(
    mutual: FakeServer, authority: Authority, identity: Identity, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--tls-cert", str(identity.certificate), "--tls-key", str(identity.key)]
    assert health_main([mutual.target, "--tls-ca", str(authority.certificate), *own]) == 0
    assert health_main([mutual.target, "--tls-ca", str(authority.certificate)]) == 3
    assert health_main([mutual.target, "--tls-ca", str(identity.key)]) == 2
    assert "tls_ca: " in capsys.readouterr().err


async def test_a_token_goes_in_the_clear_only_on_this_host(server: FakeServer, tmp_path: Path) -> None:
    for target in ("192.0.2.1:1", "example.com:1"):
        for kind in (Client, AsyncClient):
            with pytest.raises(InvalidRequestError, match=f"is not sent to {target} unencrypted") as raised:
                kind(target, token=TOKEN)
            assert (raised.value.field, TOKEN in str(raised.value)) == ("token", False)
        Client(target, token=TOKEN, tls=True).close()
    with Client(server.target, token=TOKEN) as client:
        client.generate("a prompt").text()
        client.model_info()
    assert server.service.metadata[0]["authorization"] == f"Bearer {TOKEN}"
    with serving(f"unix:{tmp_path}/s") as fake, Client(fake.target, token=TOKEN) as client:
        client.generate("a prompt").text()
        assert fake.service.metadata[0]["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("token", ["", "two words", "new\nline", "schlüssel", b"bytes", 5])
def test_what_is_no_token_is_refused_without_showing_it(token: Any) -> None:
    with pytest.raises(InvalidRequestError, match="visible ASCII") as raised:
        Client(token=token)
    assert raised.value.field == "token"
    assert not token or str(token) not in raised.value.message


def test_options_of_tls_that_cannot_be_are_named(authority: Authority, identity: Identity, tmp_path: Path) -> None:
    other = authority.identity("other")
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("tls", {"tls": True, "target": "unix:/x"}, "is not available on a Unix socket"),
        ("tls_key", {"tls_cert": identity.certificate}, "must be given with tls_cert"),
        ("tls_cert", {"tls_key": identity.key}, "must be given with tls_key"),
        ("tls_ca", {"tls_ca": tmp_path / "nothing"}, "cannot read"),
        ("tls_ca", {"tls_ca": str(identity.key)}, "has no certificate"),
        ("tls_key", {"tls_cert": identity.certificate, "tls_key": other.key}, "is not the key of"),
    ]
    for field, options, problem in wrong:
        with pytest.raises(InvalidRequestError, match=problem) as raised:
            Client(**options)
        assert raised.value.field == field


async def test_a_refused_token_is_an_error_of_its_own(server: FakeServer) -> None:
    server.service.script = fail_with(rpc.StatusError(grpc.StatusCode.UNAUTHENTICATED, "its token is not valid"))
    with Client(server.target) as client, pytest.raises(UnauthenticatedError, match="not valid"):
        client.generate("a prompt").text()
    async with AsyncClient(server.target) as asynchronous:
        with pytest.raises(UnauthenticatedError):
            await asynchronous.generate("a prompt").text()
    assert len(server.service.requests) == 2
