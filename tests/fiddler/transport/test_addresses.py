"""Addresses: what is refused, how gRPC is given them, and which are this host's. Servers are real, in this process."""

import itertools
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client import health as client_health
from fiddler import listen, rpc
from fiddler.transport import addresses
from pair import Pair
from tests.support.ports import free_port

NOBODY = "http://127.0.0.1:9"


@contextmanager
def healthy(address: str) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(2), options=rpc.server_options(2**20))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    listener = listen.bind(server, address)
    server.start()
    try:
        yield
    finally:
        listener.remove()
        server.stop(None).wait()


def test_every_path_is_found_or_refused(tmp_path: Path) -> None:
    served, refused = "", ""
    for number, character in enumerate(map(chr, itertools.chain(range(1, 0x30), range(0x3A, 0x41), range(0x5B, 0x61)))):
        directory = tmp_path / str(number) / f"a{character}2Fb" if character != "/" else tmp_path
        address = f"unix:{directory}/e.sock"
        try:
            rpc.check_address(address)
        except ValueError:
            refused += character
            continue
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with healthy(address):
            assert Pair.is_serving(address), address
        served += character
    assert set("#?,%\n\t\x1b") <= set(refused)
    assert set(" !\"$&'()*+-.:;<=>@[\\]^_`") <= set(served)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/run/a#b/e.sock", "'/run/a#b/e.sock' has a '#', which gRPC cannot connect to; choose another path"),
        ("/run/a\nb/e.sock", r"has a '\\n'"),
        ("/run/\udce9/e.sock", r"has a '\\udce9'"),
        ("//run/e.sock", "names a host"),
    ],
)
def test_the_problem_of_a_path_is_told_in_a_line(path: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        addresses.check_address(f"unix:{path}")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("address", ["a,b:80", "a/b:80", "a#b:80", "a%41:80", "é:80", "[:::]:80"])
def test_a_host_that_grpc_cannot_look_up_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        addresses.check_address(address)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("0:80", "0.0.0.0:80"),
        ("127.1:80", "127.0.0.1:80"),
        ("0x7f000001:80", "127.0.0.1:80"),
        ("localhost.:80", "localhost:80"),
        ("gpu-1.example.com.:80", "gpu-1.example.com.:80"),
        ("[::]:80", "[::]:80"),
        ("unix:127.1", "unix:127.1"),
    ],
)
def test_an_abbreviation_is_written_out(address: str, target: str) -> None:
    assert addresses.target(address) == target


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("localhost.:1", True),
        ("LOCALHOST:1", True),
        ("127.1:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("0:1", False),
        (f"{socket.gethostname()}:1", socket.gethostname() == "localhost"),
    ],
)
def test_what_only_this_host_reaches_is_local_however_it_is_written(address: str, local: bool) -> None:
    assert addresses.is_local(address) is local


def own_hosts() -> list[str]:
    hosts = ["0.0.0.0", "[::]", "0", "127.1", "localhost.", "LocalHost", "a.localhost", socket.gethostname()]
    hosts += [f"{socket.gethostname()}.", "[::ffff:127.0.0.1]", "127.0.0.1", "[::1]"]
    for interface in psutil.net_if_addrs().values():
        hosts += [own.address for own in interface if own.family is socket.AF_INET]
        hosts += [f"[{own.address}]" for own in interface if own.family is socket.AF_INET6 and "%" not in own.address]
    return sorted(set(hosts))


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_this_host_is_never_asked_for_through_a_proxy(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1,::1")
    monkeypatch.setenv(variable, NOBODY)
    port = free_port()
    with healthy(f"[::]:{port}"):
        missed = [host for host in own_hosts() if not Pair.is_serving(f"{host}:{port}")]
        assert missed == []
        assert client_health.main([f"0.0.0.0:{port}"]) == client_health.SERVING


@pytest.mark.parametrize("host", ["0", "127.1", "localhost."])
def test_an_abbreviation_can_be_served_on(host: str) -> None:
    address = f"{host}:{free_port()}"
    with healthy(address):
        assert Pair.is_serving(address)


@pytest.mark.parametrize("found", [["203.0.113.7"], ["203.0.113.7", "127.0.0.1"], []])
def test_another_host_keeps_its_proxy(found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos)
    monkeypatch.setenv("HTTPS_PROXY", NOBODY)
    assert not addresses.is_this_host("gpu.example.com:80")
    assert not addresses.is_this_host("203.0.113.7:80")


def test_a_name_of_this_host_is_resolved_if_there_is_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos)
    for variable in addresses._PROXY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    assert not addresses.is_this_host("alias:80")
    monkeypatch.setenv("http_proxy", NOBODY)
    assert addresses.is_this_host("alias:80")


def test_a_resolver_that_hangs_is_waited_for_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_RESOLVE_SECONDS", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: __import__("time").sleep(1) or [])
    monkeypatch.setenv("http_proxy", NOBODY)
    assert not addresses.is_this_host("gpu.example.com:80")
