"""Both services start and end together, and leave nothing behind."""

import contextlib
import json
import os
import re
import signal
import socket as pysocket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from client import Client, Complete
from fiddler import rpc
from pair import Pair, PairError, _processes
from pair.__main__ import hint, main
from tests.support.fake_server import serving as fake_serving
from tests.support.pairs import WarmPair, start
from tests.support.ports import free_port

WAIT_SECONDS = 120


def test_a_pair_serves_until_its_block_ends(tiny: Path) -> None:
    with start(tiny) as pair:
        processes = dict(pair.processes)
        assert sorted(processes) == ["cpu_expert_service", "gpu_service"]
        assert pair.is_serving(pair.target)
        assert pair.is_serving(pair.experts)
        socket = Path(pair.experts.removeprefix("unix:"))
        assert socket.is_socket()
        with Client(pair.target) as client:
            *_, complete = client.generate([3, 4, 5], max_tokens=3, temperature=0)
        assert isinstance(complete, Complete)
        assert complete.completion_tokens == 3
        pair.check()
    assert {name: process.returncode for name, process in processes.items()} == dict.fromkeys(processes, 0)
    assert not socket.parent.exists()


def test_a_service_that_ends_is_noticed_and_can_be_started_again(tiny: Path) -> None:
    pair = start(tiny)
    try:
        pair.start("cpu_expert_service")
        pair.wait_until_serving(pair.experts)
        assert pair.stop("cpu_expert_service", signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises(PairError, match=r"^cpu_expert_service ended with status -9$"):
            pair.check()
        with pytest.raises(PairError, match="ended with status -9"):
            pair.wait_until_serving(pair.experts)
        pair.start("cpu_expert_service")
        pair.wait_until_serving(pair.experts)
        assert pair.stop("cpu_expert_service") == 0
    finally:
        pair.close()


def test_a_pair_that_cannot_start_ends_its_other_half(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "nothing", gpu_arguments=("--device", "cpu"))
    with pytest.raises(PairError, match=r"_service ended with status 1$"), pair:
        pytest.fail("it started")
    assert all(process.returncode is not None for process in pair.processes.values())
    assert not Path(pair.experts.removeprefix("unix:")).parent.exists()


@pytest.mark.parametrize("name", ["a%2Fb", "a,b", "a#b?", "é\n", "x" * 120, "missing/"])
def test_an_unsuitable_tmpdir_is_not_used_for_the_socket(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / name
    if "missing" not in name:
        directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    pair = Pair(tmp_path)
    path = Path(pair.experts.removeprefix("unix:"))
    assert not path.is_relative_to(tmp_path)
    assert rpc.check_address(pair.experts)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    pair.close()
    assert not path.parent.exists()


def test_a_suitable_tmpdir_is_used_for_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="a b é") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        pair = Pair(tmp_path)
        assert Path(pair.experts.removeprefix("unix:")).is_relative_to(directory)
        pair.close()


def test_no_directory_for_a_socket_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.setattr(_processes, "_OTHER_DIRECTORIES", ("/" + "y" * 100,))
    with pytest.raises(PairError, match=r"set TMPDIR to a short one: .*missing"):
        Pair(tmp_path)


@pytest.mark.parametrize("listen", ["unix:/tmp/a#b", "nowhere"])
def test_what_is_no_address_is_wrong_usage(listen: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path), "--listen", listen]) == 2
    assert re.fullmatch(r"pair: --listen: .*\(see --help\)\n", capfd.readouterr().err)


def test_the_http_gateway_starts_and_ends_with_the_pair(tiny: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with WarmPair(tiny, gpu_arguments=("--device", "cpu"), http=address) as pair:
        with urllib.request.urlopen(f"http://{address}/v1/models", timeout=20) as answer:
            assert json.load(answer)["data"][0]["id"] == tiny.name
        gateway = pair.processes["http_gateway"]
    assert gateway.returncode == 0


def test_a_gateway_that_cannot_start_ends_the_pair(tiny: Path) -> None:
    pair = WarmPair(tiny, gpu_arguments=("--device", "cpu"), http="unix:/tmp/fiddler.sock")
    with pytest.raises(PairError, match=r"^http_gateway ended with status 2$"), pair:
        pytest.fail("it started")
    assert all(process.returncode is not None for process in pair.processes.values())


def _arguments(model: Path) -> list[str]:
    return [
        *("--model", str(model), "--device", "cpu", "--dtype", "float32"),
        *("--listen", f"127.0.0.1:{free_port()}"),
        *("--gpu-metrics-port", str(free_port()), "--cpu-metrics-port", str(free_port())),
    ]


class Launcher:
    """`python -m pair` in a process group of its own, as in a terminal."""

    def __init__(self, program: tuple[str, ...], model: Path, log: Path) -> None:
        self.log = log
        # A file, since a service that is left behind would keep a pipe open.
        with log.open("wb") as stderr:
            command = [sys.executable, *program, *_arguments(model)]
            self.process = subprocess.Popen(command, stderr=stderr, start_new_session=True)

    def wait_until_serving(self) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while "pair: serving on 127.0.0.1:" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def wait(self) -> int:
        return self.process.wait(WAIT_SECONDS)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


Launch = Callable[..., Launcher]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    launchers: list[Launcher] = []

    def start_one(model: Path, *program: str) -> Launcher:
        launchers.append(Launcher(program or ("-m", "pair"), model, tmp_path / "log"))
        return launchers[-1]

    yield start_one
    for launcher in launchers:
        launcher.close()


@pytest.mark.parametrize(
    ("number", "to_the_group"),
    [(signal.SIGTERM, False), (signal.SIGINT, True)],
    ids=["as a supervisor stops it", "as Ctrl-C stops it"],
)
def test_a_signal_ends_the_launcher_and_both_services(
    launch: Launch, tiny: Path, number: signal.Signals, to_the_group: bool
) -> None:
    launcher = launch(tiny)
    launcher.wait_until_serving()
    services = psutil.Process(launcher.process.pid).children(recursive=True)
    assert len(services) == 2
    if to_the_group:
        os.killpg(launcher.process.pid, number)
    else:
        launcher.process.send_signal(number)
    assert launcher.wait() == 0
    assert not any(service.is_running() for service in services)
    assert "Traceback" not in launcher.log.read_text()


INTERRUPTED = """
import os, runpy, signal, subprocess, sys

class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        print("started", self.pid, file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

subprocess.Popen = Popen
runpy.run_module("pair", run_name="__main__")
"""
"""The launcher, with a signal between the start of a service and its registration."""


def test_a_signal_during_the_start_leaves_no_service_behind(launch: Launch, tiny: Path) -> None:
    launcher = launch(tiny, "-c", INTERRUPTED)
    assert launcher.wait() == 0
    lines = launcher.log.read_text().splitlines()
    started = [int(line.removeprefix("started ")) for line in lines if line.startswith("started ")]
    assert started
    assert not any(psutil.pid_exists(pid) for pid in started)


def test_killing_the_launcher_ends_both_services(launch: Launch, tiny: Path) -> None:
    launcher = launch(tiny)
    parent = psutil.Process(launcher.process.pid)
    deadline = time.monotonic() + WAIT_SECONDS
    while len(services := parent.children()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launcher.process.send_signal(signal.SIGKILL)
    assert launcher.wait() == -signal.SIGKILL
    assert psutil.wait_procs(services, timeout=WAIT_SECONDS)[1] == []


def test_a_closed_terminal_leaves_no_directory(launch: Launch, tiny: Path, tmp_path: Path) -> None:
    not_ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # as it is where nohup runs the tests
    launcher = launch(tiny, "-c", f"{not_ignored}\n{INTERRUPTED.replace('SIGTERM', 'SIGHUP')}")
    assert launcher.wait() == 0
    assert "Traceback" not in launcher.log.read_text()


def test_a_missing_model_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", f"{tmp_path}/nothing"]) == 1
    problem = "does not exist; give the directory that holds config.json and the safetensors files, or a model's name "
    assert capfd.readouterr().err == f"pair: {tmp_path}/nothing {problem}on the Hugging Face hub, ORG/NAME.\n"


def test_a_port_in_use_is_told_with_who_has_it_and_leaves_nothing(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pysocket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flag, value in (("--listen", f"127.0.0.1:{port}"), ("--cpu-metrics-port", str(port))):
            arguments = [*_arguments(tiny), flag, value]
            assert main(arguments) == 1
            start = (
                f"pair: {flag}: cannot serve on 127.0.0.1:{port}: Address already in use, by process {os.getpid()} ("
            )
            assert capfd.readouterr().err.startswith(start)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_this_pairs_own_is_not_taken_for_it(tiny: Path) -> None:
    with fake_serving() as other:
        pair = start(tiny)
        try:
            pair.start("gpu_service")
            pair.target = other.target
            assert pair.is_serving(other.target)
            with pytest.raises(PairError, match=r"was not serving within 0.3 s"):
                pair.wait_until_serving(timeout_seconds=0.3)
        finally:
            pair.close()


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("127.0.0.1:50051", '"Once upon a time"'),
        ("127.0.0.1:50081", '"Once upon a time" --target 127.0.0.1:50081'),
        ("0.0.0.0:50051", '"Once upon a time"'),
        ("unix:/run/a.sock", '"Once upon a time" --target unix:/run/a.sock'),
    ],
)
def test_the_hint_calls_this_pair(target: str, shown: str) -> None:
    assert hint(target).endswith(f" -m client {shown}")


def test_ports_of_its_choice_are_the_pairs_until_it_is_closed(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    ports = (int(pair.target.rpartition(":")[2]), pair.gpu_metrics_port, pair.cpu_metrics_port)
    assert [_is_free(port) for port in ports] == [False] * 3
    pair.close()
    assert [_is_free(port) for port in ports] == [True] * 3


def _is_free(port: int) -> bool:
    """Whether a program that does not know of the reservation could have the port."""
    with pysocket.socket() as other:
        try:
            other.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
