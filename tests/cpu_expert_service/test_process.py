"""The service as a process: from start to end, and next to another one."""

import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from fiddler import __version__
from fiddler.v1 import experts_pb2, experts_pb2_grpc
from tests.support import processes
from tests.support.pairs import best_kernel
from tests.support.ports import free_port
from tests.support.processes import NOT_SERVING, SERVING, Process
from tests.support.streams import ask, stream

SERVICE = "fiddler.v1.ExpertService"

SLOW_PREFAULT = """
import pathlib, sys, time
from cpu_expert_service.__main__ import main
from fiddler.checkpoint import Checkpoint

def prefault(self, progress):
    while not pathlib.Path(sys.argv[2], "go").exists():
        progress(1, 2)
        time.sleep(0.01)

Checkpoint.prefault = prefault
sys.exit(main())
"""
"""The service, which reads experts until a file "go" appears in the model's directory."""


@dataclass(frozen=True)
class Running:
    """A process that serves, for all tests that do not change it."""

    process: Process
    channel: grpc.Channel
    socket: Path
    metrics_port: int

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as response:
            return str(response.read().decode())


@pytest.fixture(scope="module")
def running(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path, port = tmp_path_factory.mktemp("run") / "new" / "experts.sock", free_port()
    with processes.start(tiny, f"unix:{path}", "--metrics-port", str(port)) as process:
        process.wait_until_serving()
        with grpc.insecure_channel(process.address) as channel:
            yield Running(process, channel, path, port)


@pytest.mark.parametrize("service", ["", SERVICE])
def test_it_becomes_serving_under_both_names(running: Running, service: str) -> None:
    assert processes.health(running.channel, service) == SERVING


def test_it_computes(running: Running) -> None:
    with stream(running.channel) as opened:
        assert opened.works()
        opened.finish()


def test_metrics_tell_what_runs_and_what_was_done(running: Running) -> None:
    before = running.metrics()
    build = next(line for line in before.splitlines() if line.startswith("fiddler_build_info{"))
    for label in (
        'service="cpu_expert_service"',
        f'version="{__version__}"',
        f'kernel="{best_kernel()}"',
        "deepseek_v2",
    ):
        assert label in build
    # two layers of eight experts of three [32, 64] matrices in float32
    assert f"fiddler_expert_weight_bytes {float(2 * 8 * 3 * 32 * 64 * 4)}" in before
    with stream(running.channel) as opened:
        opened.send(ask(rows=5))
        opened.receive()
        # an answer is counted after it was sent, and before its stream ends
        opened.finish()
    assert _sample(running.metrics(), "fiddler_expert_rows_total") == _sample(before, "fiddler_expert_rows_total") + 5
    assert 'fiddler_expert_requests_total{code="OK"}' in running.metrics()


def test_silent_connections_keep_no_scrape_waiting(running: Running) -> None:
    silent = [socket.create_connection(("127.0.0.1", running.metrics_port), timeout=10) for _ in range(200)]
    time.sleep(0.5)
    assert "fiddler_build_info" in running.metrics()
    assert running.process.num_threads < 100
    for connection in silent:
        connection.close()


def _sample(body: str, name: str) -> float:
    return next(float(line.rpartition(" ")[2]) for line in body.splitlines() if line.startswith(f"{name} "))


def test_a_second_service_on_the_same_socket_is_refused(running: Running, tiny: Path) -> None:
    with processes.start(tiny, running.process.address) as second:
        outcome = second.outcome()
    assert outcome.status == 1
    assert outcome.errors == f"cpu_expert_service: --listen: {running.socket} is served by another process\n"
    assert processes.health(running.channel) == SERVING


def test_a_killed_service_is_replaced_and_a_stopped_one_leaves_no_trace(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "experts.sock"
    with processes.start(tiny, f"unix:{path}") as process:
        process.wait_until_serving()
        process.signal(signal.SIGKILL)
        assert process.outcome().status == -signal.SIGKILL
    assert path.is_socket()

    with processes.start(tiny, f"unix:{path}", "--grace-seconds", "0.2") as process:
        process.wait_until_serving()
        # an open stream must neither delay the end nor be reported as a failure
        with grpc.insecure_channel(process.address) as channel, stream(channel) as opened:
            assert opened.works()
            process.signal(signal.SIGTERM)
            outcome = process.outcome()
    assert outcome.status == 0
    assert not path.exists()
    assert '"event": "stopped"' in outcome.errors
    assert "failed" not in outcome.errors


@pytest.fixture
def reading(tiny: Path, tmp_path: Path) -> Iterator[tuple[Process, Path]]:
    """A service that reads experts, and the file whose creation ends that."""
    for file in tiny.iterdir():
        (tmp_path / file.name).symlink_to(file)
    with processes.start(tmp_path, f"unix:{tmp_path}/experts.sock", code=SLOW_PREFAULT) as process:
        process.wait_for_health(NOT_SERVING)
        yield process, tmp_path / "go"


def test_it_is_not_serving_while_it_reads_experts(reading: tuple[Process, Path]) -> None:
    process, go = reading
    with grpc.insecure_channel(process.address) as channel:
        for service in ("", SERVICE):
            assert processes.health(channel, service) == NOT_SERVING
        # the handshake is answered all the same
        assert experts_pb2_grpc.ExpertServiceStub(channel).Describe(experts_pb2.DescribeRequest(), timeout=30).layers
        go.touch()
        process.wait_until_serving()
    process.signal(signal.SIGINT)
    assert process.outcome().status == 0


def test_it_can_be_stopped_while_it_reads_experts(reading: tuple[Process, Path]) -> None:
    process, go = reading
    began = time.monotonic()
    process.signal(signal.SIGTERM)
    outcome = process.outcome()
    assert outcome.status == 0
    assert '"event": "serving"' not in outcome.errors
    assert not (go.parent / "experts.sock").exists()
    assert time.monotonic() - began < processes.START_SECONDS / 2


def test_a_busy_metrics_port_is_named(tiny: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with processes.start(tiny, f"unix:{tmp_path}/experts.sock", "--metrics-port", str(port)) as process:
            outcome = process.outcome()
    assert outcome.status == 1
    expected = (
        f"cpu_expert_service: --metrics-port: cannot serve on 127.0.0.1:{port}: Address already in use, by process"
    )
    assert outcome.errors.startswith(expected)
    assert outcome.errors.count("\n") == 1


def test_an_address_that_cannot_be_made_is_named(tiny: Path) -> None:
    path = tiny / "config.json" / "experts.sock"
    with processes.start(tiny, f"unix:{path}") as process:
        outcome = process.outcome()
    assert outcome.status == 1
    assert outcome.errors.startswith("cpu_expert_service: ")
    assert str(path.parent) in outcome.errors
    assert outcome.errors.count("\n") == 1
    assert "Traceback" not in outcome.errors


def test_what_is_no_address_is_refused_before_anything_is_loaded(tiny: Path) -> None:
    with processes.start(tiny, "nowhere") as process:
        outcome = process.outcome()
    assert outcome.status == 2
    assert outcome.errors == (
        "cpu_expert_service: --listen: 'nowhere' is not an address; expected HOST:PORT or unix:PATH\n"
    )
