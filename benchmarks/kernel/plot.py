"""`python -m benchmarks.kernel.plot`: draws docs/kernel_scaling.svg from benchmarks/results/kernel.jsonl."""

import json
import math
from collections import defaultdict
from pathlib import Path

_RESULTS = Path(__file__).parents[1] / "results" / "kernel.jsonl"
_PLOT = Path(__file__).parents[2] / "docs" / "kernel_scaling.svg"
_PREFIX = "kernel.scaling."
_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 170, 40, 50
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")

Series = dict[str, list[tuple[int, float, float, float]]]
"""By case: (rows, median, p10, p90 in milliseconds), rows ascending."""


def main() -> None:
    """Draws the plot."""
    _PLOT.write_text(draw(_read(_RESULTS)))


def _read(path: Path) -> Series:
    series: Series = defaultdict(list)
    for line in path.read_text().splitlines():
        result = json.loads(line)
        if result["name"].startswith(_PREFIX):
            case, rows = result["name"].removeprefix(_PREFIX).split(".m")
            series[case].append((int(rows), result["median"], result["p10"], result["p90"]))
    return {case: sorted(points) for case, points in series.items()}


def draw(series: Series) -> str:
    """The whole picture; both axes are logarithmic."""
    points = [point for line in series.values() for point in line]
    most_rows = max(rows for rows, *_ in points)
    low = math.floor(math.log10(min(point[2] for point in points)))
    high = math.ceil(math.log10(max(point[3] for point in points)))

    def x(rows: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log2(rows) / math.log2(most_rows)

    def y(milliseconds: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - math.log10(milliseconds)) / (high - low)

    parts = [_text(_LEFT, 22, "One expert of Mixtral's size (4096 x 14336, bf16); bands are p10 to p90", "start")]
    for power in range(low, high + 1):
        parts.append(_line(_LEFT, y(10.0**power), _WIDTH - _RIGHT, y(10.0**power)))
        parts.append(_text(_LEFT - 8, y(10.0**power) + 4, f"{10.0**power:g} ms", "end"))
    for power in range(int(math.log2(most_rows)) + 1):
        parts.append(_line(x(2**power), _TOP, x(2**power), _HEIGHT - _BOTTOM))
        parts.append(_text(x(2**power), _HEIGHT - _BOTTOM + 18, str(2**power), "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, "rows", "middle"))
    for number, (case, line) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        band = [(x(p[0]), y(p[3])) for p in line] + [(x(p[0]), y(p[2])) for p in reversed(line)]
        middle = [(x(p[0]), y(p[1])) for p in line]
        parts.append(f'<polygon points="{_points(band)}" fill="{colour}" opacity="0.2"/>')
        parts.append(f'<polyline points="{_points(middle)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        height = _TOP + 20 + 22 * number
        parts.append(_line(_WIDTH - _RIGHT + 12, height - 4, _WIDTH - _RIGHT + 32, height - 4, colour))
        parts.append(_text(_WIDTH - _RIGHT + 38, height, _label(case), "start"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>', *parts, "</svg>\n"])


def _label(case: str) -> str:
    if case == "torch":
        return "PyTorch, all threads"
    count = case.removeprefix("threads")
    return f"ours, {count} thread{'' if count == '1' else 's'}"


def _points(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#ddd") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" text-anchor="{anchor}">{text}</text>'


if __name__ == "__main__":
    main()
