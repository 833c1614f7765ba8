"""Tokens, and the interceptor that asks for them, before a service that has not loaded anything."""

import datetime
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from fiddler.access.tokens import Tokens
from fiddler.v1 import generation_pb2, generation_pb2_grpc
from gpu_service.api.auth import TOKENS_VARIABLE, Access, TokenInterceptor
from gpu_service.api.generations import Generations
from gpu_service.api.service import GenerationServicer
from gpu_service.errors import FlagError
from gpu_service.server import Server
from gpu_service.settings import Settings
from tests.support.certificates import Authority
from tests.support.ports import free_port

GOOD, OTHER = "kmX8-first_token.7~=", "a-second-token"


def tokens_file(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def settings(**changes: Any) -> Settings:
    return Settings(model=Path("m"), **changes)


@pytest.fixture
def no_tokens_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKENS_VARIABLE, raising=False)


@pytest.mark.usefixtures("no_tokens_in_the_environment")
def test_what_a_network_may_see_is_warned_of(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.identity("server")
    file = tokens_file(tmp_path / "tokens", GOOD)
    encrypted = {"tls_cert": server.certificate, "tls_key": server.key}

    def warnings(address: str, **changes: Any) -> list[str]:
        return Access.read(settings(**changes)).warnings(address)

    for local in ("127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/x"):
        assert warnings(local) == []
    both = warnings("0.0.0.0:1")
    assert ["unencrypted" in warning for warning in both] == [True, False]
    assert "--tokens-file" in both[1]
    assert [*map(len, map(str.split, warnings("0.0.0.0:1", **encrypted)))] == [len(both[1].split())]
    (told,) = warnings("0.0.0.0:1", tokens_file=file)
    assert "tokens cross the network unencrypted" in told
    assert warnings("0.0.0.0:1", tokens_file=file, **encrypted) == []
    assert warnings("0.0.0.0:1", tls_client_ca=authority.certificate, **encrypted) == []


@pytest.mark.usefixtures("no_tokens_in_the_environment")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "0.0.0.0:1"])
def test_an_expired_certificate_is_warned_of(address: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for name, hours in (("late", -1), ("valid", 1)):
        server = authority.identity(name, valid_for=datetime.timedelta(hours=hours))
        access = Access.read(settings(tls_cert=server.certificate, tls_key=server.key))
        told = [warning for warning in access.warnings(address) if "expired" in warning]
        assert [
            bool(re.fullmatch(r"a certificate in --tls-cert has expired on .* UTC; .*", each)) for each in told
        ] == ([True] if hours < 0 else [])
        assert abs(access.expiries["--tls-cert"] - time.time() - hours * 3600) < 600


def test_the_first_certificate_of_a_chain_to_expire_counts(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first, second = (
        authority.identity(name, valid_for=datetime.timedelta(hours=h)) for name, h in (("a", 9), ("b", 2))
    )
    chain = tmp_path / "chain.pem"
    chain.write_bytes(first.certificate.read_bytes() + second.certificate.read_bytes())
    access = Access.read(settings(tls_cert=chain, tls_key=first.key, tls_client_ca=authority.certificate))
    assert access.expiries["--tls-cert"] < time.time() + 3 * 3600 < access.expiries["--tls-client-ca"]


@pytest.mark.usefixtures("no_tokens_in_the_environment")
async def test_the_warnings_are_logged(tiny: Path, tmp_path: Path) -> None:
    expired = Authority(tmp_path).identity("server", valid_for=datetime.timedelta(hours=-1))
    opened = Settings(
        model=tiny,
        device="cpu",
        metrics_port=0,
        listen=f"0.0.0.0:{free_port()}",
        tls_cert=expired.certificate,
        tls_key=expired.key,
    )
    server = Server(opened, Access.read(opened))
    with structlog.testing.capture_logs() as logs:
        await server._listen()
    await server._front.stop(0)
    server._experts.close()
    assert [log["log_level"] for log in logs] == ["warning", "warning"]
    end = REGISTRY.get_sample_value("fiddler_tls_certificate_expiry_timestamp_seconds", {"option": "--tls-cert"})
    assert end is not None
    assert abs(end - time.time() + 3600) < 600


@pytest.mark.usefixtures("no_tokens_in_the_environment")
def test_options_that_make_no_sense_together_are_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.identity("server")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tls_key": server.key}, "--tls-cert: must be given with --tls-key"),
        ({"tls_client_ca": authority.certificate}, "--tls-cert: must be given with --tls-client-ca"),
        ({"tls_cert": server.certificate}, "--tls-key: must be given with --tls-cert"),
        ({"tls_cert": server.certificate, "tls_key": server.key, "listen": "unix:/x"}, "--tls-cert: a Unix socket"),
    ]
    for changes, problem in wrong:
        with pytest.raises(FlagError, match=problem):
            Access.read(settings(**changes))


class Guarded:
    """A server that asks for tokens.

    Attributes:
        channel: A connection to it.
        file: Where its tokens are.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.generation: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    async def refused(self, call: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await (call if not hasattr(call, "read") else call.read())
        return raised.value


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    tokens = Tokens(tokens_file(tmp_path / "tokens", GOOD, OTHER), TOKENS_VARIABLE)
    server = grpc.aio.server(interceptors=[TokenInterceptor(tokens)])
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(Generations()), server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(["fiddler.v1.GenerationService"], server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Guarded(channel)
    await server.stop(None)


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        (None, "Bearer"),
        ("", "Bearer"),
        ("Bearer", 'Bearer error="invalid_token"'),
        ("Bearer wrong", 'Bearer error="invalid_token"'),
        (f"Bearer {GOOD}x", 'Bearer error="invalid_token"'),
        (f"Basic {GOOD}", 'Bearer error="invalid_token"'),
        (GOOD, 'Bearer error="invalid_token"'),
    ],
)
async def test_calls_without_a_valid_token_are_refused(guarded: Guarded, header: str | None, challenge: str) -> None:
    metadata = () if header is None else (("authorization", header),)
    request = generation_pb2.GenerateRequest(text="a")
    with structlog.testing.capture_logs() as logs:
        error = await guarded.refused(guarded.generation.Generate(request, metadata=metadata))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "authorization: Bearer TOKEN" in (error.details() or "")
    assert error.trailing_metadata()["www-authenticate"] == challenge
    (log,) = logs
    assert log["method"] == "/fiddler.v1.GenerationService/Generate"
    assert not any(GOOD in str(value) or "wrong" in str(value) for value in log.values())


async def test_every_method_is_covered_but_health(guarded: Guarded) -> None:
    stub = guarded.generation
    calls: list[tuple[Any, Any]] = [
        (stub.Abort, generation_pb2.AbortRequest()),
        (stub.Tokenize, generation_pb2.TokenizeRequest()),
        (stub.Detokenize, generation_pb2.DetokenizeRequest()),
        (stub.GetModelInfo, generation_pb2.GetModelInfoRequest()),
        (stub.GetServerInfo, generation_pb2.GetServerInfoRequest()),
        (guarded.channel.unary_unary("/no.such.Service/Method"), b""),
    ]
    for method, request in calls:
        assert (await guarded.refused(method(request))).code() is grpc.StatusCode.UNAUTHENTICATED
    answer = await guarded.health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_is_covered(guarded: Guarded) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(guarded.channel)  # type: ignore[arg-type]
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    assert (await guarded.refused(stub.ServerReflectionInfo(iter([question])))).code() is (
        grpc.StatusCode.UNAUTHENTICATED
    )
    call = stub.ServerReflectionInfo(iter([question]), metadata=(("authorization", f"Bearer {GOOD}"),))
    names = {service.name for service in (await call.read()).list_services_response.service}
    assert "fiddler.v1.GenerationService" in names


@pytest.mark.parametrize("header", [f"Bearer {GOOD}", f"bearer  {OTHER} "])
async def test_a_valid_token_opens(guarded: Guarded, header: str) -> None:
    request = generation_pb2.GenerateRequest(text="a")
    call = guarded.generation.Generate(request, metadata=(("authorization", header),))
    error = await guarded.refused(call)
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the service is starting")
