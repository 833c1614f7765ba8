"""Why no connection comes about, from servers that are really there, as the command tells it."""

import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
from typing_extensions import override

from client import Client, UnavailableError
from client._cli.app import main
from client._unreachable import Peer
from client.health import main as health
from tests.support import command_lines
from tests.support.certificates import Authority
from tests.support.ports import free_port


@dataclass(frozen=True)
class Servers:
    """Addresses of servers that are no GPU service, and authorities of the encrypted ones."""

    http: str
    plain: str
    tls: str
    mutual: str
    free: str
    authority: Path
    other_authority: Path


class _Quiet(BaseHTTPRequestHandler):
    @override
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    directory = tmp_path_factory.mktemp("tls")
    authority, other = Authority(directory), Authority(directory, "elsewhere")
    identity = authority.identity("127.0.0.1")
    keys = [(identity.key.read_bytes(), identity.certificate.read_bytes())]
    encrypted = grpc.ssl_server_credentials(keys)
    mutual = grpc.ssl_server_credentials(keys, authority.certificate.read_bytes(), True)
    grpc_servers, addresses = [], []
    for credentials in (None, encrypted, mutual):
        server = grpc.server(futures.ThreadPoolExecutor(1))
        port = (
            server.add_insecure_port("127.0.0.1:0")
            if credentials is None
            else server.add_secure_port("127.0.0.1:0", credentials)
        )
        server.start()
        grpc_servers.append(server)
        addresses.append(f"127.0.0.1:{port}")
    web = HTTPServer(("127.0.0.1", 0), _Quiet)
    threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
    plain, tls, mutual_tls = addresses
    yield Servers(
        http=f"127.0.0.1:{web.server_port}",
        plain=plain,
        tls=tls,
        mutual=mutual_tls,
        free=f"127.0.0.1:{free_port()}",
        authority=authority.certificate,
        other_authority=other.certificate,
    )
    web.shutdown()
    web.server_close()
    for server in grpc_servers:
        server.stop(None).wait()


CASES = {
    "nothing": ("{free}", "", "nothing serves on {free}; start one (`fiddler serve MODEL`), or wait until it"),
    "HTTP": ("{http}", "", "{http} is an HTTP server and does not speak gRPC; /metrics is on 9100 and 9101"),
    "TLS, called without": ("{tls}", "", "the server at {tls} closed the connection at once: it asks for TLS if"),
    "no TLS, called with it": ("{plain}", "{authority}", "the server at {plain} does not use TLS; leave out --tls and"),
    "another authority": (
        "{tls}",
        "{other_authority}",
        "the certificate of {tls} is of an authority that is not trusted",
    ),
    "no certificate of its own": ("{mutual}", "{authority}", "the server at {mutual} closed the connection during the"),
    "no such host": ("no-host.invalid:50051", "", "no-host.invalid:50051: no host has this name"),
    "no socket": ("unix:/nowhere/a.sock", "", "there is no socket unix:/nowhere/a.sock; start one"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_command_says_why_no_connection_comes_about(
    name: str, servers: Servers, capfd: pytest.CaptureFixture[str]
) -> None:
    target, authority, text = (each.format(**vars(servers)) for each in CASES[name])
    arguments = ["a prompt", "--target", target, *(["--tls-ca", authority] if authority else [])]
    assert main(arguments) == 3
    error = capfd.readouterr().err
    assert error.startswith(f"client: {text}")
    assert error.count("\n") == 1


def test_a_certificate_for_another_name_is_told(servers: Servers) -> None:
    with (
        Client(servers.tls, tls_ca=servers.authority, tls_server_name="elsewhere", retry_unavailable=False) as client,
        pytest.raises(UnavailableError, match=f"^the certificate of {servers.tls} is for another name; call it by"),
    ):
        client.model_info()


def test_a_name_with_an_address_at_which_nothing_serves_is_not_taken_for_nothing(servers: Servers) -> None:
    port = servers.tls.rpartition(":")[2]
    refused = UnavailableError("failed to connect to all addresses: Connection refused", grpc.StatusCode.UNAVAILABLE)
    explained = Peer(f"localhost:{port}", is_encrypted=False).explained(refused)
    assert explained.message.startswith(f"the server at localhost:{port} closed the connection at once")
    free = servers.free.rpartition(":")[2]
    assert Peer(f"localhost:{free}", is_encrypted=False).explained(refused).message.startswith("nothing serves on")


def test_a_server_that_is_no_gpu_service_is_told(servers: Servers, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["a prompt", "--target", servers.plain]) == 1
    assert capfd.readouterr().err == "client: the server is no GPU service, or an older one: Method not found!\n"


def test_the_health_command_says_it_too(servers: Servers, capfd: pytest.CaptureFixture[str]) -> None:
    assert health([servers.free]) == 3
    assert capfd.readouterr().err.startswith(f"client.health: nothing serves on {servers.free}; start one")


def test_grpc_adds_no_lines_of_its_own(servers: Servers) -> None:
    done = command_lines.run("client", "a", "--target", servers.plain, "--tls-ca", str(servers.authority))
    assert done.returncode == 3
    command_lines.assert_one_line(done.stderr, "client", "does not use TLS")


def test_words_without_quotes_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["hello", "world"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("client: Got unexpected extra argument")
    assert error.endswith("(world); quote an argument that has spaces (see --help)\n")
