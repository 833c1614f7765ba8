"""`python -m client.top`: exit statuses, what scripts read, and the live screen."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from client.top.__main__ import main
from pair import free_port
from tests.client.top.conftest import Page
from tests.support.expositions import cpu_expert_service, gpu_service

TIMEOUT_SECONDS = 60.0
Pages = tuple[Page, Page]


@pytest.fixture
def options(pages: Pages) -> list[str]:
    """For a pair that makes one token at the second reading."""
    gpu, cpu = pages
    before = gpu_service([[0, 0]], generation_tokens_total=5)
    gpu.bodies = [before.encode(), gpu_service([[1, 3]], generation_tokens_total=6).encode()]
    cpu.bodies = [cpu_expert_service(memory_read_bytes_per_second=3e9).encode()]
    return ["--gpu", gpu.address, "--cpu", f"http://{cpu.address}/metrics", "--interval", "0.1"]


def test_once_prints_one_object_with_rates(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--once", "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    sample = json.loads(output.out)
    assert output.out.count("\n") == 1
    assert sample["tokens_per_second"] == pytest.approx(1 / sample["window_seconds"])
    assert sample["layers"][0]["selections"] == [1, 3]
    assert sample["bandwidth"]["measured_bytes_per_second"] == 3e9


def test_once_prints_the_view_for_people(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--once"]) == 0
    assert "L0/E1 75 %" in capsys.readouterr().out


def _assert_one_line(text: str, *words: str) -> None:
    assert text.startswith("client.top: ")
    assert text.count("\n") == 1
    for word in words:
        assert word in text


def test_nothing_there_is_one_line_and_3(capsys: pytest.CaptureFixture[str]) -> None:
    gpu, cpu = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    assert main(["--once", "--json", "--gpu", gpu, "--cpu", cpu]) == 3
    output = capsys.readouterr()
    assert output.out == ""
    _assert_one_line(output.err, f"--gpu http://{gpu}/metrics: connection refused", f"--cpu http://{cpu}/metrics")


def test_one_of_two_is_shown_and_the_other_told(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--cpu", f"127.0.0.1:{free_port()}", "--once", "--json"]) == 3
    output = capsys.readouterr()
    sample = json.loads(output.out)
    assert sample["tokens_per_second"] > 0
    assert "connection refused" in sample["cpu_expert_service"]["error"]
    _assert_one_line(output.err, "--cpu")


def test_endpoints_taken_for_each_other_are_told(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpu", options[3], "--cpu", options[1], "--once"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    _assert_one_line(output.err, "serves the metrics of cpu_expert_service, not those of gpu_service")


def test_one_service_may_be_left_out(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--cpu", "none", "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cpu_expert_service"] is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gpu", "nowhere"], "--gpu"),
        (["--interval", "0"], "--interval"),
        (["--interval", "soon"], "--interval"),
        (["--window", "nan"], "--window"),
        (["--gpu", "none", "--cpu", "none"], "--gpu and --cpu"),
        (["--maps", "all"], "--maps"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main([*arguments, "--once"])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert named in capsys.readouterr().err


def test_lines_of_json_go_on_until_nobody_reads(options: list[str]) -> None:
    command = [sys.executable, "-m", "client.top", *options, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        assert first["tokens_per_second"] is None
        assert second["layers"][0]["selections"] == [1, 3]
        process.stdout.close()
        assert process.wait(TIMEOUT_SECONDS) == 0
        assert process.stderr.read() == b""


class _Terminal:
    """A process on a terminal of its own."""

    def __init__(self, command: list[str]) -> None:
        self.descriptor, theirs = pty.openpty()
        self.seen = b""
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda frame: text.encode() in frame)

    def wait_until(self, expected: Callable[[bytes], bool]) -> None:
        """Waits for a frame, all of which begin with the cursor's way home."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not any(map(expected, self.seen.split(b"\x1b[H")[1:-1])):
            assert time.monotonic() < deadline, self.seen
            if select.select([self.descriptor], [], [], 0.1)[0]:
                self.seen += os.read(self.descriptor, 65536)

    def end(self) -> int:
        """Reads on until the process has ended, which otherwise waits for room; returns its status."""
        while self.process.poll() is None:
            with contextlib.suppress(OSError):  # it has hung up
                if select.select([self.descriptor], [], [], 0.05)[0]:
                    self.seen += os.read(self.descriptor, 65536)
        os.close(self.descriptor)
        return self.process.returncode


def test_the_screen_goes_on_without_a_service_changes_maps_and_is_quit_by_a_key(
    options: list[str], pages: Pages
) -> None:
    terminal = _Terminal([sys.executable, "-m", "client.top", *options, "--window", "60"])
    terminal.wait_for("times the even share")
    terminal.wait_for("L0/E1 75 %")
    pages[1].status = 503
    terminal.wait_for("CPU expert service: --cpu")
    terminal.wait_for("answers HTTP 503")
    os.write(terminal.descriptor, b"mmm")
    # the window is named above the figures, and once more where the recent map is shown
    terminal.wait_until(lambda frame: frame.count(b"last ") == 1 and b"decayed" in frame)
    os.write(terminal.descriptor, b"q")
    assert terminal.end() == 0
    assert b"Traceback" not in terminal.seen
    assert terminal.seen.endswith(b"\x1b[?25h\x1b[?1049l"), "the cursor is shown again, and what was there before"


def test_ctrl_c_is_130(options: list[str]) -> None:
    terminal = _Terminal([sys.executable, "-m", "client.top", *options])
    terminal.wait_for("running")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert b"Traceback" not in terminal.seen


def test_help_is_quick_to_come() -> None:
    probe = """
import sys
from client.top.__main__ import main
try:
    main(["--help"])
finally:
    sys.exit("grpc" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0
