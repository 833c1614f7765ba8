"""`python -m benchmarks.orchestration.plot`: docs/orchestration.svg and the tables of docs/orchestration.md.

Both are made from benchmarks/results/orchestration.jsonl. Each table is between two comments; the first names it.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.plots import svg
from benchmarks.orchestration.tables import MACHINES, MODELS, OURS, RIVALS, Cells, Result, read, tables
from tools.command_line import run

RESULTS = Path(__file__).parents[1] / "results" / "orchestration.jsonl"
DOCUMENT = Path(__file__).parents[2] / "docs" / "orchestration.md"
_LEAST_SHARE = 0.0015
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
    cells, others = read(RESULTS)
    DOCUMENT.with_suffix(".svg").write_text(draw(cells))
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), tables(cells, others)))


def fill(text: str, parts: dict[str, str]) -> str:
    """Replaces the text between `<!-- NAME -->` and `<!-- end -->` for each part.

    Raises:
        ValueError: The document does not have a name exactly once.
    """
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        if text.count(begin) != 1:
            raise ValueError(f"docs/orchestration.md must have <!-- {name} --> exactly once")
        before, rest = text.split(begin)
        text = f"{before}{begin}{part}\n{end}{rest.split(end, 1)[1]}"
    return text


def draw(cells: Cells) -> str:
    """The plot as SVG: a panel for each model on each machine."""
    return svg(lambda: _figure(cells))


def _figure(cells: Cells) -> Figure:
    figure = Figure(figsize=(10, 9), layout="constrained")
    panels = figure.subplots(len(MACHINES), len(_DRAWN), sharex=True, sharey=True, squeeze=False)
    for row, (machine, machine_title) in zip(panels, MACHINES.items(), strict=True):
        for axes, model in zip(row, _DRAWN, strict=True):
            axes.set_title(f"{MODELS[model]} on {machine_title}")
            _draw_panel(axes, [cells.get((machine, model, workload), {}) for workload in _WORKLOADS])
    first = panels[0, 0]
    first.set_xlim(-0.5, len(_WORKLOADS) - 0.5)
    first.set_yscale("log")
    first.set_ylim(_LEAST_SHARE, 1.2)
    first.yaxis.set_major_formatter("{x:g}")
    first.minorticks_off()
    for axes in panels[-1]:
        names = [workload.replace("_", " ") for workload in _WORKLOADS]
        axes.set_xticks(range(len(_WORKLOADS)), names, rotation=40, ha="right", rotation_mode="anchor")
    figure.supylabel("speed as a share of the bound (simulated, logarithmic)", fontsize="medium")
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper left", ncols=len(_COLOURS), reverse=True)
    return figure


def _draw_panel(axes: Axes, cells: Sequence[dict[str, Result]]) -> None:
    for strategy, colour in reversed(_COLOURS.items()):  # ours above the others
        shares = {place: cell[strategy]["share_of_bound"] for place, cell in enumerate(cells) if strategy in cell}
        label = RIVALS.get(strategy, strategy)
        axes.plot(list(shares), list(shares.values()), "o", color=colour, alpha=0.85, label=label)


if __name__ == "__main__":
    run(main, __doc__)
