"""`python -m benchmarks.kernel.plot`: draws docs/kernel_scaling.svg from benchmarks/results/kernel.jsonl."""

import json
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.harness.plots import LINE_COLOURS, svg
from tools.command_line import run

RESULTS = Path(__file__).parents[1] / "results" / "kernel.jsonl"
PLOT = Path(__file__).parents[2] / "docs" / "kernel_scaling.svg"
_PREFIX = "kernel.scaling."

Series = dict[str, list[tuple[int, float, float, float]]]
"""By case: (rows, median, p10, p90 in milliseconds), in ascending order of rows."""


def main() -> None:
    """Draws the plot."""
    PLOT.write_text(draw(read(RESULTS.read_text())))


def read(text: str) -> Series:
    """The measurements of time against rows and threads, from the lines of a results file."""
    series: Series = defaultdict(list)
    for line in text.splitlines():
        result = json.loads(line)
        if result["name"].startswith(_PREFIX):
            case, rows = result["name"].removeprefix(_PREFIX).split(".m")
            series[case].append((int(rows), result["median"], result["p10"], result["p90"]))
    return {case: sorted(points) for case, points in series.items()}


def draw(series: Series) -> str:
    """The plot as SVG. Both axes are logarithmic; bands are p10 to p90."""
    return svg(lambda: _figure(series))


def _figure(series: Series) -> Figure:
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for colour, (case, points) in zip(LINE_COLOURS, series.items(), strict=False):
        rows, median, p10, p90 = zip(*points, strict=True)
        axes.fill_between(rows, p10, p90, color=colour, alpha=0.2, linewidth=0)
        axes.plot(rows, median, color=colour, marker="o", markersize=3, label=_label(case))
    axes.set_title("One expert of Mixtral's size (4096 x 14336, bf16); bands are p10 to p90")
    axes.set_xlabel("rows")
    axes.set_xscale("log", base=2)
    axes.set_ylabel("time (ms)")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.legend()
    return figure


def _label(case: str) -> str:
    if case == "torch":
        return "PyTorch, all threads"
    count = case.removeprefix("threads")
    return f"ours, {count} thread{'' if count == '1' else 's'}"


if __name__ == "__main__":
    run(main, __doc__)
