"""`python -m client.health`: outputs and exit statuses."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from client.health import main
from tests.support.fake_server import SERVICE, FakeServer, serving

Status = health_pb2.HealthCheckResponse


def test_a_process_prints_the_word_and_exits_0(server: FakeServer) -> None:
    command = [sys.executable, "-m", "client.health", server.target]
    done = subprocess.run(command, capture_output=True, check=False, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"SERVING\n", b"")


def test_a_named_service_is_asked_for(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.health.set("", Status.NOT_SERVING)
    assert main([server.target, "--service", SERVICE]) == 0
    assert main([server.target]) == 1
    assert capsys.readouterr().out == "SERVING\nNOT_SERVING\n"


@pytest.mark.parametrize("word", ["NOT_SERVING", "UNKNOWN"])
def test_only_serving_is_0(server: FakeServer, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    server.health.set("", Status.ServingStatus.Value(word))
    assert main([server.target]) == 1
    assert capsys.readouterr().out == f"{word}\n"


def test_a_service_that_is_not_known_is_1(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([server.target, "--service", "nobody.knows"]) == 1
    assert capsys.readouterr().out == "SERVICE_UNKNOWN\n"


def test_nothing_answering_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"unix:{tmp_path}/nobody"]) == 3
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("client.health: ")
    assert output.err.count("\n") == 1


def test_a_server_that_is_stuck_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(f"{tmp_path}/stuck")
        stuck.listen()
        assert main([f"unix:{tmp_path}/stuck", "--timeout", "0.3"]) == 3


def test_a_unix_socket_is_asked_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(f"unix:{tmp_path}/s") as fake:
        assert main([fake.target]) == 0


@pytest.mark.parametrize("arguments", [["nowhere"], ["127.0.0.1:1", "--timeout", "0"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("client.health: ")
