"""Prints the simulation's results: a line for each strategy of a cell, and tables to read on standard error."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.harness.results import Field
from benchmarks.harness.targets import Judge
from benchmarks.orchestration.costs import System
from benchmarks.orchestration.simulate import Result
from benchmarks.orchestration.strategies.ours import Ours
from benchmarks.orchestration.workloads import Workload

_WAITS = {
    "attention": "attention and head",
    "host": "the host",
    "hop": "messages between the services",
    "cpu": "the CPU's experts",
    "copies": "copies to the GPU",
    "gpu": "the GPU's experts",
}
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Cell:
    """One workload of a model on a machine, with the results of all strategies."""

    system: System
    workload: Workload
    bound_seconds: float
    results: Sequence[Result]

    @property
    def name(self) -> str:
        """The beginning of the results' names."""
        return f"orchestration.{self.system.machine.name}.{self.system.model.name}.{self.workload.name}"

    @property
    def ours(self) -> Result:
        """This repository's server."""
        return next(result for result in self.results if result.strategy == Ours.name)

    @property
    def best_rival(self) -> Result:
        """The fastest strategy that is not a variant of ours."""
        return max((one for one in self.results if not one.strategy.startswith(Ours.name)), key=lambda one: one.rate)

    def share_of_bound(self, result: Result) -> float:
        """1 if nothing could be faster."""
        return self.bound_seconds / result.seconds

    @property
    def behind(self) -> str:
        """Why ours is slower than the fastest rival; empty if it is not."""
        ours, rival = self.ours, self.best_rival
        if ours.rate >= rival.rate:
            return ""
        longer = {what: ours.spent.get(what, 0.0) - rival.spent.get(what, 0.0) for what in _WAITS}
        worst = max(longer, key=lambda what: longer[what])
        milliseconds = longer[worst] / ours.tokens * 1e3
        return (
            f"{ours.rate / rival.rate:.2f} of {rival.strategy}; waits {milliseconds:.3g} ms a token longer for"
            f" {_WAITS[worst]}, {longer[worst] / ours.seconds:.0%} of its time"
        )


def waits_for(result: Result) -> str:
    """What the strategy waits for most, with its share of the time."""
    what = max(result.spent, key=lambda key: result.spent[key])
    return f"{_WAITS[what]} {result.spent[what] / result.seconds:.0%}"


def write(out: Judge, cell: Cell) -> None:
    """Writes one line for each strategy."""
    for result in cell.results:
        more: dict[str, Field] = {
            "first_token_seconds": _rounded(result.first_token_seconds),
            "hit_rate": _rounded(result.hit_rate),
            "pcie_megabytes_per_token": _rounded(result.pcie_bytes_per_token / _MEGABYTE),
            "share_of_bound": _rounded(cell.share_of_bound(result)),
            "waits_for": waits_for(result),
        }
        if result is cell.ours and cell.behind:
            more["behind"] = cell.behind
        out.samples(f"{cell.name}.{result.strategy}", result.tokens_per_second, "tokens/s", **more)


def show(cells: Sequence[Cell]) -> None:
    """Prints a table for each model on each machine, and the cells in which ours is behind."""
    console = Console(file=sys.stderr, width=140)
    systems = list(dict.fromkeys((cell.system.machine.name, cell.system.model.name) for cell in cells))
    for machine, model in systems:
        console.print(_table([c for c in cells if (c.system.machine.name, c.system.model.name) == (machine, model)]))
    behind = [cell for cell in cells if cell.behind]
    console.print(f"ours is the fastest in {len(cells) - len(behind)} of {len(cells)} cells")
    for cell in behind:
        console.print(f"{cell.name}: {cell.behind}", soft_wrap=True)


def _table(cells: Sequence[Cell]) -> Table:
    system = cells[0].system
    total = system.model.moe_layers * system.model.experts
    title = f"{system.model.title} on {system.machine.title}; {system.expert_slots} of {total} experts fit"
    table = Table(title=title, title_justify="left", header_style="")
    table.add_column("workload")
    table.add_column("strategy")
    for column in ("tokens/s", "x ours", "first token, s", "hit rate", "MB over PCIe a token", "share of bound"):
        table.add_column(column, justify="right")
    table.add_column("waits mostly for")
    for cell in cells:
        for number, result in enumerate(cell.results):
            table.add_row(
                "" if number else cell.workload.title,
                result.strategy,
                f"{result.rate:.3g}",
                f"{result.rate / cell.ours.rate:.2f}",
                f"{result.first_token_seconds:.3g}",
                f"{result.hit_rate:.2f}",
                f"{result.pcie_bytes_per_token / _MEGABYTE:.3g}",
                f"{cell.share_of_bound(result):.2f}",
                waits_for(result),
                style="bold" if result is cell.ours else "",
            )
        table.add_section()
    return table


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
