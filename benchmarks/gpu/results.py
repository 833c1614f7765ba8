"""The file of results of a run that may be cut short: a line for each figure as soon as it is known."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.results import Report

_PREFIX = "gpu."
_DONE = ".done"


class OtherCardError(ValueError):
    """The file holds results of something else."""


class Results:
    """Adds to a report, and knows which parts an earlier run has ended."""

    def __init__(self, report: Report, done: set[str]) -> None:
        """Goes on after the parts that are done."""
        self.done = done
        self._report = report

    @classmethod
    @contextmanager
    def open(cls, file: Path | None, card: str) -> Iterator["Results"]:
        """Opens a file to add to it; None: standard output only.

        Args:
            file: The file, which need not exist.
            card: What is measured, as the environment's line names it.

        Raises:
            OtherCardError: The file holds results of another card.
        """
        if file is None:
            yield cls(Report(None), set())
            return
        lines = _lines_of(file.read_text()) if file.exists() else []
        for line in lines:
            if line["name"] == f"{_PREFIX}environment" and line.get("card") != card:
                raise OtherCardError(f"it has results of {line.get('card', 'something else')}, and this is {card}")
        done = _done_in(lines)
        with file.open("a") as opened:
            yield cls(Report(opened), done)

    def samples(self, name: str, values: list[float], unit: str) -> None:
        """Writes the samples of one quantity; see `Report.samples`."""
        self._report.samples(_PREFIX + name, values, unit)

    def record(self, name: str, **content: Any) -> None:
        """Writes a line that is not a sample of a quantity."""
        self._report.record(_PREFIX + name, **content)

    def end(self, part: str, seconds: float) -> None:
        """Notes that a part is done."""
        self.record(part + _DONE, seconds=round(seconds, 2))
        self.done.add(part)


def _lines_of(text: str) -> list[dict[str, Any]]:
    """The lines that were written whole."""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def _done_in(lines: list[dict[str, Any]]) -> set[str]:
    names = (line["name"] for line in lines)
    return {str(name).removeprefix(_PREFIX).removesuffix(_DONE) for name in names if str(name).endswith(_DONE)}
