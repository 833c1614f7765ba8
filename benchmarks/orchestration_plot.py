"""`python -m benchmarks.orchestration_plot`: docs/orchestration.svg from benchmarks/results/orchestration.jsonl."""

import json
import math
from collections import defaultdict
from pathlib import Path

_RESULTS = Path(__file__).parent / "results" / "orchestration.jsonl"
_PLOT = Path(__file__).parents[1] / "docs" / "orchestration.svg"
_PANEL_WIDTH, _PANEL_HEIGHT = 300, 150
_LEFT, _TOP, _GAP_X, _GAP_Y, _BOTTOM = 60, 70, 24, 34, 70
_LEAST_SHARE = 0.002
_STRATEGIES = {
    "ours": ("ours", "#d62728"),
    "fiddler": ("Fiddler's algorithm", "#1f77b4"),
    "llama_cpp": ("llama.cpp", "#2ca02c"),
    "mixtral_offloading": ("mixtral-offloading", "#9467bd"),
    "deepspeed": ("DeepSpeed", "#7f7f7f"),
}
_MACHINES = {
    "quadro_rtx_6000": "Quadro RTX 6000",
    "l4": "L4",
    "rtx_4090": "RTX 4090",
    "h200": "H200, 24 GB of it",
}
_MODELS = {
    "mixtral_8x7b": "Mixtral-8x7B",
    "qwen3_30b_a3b": "Qwen3-30B-A3B",
    "deepseek_v2_lite": "DeepSeek-V2-Lite",
}
_PREFILLS = tuple(f"prefill_{rows}" for rows in (512, 1024, 2048, 4096))
_WORKLOADS = ("decode", "decode_shift", "beams_4", "beams_8", "beams_16", *_PREFILLS)

Shares = dict[tuple[str, str], dict[str, dict[str, float]]]
"""By machine and model, by strategy, by workload: the share of the bound."""


def main() -> None:
    """Draws the plot."""
    _PLOT.write_text(draw(_read(_RESULTS)))


def _read(path: Path) -> Shares:
    shares: Shares = defaultdict(lambda: defaultdict(dict))
    for line in path.read_text().splitlines():
        result = json.loads(line)
        if "share_of_bound" in result:
            _, machine, model, workload, strategy = result["name"].split(".")
            shares[machine, model][strategy][workload] = result["share_of_bound"]
    return shares


def draw(shares: Shares) -> str:
    """The whole picture: a panel for each model on each machine."""
    width = _LEFT + len(_MODELS) * (_PANEL_WIDTH + _GAP_X)
    height = _TOP + len(_MACHINES) * (_PANEL_HEIGHT + _GAP_Y) + _BOTTOM
    parts = [_text(_LEFT, 20, "Speed as a share of the bound, simulated; the scale is logarithmic", "start", 14)]
    for number, (label, colour) in enumerate(_STRATEGIES.values()):
        x = _LEFT + 150 * number
        parts.append(f'<circle cx="{x + 5}" cy="40" r="4" fill="{colour}"/>')
        parts.append(_text(x + 15, 44, label, "start"))
    for row, (machine, machine_title) in enumerate(_MACHINES.items()):
        for column, (model, model_title) in enumerate(_MODELS.items()):
            left = _LEFT + column * (_PANEL_WIDTH + _GAP_X)
            top = _TOP + row * (_PANEL_HEIGHT + _GAP_Y)
            parts.append(_text(left, top - 6, f"{model_title} on {machine_title}", "start"))
            parts += _panel(shares[machine, model], left, top, with_names=row == len(_MACHINES) - 1)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>\n"])


def _panel(strategies: dict[str, dict[str, float]], left: float, top: float, with_names: bool) -> list[str]:
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
    for strategy, (_, colour) in reversed(_STRATEGIES.items()):
        for number, workload in enumerate(_WORKLOADS):
            if workload in strategies[strategy]:
                share = strategies[strategy][workload]
                parts.append(f'<circle cx="{x(number):.1f}" cy="{y(share):.1f}" r="4" fill="{colour}" opacity="0.85"/>')
    return parts


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str, size: int = 12, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" {more}>{text}</text>'


if __name__ == "__main__":
    main()
