"""`python -m benchmarks.routing.plot`: docs/routing.svg and docs/top.svg from benchmarks/results/routing.jsonl.

docs/routing.svg: a panel for each layer, a row for each expert, a column for each sample. docs/top.svg: the terminal.
"""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from client.top import heat
from client.top.snapshot import ROUTES, Snapshot
from client.top.view import View

_RESULTS = Path(__file__).parents[1] / "results" / "routing.jsonl"
_DOCS = Path(__file__).parents[2] / "docs"
_WIDTH = 900
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 84, 62
_ROW, _GAP, _ROUTES_HEIGHT = 13, 30, 70
_ROUTE_COLOURS = {"resident": "#2ca02c", "streamed": "#bcbd22", "remote": "#1f77b4"}
_RESIDENT_COLOUR = "#00e5ff"
_TERMINAL_COLUMNS = 110


@dataclass(frozen=True, slots=True)
class Run:
    """What was recorded.

    Attributes:
        samples: Seconds since the load began, and what was known then.
        topics: Each with the seconds at which it began, ascending.
        view: What the terminal shows.
    """

    samples: list[tuple[float, Snapshot]]
    topics: list[tuple[float, str]]
    view: Snapshot


def main() -> None:
    """Draws both pictures."""
    run = read(_RESULTS.read_text())
    (_DOCS / "routing.svg").write_text(draw(run))
    (_DOCS / "top.svg").write_text(draw_terminal(run.view))


def read(text: str) -> Run:
    """The run that the lines of a results file tell of."""
    results: dict[str, list[dict[str, Any]]] = {}
    for line in text.splitlines():
        result = json.loads(line)
        results.setdefault(result["name"], []).append(result)
    snapshot = TypeAdapter(Snapshot).validate_python
    return Run(
        [(result["seconds"], snapshot(result)) for result in results["routing.sample"]],
        sorted((result["seconds"], result["topic"]) for result in results["routing.topic"]),
        snapshot(results["routing.view"][0]),
    )


def draw_terminal(view: Snapshot) -> str:
    """The terminal's picture, without the fonts that rich would have fetched."""
    # its size is fixed, so that the picture does not depend on who draws it
    console = Console(
        record=True, file=io.StringIO(), width=_TERMINAL_COLUMNS, force_terminal=True, color_system="truecolor"
    )
    console.print(View(view, half_life_seconds=30))
    code_format = re.sub(r"@font-face \{\{.*?\}\}\n\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    picture = console.export_svg(title="python -m client.top", code_format=code_format, unique_id="top")
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


def draw(run: Run) -> str:
    """The heat map over time."""
    # what was idle throughout, before the load and after it, is no column
    samples = [(seconds, snapshot) for seconds, snapshot in run.samples if snapshot.routes and snapshot.window_seconds]
    layers = samples[0][1].layers
    width = (_WIDTH - _LEFT - _RIGHT) / samples[-1][0]
    hottest = heat.scale([heat.shares(layer.selections) for _, snapshot in samples for layer in snapshot.layers])
    parts = [
        _text(_LEFT, 20, "Experts of models/demo chosen by the tokens of each second, while the topic changes", 15),
        *_topics(run.topics, samples[-1][0], width),
    ]
    top: float = _TOP
    for index, layer in enumerate(layers):
        parts += _panel(samples, index, width, top, hottest)
        parts.append(_text(_LEFT, top - 5, f"layer {layer.layer}", 12))
        top += _ROW * len(layer.selections or ()) + _GAP
    parts += _routes(samples, width, top)
    bottom = top + _ROUTES_HEIGHT
    changes = [seconds for seconds, _ in run.topics[1:]]
    for seconds in changes:
        x = _LEFT + seconds * width
        line = f'x1="{x:.1f}" y1="{_TOP - 22}" x2="{x:.1f}" y2="{bottom:.1f}"'
        # light on what is dark, and the other way round
        parts.append(f'<line {line} stroke="white" stroke-width="3"/>')
        parts.append(f'<line {line} stroke="#d62728" stroke-width="1.5" stroke-dasharray="6 3"/>')
    parts += _legend(hottest, samples[-1][0], width, bottom)
    height = bottom + _BOTTOM
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{height:.0f}" fill="white"/>', *parts, "</svg>\n"])


def _topics(topics: Sequence[tuple[float, str]], end: float, width: float) -> list[str]:
    ends = [seconds for seconds, _ in topics[1:]] + [end]
    return [
        _text(_LEFT + (began + until) / 2 * width, _TOP - 28, f"topic: {topic}", 13, "middle")
        for (began, topic), until in zip(topics, ends, strict=True)
    ]


def _panel(
    samples: Sequence[tuple[float, Snapshot]], index: int, width: float, top: float, hottest: float
) -> list[str]:
    """A layer: a cell for each expert in each sample, and a line through those in which it lay on the device."""
    parts, lines = [], []
    for seconds, snapshot in samples:
        layer = snapshot.layers[index]
        cell_width = (snapshot.window_seconds or 0.0) * width
        left = _LEFT + seconds * width - cell_width
        for expert, value in enumerate(heat.shares(layer.selections) or ()):
            y = top + _ROW * expert
            red, green, blue = heat.colour(value, hottest)
            fill = f'fill="#{red:02x}{green:02x}{blue:02x}"'
            # half a pixel more, so that nothing shines through between neighbours
            parts.append(f'<rect x="{left:.1f}" y="{y:.1f}" width="{cell_width + 0.5:.1f}" height="{_ROW}" {fill}/>')
            if layer.resident and expert in layer.resident:
                lines.append((left, y + _ROW / 2, cell_width + 0.5))
    parts += [
        f'<rect x="{x:.1f}" y="{y - 1:.1f}" width="{length:.1f}" height="2" fill="{_RESIDENT_COLOUR}"/>'
        for x, y, length in lines
    ]
    for expert in range(len(samples[0][1].layers[index].selections or ())):
        parts.append(_text(_LEFT - 6, top + _ROW * (expert + 0.8), f"expert {expert}", 10, "end"))
    return parts


def _routes(samples: Sequence[tuple[float, Snapshot]], width: float, top: float) -> list[str]:
    """Shares of all selections by route, stacked."""
    parts = [_text(_LEFT, top - 5, "where all layers' experts were computed", 12)]
    for seconds, snapshot in samples:
        length = (snapshot.window_seconds or 0.0) * width
        y = top + _ROUTES_HEIGHT
        for route in ROUTES:
            height = (snapshot.routes or {}).get(route, 0.0) * _ROUTES_HEIGHT
            y -= height
            place = f'x="{_LEFT + seconds * width - length:.1f}" y="{y:.2f}" width="{length + 0.5:.1f}"'
            parts.append(f'<rect {place} height="{height:.2f}" fill="{_ROUTE_COLOURS[route]}"/>')
    for share in (0, 50, 100):
        parts.append(_text(_LEFT - 6, top + _ROUTES_HEIGHT * (1 - share / 100) + 4, f"{share} %", 10, "end"))
    return parts


def _legend(hottest: float, end: float, width: float, bottom: float) -> list[str]:
    parts = [
        _text(_LEFT + seconds * width, bottom + 15, f"{seconds} s", 10, "middle")
        for seconds in range(0, int(end) + 1, 10)
    ]
    y, x = bottom + 34, float(_LEFT)
    for step in range(12):
        red, green, blue = heat.colour(step, 11)
        parts.append(f'<rect x="{x:.0f}" y="{y}" width="12" height="12" fill="#{red:02x}{green:02x}{blue:02x}"/>')
        x += 12
    parts.append(_text(x + 6, y + 10, f"0 to {hottest:.1f} times the even share", 11))
    x += 190
    parts.append(f'<rect x="{x:.0f}" y="{y}" width="24" height="12" fill="#32075a"/>')
    parts.append(f'<rect x="{x:.0f}" y="{y + 5}" width="24" height="2" fill="{_RESIDENT_COLOUR}"/>')
    parts.append(_text(x + 30, y + 10, "lies in one of the device's 10 slots", 11))
    x += 240
    for route, colour in _ROUTE_COLOURS.items():
        parts.append(f'<rect x="{x:.0f}" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 17, y + 10, route, 11))
        x += 76
    return parts


def _text(x: float, y: float, text: str, size: int, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{text}</text>'


if __name__ == "__main__":
    main()
