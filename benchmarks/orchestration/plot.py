"""`python -m benchmarks.orchestration.plot`: docs/orchestration.svg and the tables of docs/orchestration.md.

Both are made from benchmarks/results/orchestration.jsonl. A table stands between two comments that name it.
"""

import math
from pathlib import Path

from benchmarks.orchestration.tables import MACHINES, MODELS, OURS, RIVALS, Cells, Result, read, tables

_RESULTS = Path(__file__).parents[1] / "results" / "orchestration.jsonl"
_DOCUMENT = Path(__file__).parents[2] / "docs" / "orchestration.md"
_PANEL_WIDTH, _PANEL_HEIGHT = 300, 150
_LEFT, _TOP, _GAP_X, _GAP_Y, _BOTTOM = 60, 70, 24, 34, 70
_LEAST_SHARE = 0.002
_COLOURS = {
    OURS: "#d62728",
    "fiddler": "#1f77b4",
    "llama_cpp": "#2ca02c",
    "mixtral_offloading": "#9467bd",
    "deepspeed": "#7f7f7f",
}
_DRAWN = ("mixtral_8x7b", "qwen3_30b_a3b", "deepseek_v2_lite")
_PREFILLS = tuple(f"prefill_{rows}" for rows in (512, 1024, 2048, 4096))
_WORKLOADS = ("decode", "decode_shift", "beams_4", "beams_8", "beams_16", *_PREFILLS)


def main() -> None:
    """Draws the plot and writes the tables."""
    cells, others = read(_RESULTS)
    _DOCUMENT.with_suffix(".svg").write_text(draw(cells))
    _DOCUMENT.write_text(fill(_DOCUMENT.read_text(), tables(cells, others)))


def fill(text: str, parts: dict[str, str]) -> str:
    """The document with what is between `<!-- NAME -->` and `<!-- end -->` replaced."""
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        if text.count(begin) != 1:
            raise ValueError(f"docs/orchestration.md: <!-- {name} --> must be there once")
        before, rest = text.split(begin)
        text = f"{before}{begin}{part}\n{end}{rest.split(end, 1)[1]}"
    return text


def draw(cells: Cells) -> str:
    """The whole picture: a panel for each model on each machine."""
    width = _LEFT + len(_DRAWN) * (_PANEL_WIDTH + _GAP_X)
    height = _TOP + len(MACHINES) * (_PANEL_HEIGHT + _GAP_Y) + _BOTTOM
    parts = [_text(_LEFT, 20, "Speed as a share of the bound, simulated; the scale is logarithmic", "start", 14)]
    for number, (strategy, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + 150 * number
        parts.append(f'<circle cx="{x + 5}" cy="40" r="4" fill="{colour}"/>')
        parts.append(_text(x + 15, 44, RIVALS.get(strategy, strategy), "start"))
    for row, (machine, machine_title) in enumerate(MACHINES.items()):
        for column, model in enumerate(_DRAWN):
            left = _LEFT + column * (_PANEL_WIDTH + _GAP_X)
            top = _TOP + row * (_PANEL_HEIGHT + _GAP_Y)
            parts.append(_text(left, top - 6, f"{MODELS[model]} on {machine_title}", "start"))
            panel = {workload: cells.get((machine, model, workload), {}) for workload in _WORKLOADS}
            parts += _panel(panel, left, top, with_names=row == len(MACHINES) - 1)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>\n"])


def _panel(cells: dict[str, dict[str, Result]], left: float, top: float, with_names: bool) -> list[str]:
    def y(share: float) -> float:
        return top + _PANEL_HEIGHT * math.log10(max(share, _LEAST_SHARE)) / math.log10(_LEAST_SHARE)

    def x(workload: int) -> float:
        return left + _PANEL_WIDTH * (workload + 0.5) / len(_WORKLOADS)

    parts = []
    for share in (1, 0.1, 0.01):
        parts.append(_line(left, y(share), left + _PANEL_WIDTH, y(share)))
        parts.append(_text(left - 6, y(share) + 4, f"{share:g}", "end"))
    for number, workload in enumerate(_WORKLOADS):
        parts.append(_line(x(number), top, x(number), top + _PANEL_HEIGHT))
        if with_names:
            bottom = top + _PANEL_HEIGHT + 10
            turn = f'transform="rotate(-40 {x(number):.1f} {bottom:.1f})"'
            parts.append(_text(x(number), bottom, workload.replace("_", " "), "end", 10, turn))
    for strategy, colour in reversed(_COLOURS.items()):
        for number, workload in enumerate(_WORKLOADS):
            if strategy in cells[workload]:
                share = cells[workload][strategy]["share_of_bound"]
                parts.append(f'<circle cx="{x(number):.1f}" cy="{y(share):.1f}" r="4" fill="{colour}" opacity="0.85"/>')
    return parts


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str, size: int = 12, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" {more}>{text}</text>'


if __name__ == "__main__":
    main()
