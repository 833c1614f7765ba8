"""The file of results of a run that may be cut short: a line for each figure as soon as it is known."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.results import Report

_PREFIX = "gpu."
_DONE = ".done"


class Results:
    """Adds to a report, and knows which parts an earlier run has ended."""

    def __init__(self, report: Report, done: set[str]) -> None:
        """Goes on after the parts that are done."""
        self.done = done
        self._report = report

    @classmethod
    @contextmanager
    def open(cls, file: Path | None) -> Iterator["Results"]:
        """Opens a file to add to it; None: standard output only."""
        if file is None:
            yield cls(Report(None), set())
            return
        done = _done_in(file.read_text()) if file.exists() else set()
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


def _done_in(text: str) -> set[str]:
    names = (json.loads(line)["name"] for line in text.splitlines() if line.endswith("}"))
    return {str(name).removeprefix(_PREFIX).removesuffix(_DONE) for name in names if str(name).endswith(_DONE)}
