"""Certificates that are renewed while they are served: over gRPC, and for /metrics."""

import datetime
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, Counter

from fiddler import exposition
from fiddler.access.certificates import Certificates, given
from fiddler.access.tls import TlsFileError
from fiddler.errors import UserError
from fiddler.transport import http
from gpu_service.api.auth import Access
from gpu_service.settings import Settings
from tests.support.certificates import Authority, Identity

LATER = datetime.timedelta(days=30)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def served(authority: Authority) -> Identity:
    return authority.identity("server", "127.0.0.1")


def certificates(identity: Identity) -> Certificates:
    found = given(("--tls-cert", identity.certificate), ("--tls-key", identity.key))
    assert found is not None
    return found


def renew(authority: Authority) -> None:
    """Writes a new key and certificate into the same files."""
    authority.identity("server", "127.0.0.1", valid_for=LATER)


def serial_number(authority: Authority, port: int) -> object:
    """Of the certificate that a server presents to a new connection."""
    context = ssl.create_default_context(cafile=authority.certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        return (connection.getpeercert() or {})["serialNumber"]


def test_renewed_files_are_read_once(authority: Authority, served: Identity) -> None:
    found, changes = certificates(served), []
    found.on_change(lambda: changes.append(found.expiries["--tls-cert"]))
    found.look()
    assert (found.version, changes) == (1, [])
    renew(authority)
    for _ in range(2):
        found.look()
    assert found.version == 2
    assert changes[0] > time.time() + LATER.total_seconds() - 60
    assert (found.chain, found.key) == (served.certificate.read_bytes(), served.key.read_bytes())


def test_a_half_written_renewal_leaves_the_present_ones_in_use(authority: Authority, served: Identity) -> None:
    found = certificates(served)
    before = found.chain, found.key
    key = served.key.read_bytes()
    renew(authority)
    new_key = served.key.read_bytes()
    served.key.write_bytes(key)  # of the certificate that was there before
    with structlog.testing.capture_logs() as log:
        found.look()
        found.look()
    assert (found.chain, found.key) == before
    (line,) = log
    assert "is not the key of the certificate" in line["error"]
    served.key.write_bytes(new_key)
    found.look()
    assert found.key == new_key
    served.certificate.unlink()
    found.look()
    assert found.key == new_key


def test_one_option_needs_the_other(served: Identity) -> None:
    assert given(("--a", None), ("--b", None)) is None
    with pytest.raises(UserError, match=r"^--b: must be given with --a$"):
        given(("--a", served.certificate), ("--b", None))
    with pytest.raises(UserError, match=r"^--a: must be given with --b$"):
        given(("--a", None), ("--b", served.key))
    with pytest.raises(TlsFileError, match="has no private key"):
        given(("--a", served.certificate), ("--b", served.certificate))


@pytest.fixture
def metrics(served: Identity) -> Iterator[tuple[http.Server, Certificates]]:
    registry = CollectorRegistry()
    Counter("fiddler_toys_total", "Toys.", registry=registry).inc(3)
    found = certificates(served)
    server = http.Server("127.0.0.1", 0, exposition.application(registry), found.context())
    server.start()
    yield server, found
    server.shutdown()
    server.server_close()


def test_metrics_are_served_with_tls_while_others_say_nothing(
    authority: Authority, metrics: tuple[http.Server, Certificates]
) -> None:
    server, found = metrics
    silent = [socket.create_connection(("127.0.0.1", server.server_port), timeout=5) for _ in range(20)]
    context = ssl.create_default_context(cafile=authority.certificate)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    time.sleep(0.3)  # after which a silent connection gives its place to another
    with opener.open(f"https://127.0.0.1:{server.server_port}/metrics", timeout=5) as answer:
        assert b"fiddler_toys_total 3.0" in answer.read()
    with pytest.raises(OSError, match=r"(?i)reset|closed|remote|refused|bad"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://127.0.0.1:{server.server_port}/metrics", timeout=5
        )
    before = serial_number(authority, server.server_port)
    renew(authority)
    found.look()
    assert serial_number(authority, server.server_port) != before
    for each in silent:
        each.close()


def test_grpc_presents_a_renewed_certificate_to_new_connections(authority: Authority, served: Identity) -> None:
    settings = Settings(model=Path("m"), tls_cert=served.certificate, tls_key=served.key)
    credentials = Access.read(settings).credentials()
    assert credentials is not None
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()

    def ask(channel: grpc.Channel) -> int:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status)

    trusted = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{port}", trusted) as old:
        assert ask(old) == health_pb2.HealthCheckResponse.SERVING
        before = serial_number(authority, port)
        assert serial_number(authority, port) == before
        renew(authority)
        assert serial_number(authority, port) != before
        assert ask(old) == health_pb2.HealthCheckResponse.SERVING, "an open connection was closed"
        with grpc.secure_channel(f"127.0.0.1:{port}", trusted) as new:
            assert ask(new) == health_pb2.HealthCheckResponse.SERVING
    server.stop(None).wait()
