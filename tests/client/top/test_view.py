"""The contents of the screen, and that they fit."""

import functools
import io
from collections.abc import Sequence

import grpc
import pytest
from rich.console import Console
from rich.screen import Screen

from client import ClientError, UnavailableError
from client.metrics.monitor import Monitor
from client.metrics.snapshot import Snapshot
from client.top.maps import CHOICES, Choice
from client.top.view import View
from tests.support.expositions import Counts, Script, cpu_expert_service, gpu_service

GONE = UnavailableError("--cpu http://x: connection refused", grpc.StatusCode.UNAVAILABLE)


def _snapshot(
    counts: Counts,
    resident: Sequence[Sequence[int]] | None = None,
    cpu: ClientError | str | None = None,
    **values: float,
) -> Snapshot:
    nothing = [[0.0] * len(experts) for experts in counts]
    histogram = {"time_to_first_token_seconds": {"0.1": 0, "0.2": 10, "+Inf": 10}}
    routes = [{"resident": 3.0, "streamed": 1.0, "remote": 4.0} for _ in counts]
    gpu = [
        gpu_service(nothing, routes=[{"remote": 0.0}] * len(counts), resident=resident),
        gpu_service(counts, routes=routes, resident=resident, histograms=histogram, **values),
    ]
    bandwidth = {"memory_read_bytes_per_second": 20e9}
    read = [{"weight_read_bytes_total": 1e9 * turn, "weight_read_seconds_total": 0.1 * turn} for turn in (0, 1)]
    other = [cpu or cpu_expert_service(**bandwidth, **each) for each in read]
    with Monitor(
        Script(gpu), Script(other), interval_seconds=2, window_seconds=2, half_life_seconds=60, timeout_seconds=1
    ) as monitor:
        monitor.sample()
        return monitor.sample()


def _printed(snapshot: Snapshot, width: int = 100, *, choice: Choice = "auto", colours: bool = False) -> str:
    file = io.StringIO()
    system = "truecolor" if colours else None
    Console(file=file, width=width, force_terminal=colours, color_system=system).print(View(snapshot, choice))  # type: ignore[arg-type]
    return file.getvalue()


def _screen(snapshot: Snapshot, width: int, height: int) -> list[str]:
    """The lines of a live screen, without colours."""
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
    console.print(Screen(View(snapshot, live=True)))
    return file.getvalue().splitlines()


def _skewed(num_layers: int, num_experts: int) -> list[list[float]]:
    """Selections in which expert 5 of each layer is selected as often as all others together."""
    return [[num_experts - 1.0 if expert == 5 else 1.0 for expert in range(num_experts)] for _ in range(num_layers)]


def test_figures_are_said_with_their_units() -> None:
    text = _printed(
        _snapshot([[1, 3]], generation_tokens_total=30, requests_running=2, requests_waiting=7, placement_swaps_total=4)
    )
    for words in (
        "15.0 generated, - prompt   2 running, 7 waiting",
        "first token 150/190/199 ms, next ones - (p50/p90/p99)",
        "resident 38 %  streamed 12 %  remote 50 %  4 swapped in",
        "10 of 20 GB/s measured (50 %)",
        "L0/E1 75 %   L0/E0 25 %",
    ):
        assert words in text


def test_a_bandwidth_that_was_not_measured_is_no_figure() -> None:
    """PyTorch computes the experts: the service has nothing to measure, and counts no bytes."""
    idle = cpu_expert_service(memory_read_bytes_per_second=0.0, weight_read_bytes_total=0.0)
    (line,) = [line for line in _printed(_snapshot([[1.0, 1.0]], cpu=idle)).splitlines() if "bandwidth" in line]
    assert "measured" not in line


def test_a_small_map_shows_numbers_and_marks_what_is_resident() -> None:
    lines = _printed(_snapshot(_skewed(2, 8), [[5], [0, 1]]), 120).splitlines()
    first, second = [line for line in lines if line.split()[-5:-2] == ["38", "12", "50"]]
    # The recent and the decayed map, then routes in per cent, imbalance, and the number of resident experts.
    map_of_first = [*["7"] * 5, "•50", *["7"] * 2]
    assert first.split() == ["0", *map_of_first, *map_of_first, "38", "12", "50", "4.0", "1"]
    assert second.split()[1:5] == ["•", "7", "•", "7"]


@functools.cache
def _large(num_layers: int, num_experts: int) -> Snapshot:
    """Cached, since parsing an exposition of this size takes a second."""
    return _snapshot(_skewed(num_layers, num_experts), [[5]] * num_layers)


@pytest.mark.parametrize(("num_layers", "num_experts"), [(2, 8), (48, 128), (61, 256)])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (230, 70)])
def test_the_whole_screen_fits(num_layers: int, num_experts: int, width: int, height: int) -> None:
    lines = _screen(_large(num_layers, num_experts), width, height)
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)
    assert any("times the even share" in line for line in lines), "the last line is cut off"
    rows = [line for line in lines if line.split()[-5:-1][:3] == ["38", "12", "50"]]
    layers = [int(row.split()[0].split("-")[-1]) for row in rows]
    assert layers[-1] == num_layers - 1
    # The hot expert is visible in every row, whichever experts share its cell.
    assert all("@" in row or "•50" in row for row in rows)


def test_eighty_columns_have_room_for_every_figure() -> None:
    snapshot = _snapshot([[1, 3]], generation_tokens_total=30, requests_running=2, placement_swaps_total=1234)
    lines = _printed(snapshot, 80).splitlines()
    assert all(len(line) <= 80 and "…" not in line for line in lines)
    text = "\n".join(lines)
    for words in (
        "remote 50 %  1234 swapped in",
        "computing - %",
        "(p50/p90/p99)",
        "decayed: half-life 60 s",
        "imbal: the",
    ):
        assert words.replace("computing - %", "(50 %)") in text


def test_selections_by_band_fill_the_map_and_the_hottest_experts_are_the_services() -> None:
    size, num_layers = 12, 60

    def exposition(turn: int) -> str:
        lines = []
        for layer in range(num_layers):
            lines.append(f'fiddler_expert_selections_total{{layer="{layer}",route="remote"}} {turn * 32}')
            for band in range(32):
                name = f"{band * size:03}-{band * size + size - 1:03}"
                count = turn * (200 if band == 7 else 1)
                lines.append(f'fiddler_expert_selections_by_band_total{{layer="{layer}",band="{name}"}} {count}')
        lines.append('fiddler_hot_expert_selections_ratio{layer="3",expert="90"} 0.4')
        lines.append('fiddler_expert_imbalance_ratio{layer="3"} 77')
        return gpu_service() + "\n".join(lines) + "\n"

    with Monitor(
        Script([exposition(0), exposition(1)]), None, interval_seconds=2, window_seconds=2, half_life_seconds=60,
        timeout_seconds=1,
    ) as monitor:  # fmt: skip
        monitor.sample()
        snapshot = monitor.sample()
    text = _printed(snapshot, 80)
    assert "L3/E90 40 %" in text
    assert "bands of 12" in text
    rows = [line for line in text.splitlines() if line.split()[:1] in ([str(layer)] for layer in range(num_layers))]
    assert len(rows) == num_layers
    assert all("@" in row for row in rows)
    assert rows[3].split()[-2] == "77.0"


def test_maps_are_chosen() -> None:
    snapshot = _large(48, 128)
    shown = {choice: _printed(snapshot, 120, choice=choice) for choice in CHOICES}
    titles = {choice: ("last 2 s," in text, "  decayed," in text) for choice, text in shown.items()}
    assert titles == {"auto": (True, False), "both": (True, True), "recent": (True, False), "decayed": (False, True)}
    assert "last 2 s, max of 4 " in shown["both"]


def test_colours_are_used_where_there_are_some() -> None:
    assert "\x1b[" not in _printed(_snapshot(_skewed(2, 8)))
    text = _printed(_snapshot(_skewed(2, 8)), colours=True)
    assert "48;2;252;255;164" in text, "the hottest colour, in the background"


def test_without_selections_by_expert_routes_are_still_shown() -> None:
    text = _printed(_snapshot([[], []]))
    assert "hottest    not available" in text
    assert "map not available: the GPU service exports no selections by expert" in text
    assert "remote 50 %" in text
    assert [line.split() for line in text.splitlines()[-3:-1]] == [
        ["0", "38", "12", "50", "-", "-"],
        ["1", "38", "12", "50", "-", "-"],
    ]


def test_a_service_that_is_gone_and_what_follows_is_said() -> None:
    text = _printed(_snapshot([[1]], cpu=GONE, degraded=1))
    assert "CPU expert service does not answer" in text
    assert "CPU expert service: --cpu http://x: connection refused" in text
    assert "DEGRADED" in text
    assert "bandwidth  achieved not available" in text
    assert "DEGRADED" not in _printed(_snapshot([[1]], degraded=0))
