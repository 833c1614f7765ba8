"""`python -m client.top`: exit statuses, output for scripts, and the live screen."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from client.top.__main__ import main
from tests.support.command_lines import TIMEOUT_SECONDS, assert_one_line, started, started_at
from tests.support.expositions import cpu_expert_service, gpu_service
from tests.support.metrics_pages import Page
from tests.support.ports import free_port
from tests.support.terminals import terminal

MODULE = "client.top"
Pages = tuple[Page, Page]


@pytest.fixture
def options(pages: Pages) -> list[str]:
    """The options for a pair that generates one token before the second reading."""
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


def test_nothing_there_is_one_line_and_3(capsys: pytest.CaptureFixture[str]) -> None:
    gpu, cpu = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    assert main(["--once", "--json", "--gpu", gpu, "--cpu", cpu]) == 3
    output = capsys.readouterr()
    assert output.out == ""
    refused = f"--gpu http://{gpu}/metrics: connection refused"
    assert_one_line(output.err, MODULE, refused, f"--cpu http://{cpu}/metrics")


def test_one_of_two_is_shown_and_the_other_told(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--cpu", f"127.0.0.1:{free_port()}", "--once", "--json"]) == 3
    output = capsys.readouterr()
    sample = json.loads(output.out)
    assert sample["tokens_per_second"] > 0
    assert "connection refused" in sample["cpu_expert_service"]["error"]
    assert_one_line(output.err, MODULE, "--cpu")


def test_endpoints_taken_for_each_other_are_told(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpu", options[3], "--cpu", options[1], "--once"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert_one_line(output.err, MODULE, "serves the metrics of cpu_expert_service, not those of gpu_service")


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
    assert main([*arguments, "--once"]) == 2
    assert_one_line(capsys.readouterr().err, MODULE, named)


def test_lines_of_json_go_on_until_nobody_reads(options: list[str]) -> None:
    with started(MODULE, *options, "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        assert first["tokens_per_second"] is None
        assert second["layers"][0]["selections"] == [1, 3]
        process.stdout.close()
        assert process.wait(TIMEOUT_SECONDS) == 0
        assert process.stderr.read() == b""


def frames(shown: str) -> list[str]:
    """The complete frames of a screen. Each begins by moving the cursor to the first column of the first line."""
    return shown.split("\x1b[H")[1:-1]


def has_frame_with(*texts: str) -> Callable[[str], bool]:
    """Whether a frame shows all of these texts."""
    return lambda shown: any(all(text in frame for text in texts) for frame in frames(shown))


def test_the_screen_goes_on_without_a_service_changes_maps_and_is_quit_by_a_key(
    options: list[str], pages: Pages
) -> None:
    size = {"COLUMNS": "100", "LINES": "30"}
    with terminal() as screen, started_at(screen, MODULE, *options, "--window", "60", **size) as process:
        screen.wait_until(has_frame_with("times the even share", "L0/E1 75 %"))
        pages[1].status = 503
        screen.wait_until(has_frame_with("CPU expert service: --cpu", "answers HTTP 503"))
        screen.type("mmm")
        # The window is named above the figures, and once more in the title of the recent map.
        screen.wait_until(
            lambda shown: any(frame.count("last ") == 1 and "decayed" in frame for frame in frames(shown))
        )
        screen.type("q")
        assert screen.wait_for_exit(process) == 0
        shown = screen.read_rest()
    assert "Traceback" not in shown
    assert shown.endswith("\x1b[?25h\x1b[?1049l"), "the cursor and the previous screen are restored"


def test_ctrl_c_is_130(options: list[str]) -> None:
    with terminal() as screen, started_at(screen, MODULE, *options) as process:
        screen.wait_for("running")
        process.send_signal(signal.SIGINT)
        assert screen.wait_for_exit(process) == 130
        assert "Traceback" not in screen.read_rest()


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
