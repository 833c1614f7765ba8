"""`python -m benchmarks.routing.plot`: docs/routing.svg and docs/top.svg from benchmarks/results/routing.jsonl.

docs/routing.svg has a panel for each layer, with a row for each expert and a column for each sample. docs/top.svg shows
the terminal.
"""

import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pydantic import TypeAdapter
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from benchmarks.harness.plots import svg
from client.metrics.snapshot import ROUTES, Layer, Snapshot
from client.top import heat
from client.top.view import View
from tools.command_line import run

RESULTS = Path(__file__).parents[1] / "results" / "routing.jsonl"
DOCS = Path(__file__).parents[2] / "docs"
_WIDTH, _HEIGHT = 9.0, 8.2
"""Inches."""
_POINTS_PER_INCH = 72
_MAP = colormaps["inferno"].resampled(16)
_HEAT = [to_hex(_MAP(level)) for level in range(_MAP.N)]
_ROUTE_COLOURS = {"resident": "#2ca02c", "streamed": "#bcbd22", "remote": "#1f77b4"}
_RESIDENT_COLOUR = "#00e5ff"
_TERMINAL_COLUMNS = 110

Stroke = tuple[float, float, int]
"""From and to which second, in which row."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Run:
    """What was recorded.

    Attributes:
        samples: Seconds since the load began, and the snapshot taken then.
        topics: Each with the seconds at which it began, ascending.
        view: What the terminal shows.
    """

    samples: list[tuple[float, Snapshot]]
    topics: list[tuple[float, str]]
    view: Snapshot


def main() -> None:
    """Draws both pictures."""
    recorded = read(RESULTS.read_text())
    (DOCS / "routing.svg").write_text(draw(recorded))
    (DOCS / "top.svg").write_text(draw_terminal(recorded.view))


def read(text: str) -> Run:
    """Reads a run from the lines of a results file."""
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in text.splitlines():
        result = json.loads(line)
        results[result["name"]].append(result)
    snapshot = TypeAdapter(Snapshot).validate_python
    return Run(
        [(result["seconds"], snapshot(result)) for result in results["routing.sample"]],
        sorted((result["seconds"], result["topic"]) for result in results["routing.topic"]),
        snapshot(results["routing.view"][0]),
    )


def draw_terminal(view: Snapshot) -> str:
    """The terminal's picture, without the fonts that rich would have the browser fetch."""
    # a fixed size, so that the picture does not depend on the terminal that it is drawn in
    console = Console(
        record=True, file=io.StringIO(), width=_TERMINAL_COLUMNS, force_terminal=True, color_system="truecolor"
    )
    console.print(View(view, half_life_seconds=30))
    code_format = re.sub(r"@font-face \{\{.*?\}\}\n\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    picture = console.export_svg(title="python -m client.top", code_format=code_format, unique_id="top")
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


def draw(recorded: Run) -> str:
    """The heat map over time as SVG."""
    return svg(lambda: _figure(recorded))


def _figure(recorded: Run) -> Figure:
    # samples from before and after the load have nothing to show
    samples = [(end, snapshot) for end, snapshot in recorded.samples if snapshot.routes and snapshot.window_seconds]
    snapshots = [snapshot for _, snapshot in samples]
    edges = [samples[0][0] - (snapshots[0].window_seconds or 0.0), *(end for end, _ in samples)]
    layers = [[snapshot.layers[index] for snapshot in snapshots] for index in range(len(snapshots[0].layers))]
    hottest = heat.scale([heat.shares(layer.selections) for snapshot in snapshots for layer in snapshot.layers])
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    figure.suptitle("Experts of models/demo chosen by the tokens of each second, while the topic changes")
    figure.subplots_adjust(left=0.09, right=0.83, top=0.9, bottom=0.07, hspace=0.25)
    panels = figure.subplots(len(layers) + 1, sharex=True)
    for axes, layer in zip(panels, layers, strict=False):
        _draw_layer(axes, edges, layer, hottest)
    _draw_routes(panels[-1], edges, [snapshot.routes or {} for snapshot in snapshots])
    _draw_topics(panels, edges, recorded.topics)
    _draw_legends(panels, hottest, sum(layer[-1].num_resident or 0 for layer in layers))
    return figure


def _draw_layer(axes: Axes, edges: Sequence[float], samples: Sequence[Layer], hottest: float) -> None:
    """A row for each expert: its colour in each sample, and a line through those in which it was resident."""
    shares = [heat.shares(sample.selections) or [] for sample in samples]
    num_experts = len(shares[0])
    axes.set_title(f"layer {samples[0].layer}", pad=3)
    axes.set_ylim(num_experts - 0.5, -0.5)
    axes.set_yticks(range(num_experts), [f"expert {expert}" for expert in range(num_experts)], fontsize=6.5)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_facecolor(_HEAT[0])
    axes.grid(False)
    strokes: dict[int, list[Stroke]] = defaultdict(list)
    resident: list[Stroke] = []
    for expert in range(num_experts):
        levels = [min(int(row[expert] / hottest * len(_HEAT)), len(_HEAT) - 1) for row in shares]
        for level, begin, end in _runs(edges, levels):
            strokes[level].append((begin, end, expert))
        flags = [expert in (sample.resident or ()) for sample in samples]
        resident += [(begin, end, expert) for flag, begin, end in _runs(edges, flags) if flag]
    height = axes.get_position().height * _HEIGHT * _POINTS_PER_INCH / num_experts
    for level in sorted(strokes.keys() - {0}):
        # a little higher than a row, so that nothing shines through between neighbours
        _draw_strokes(axes, strokes[level], color=_HEAT[level], linewidth=height + 0.5)
    _draw_strokes(axes, resident, color=_RESIDENT_COLOUR, linewidth=1.5)


def _runs(edges: Sequence[float], values: Sequence[Value]) -> Iterator[tuple[Value, float, float]]:
    """Samples that follow each other with the same value: the value, where they begin, where they end."""
    for value, run_of_it in groupby(zip(values, pairwise(edges), strict=True), key=lambda sample: sample[0]):
        spans = [span for _, span in run_of_it]
        yield value, spans[0][0], spans[-1][1]


def _draw_strokes(axes: Axes, strokes: Sequence[Stroke], *, color: str, linewidth: float) -> None:
    """Horizontal strokes as one line with gaps, which takes a tenth of the bytes of as many rectangles."""
    x = [value for begin, end, _ in strokes for value in (begin, end, math.nan)]
    y = [value for _, _, row in strokes for value in (row, row, math.nan)]
    axes.plot(x, y, color=color, linewidth=linewidth, solid_capstyle="butt")


def _draw_routes(axes: Axes, edges: Sequence[float], samples: Sequence[dict[str, float]]) -> None:
    """Shares of all selections by route, stacked."""
    shares = [[100 * sample.get(route, 0.0) for sample in [*samples, samples[-1]]] for route in ROUTES]
    colours = [_ROUTE_COLOURS[route] for route in ROUTES]
    axes.stackplot(edges, *shares, labels=ROUTES, colors=colours, step="post")
    axes.set_title("where all layers' experts were computed", pad=3)
    axes.set_ylabel("selections (%)")
    axes.set_ylim(0, 100)
    axes.set_xlabel("time since the load began (s)")
    axes.grid(False)


def _draw_topics(panels: Sequence[Axes], edges: Sequence[float], topics: Sequence[tuple[float, str]]) -> None:
    begins = [max(seconds, edges[0]) for seconds, _ in topics]
    for begin, end, (_, topic) in zip(begins, [*begins[1:], edges[-1]], topics, strict=True):
        panels[0].annotate(
            f"topic: {topic}",
            ((begin + end) / 2, 1),
            (0, 18),
            panels[0].get_xaxis_transform(),
            "offset points",
            ha="center",
        )
    for axes in panels:
        for seconds in begins[1:]:
            # light on what is dark, and the other way round
            axes.axvline(seconds, color="white", linewidth=2.5)
            axes.axvline(seconds, color="#d62728", linewidth=1.2, linestyle=(0, (5, 3)))


def _draw_legends(panels: Sequence[Axes], hottest: float, num_slots: int) -> None:
    first, second, *_, last = panels
    colours = ScalarMappable(BoundaryNorm(np.linspace(0, hottest, len(_HEAT) + 1).tolist(), len(_HEAT)), _MAP)
    bar = first.inset_axes((1.03, 0, 0.02, 1))
    Colorbar(bar, colours, ticks=range(int(hottest) + 1), format="{x:g}")
    bar.minorticks_off()
    bar.set_ylabel("selections over\nthe even share", fontsize="small")
    line = Line2D([], [], color=_RESIDENT_COLOUR, linewidth=1.5)
    second.legend([line], [f"resident on the\nGPU ({num_slots} slots)"], loc="upper left", bbox_to_anchor=(1, 1))
    last.legend(loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)


if __name__ == "__main__":
    run(main, __doc__)
