"""README's table of figures against benchmarks/results: each is in the file of its command, from its machine."""

import json
import re
from collections.abc import Iterator

from tests.support.pages import ROOT, text_of

RESULTS = ROOT / "benchmarks" / "results"
CPUS = {"Xeon": "Intel(R) Xeon(R) Processor", "EPYC": "AMD EPYC"}
UNITS = (1, 1e2, 1e3, 1e-6)
"""What a stored number is multiplied with: a ratio in per cent, seconds in milliseconds, bytes in megabytes."""


def _rows() -> list[tuple[str, str, str]]:
    section = text_of("README.md").split("\n## How fast\n")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return [(figure.strip(), machine.strip(), command) for _, figure, machine, command in lines[1:]]


def _file_of(command: str) -> str:
    found = re.search(r"python -m benchmarks\.(\w+)", command)
    assert found, command
    formats = "_formats" if re.search(r"--(?:only-)?formats?\b", command) else ""
    return found[1] + ("_onednn_avx512" if "ONEDNN_MAX_CPU_ISA" in command else formats)


def _numbers(file: str) -> Iterator[float]:
    for line in (RESULTS / f"{file}.jsonl").read_text().splitlines()[1:]:
        yield from (value for value in json.loads(line).values() if isinstance(value, int | float))


def _is_rounded(shown: str, values: list[float]) -> bool:
    decimals = len(shown.partition(".")[2])
    return any(f"{value * unit:.{decimals}f}" == shown for value in values for unit in UNITS)


def test_every_figure_is_in_the_results_of_its_command() -> None:
    rows = _rows()
    assert len(rows) > 10
    for figure, _, command in rows:
        values = list(_numbers(_file_of(command)))
        # counts of rows name a case; they are no figures
        figures = re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"\b\d+ rows?\b", "", figure))
        assert figures, figure
        assert [shown for shown in figures if not _is_rounded(shown, values)] == [], (figure, _file_of(command))


def test_every_figure_names_the_machine_that_its_results_are_from() -> None:
    for figure, machine, command in _rows():
        first = json.loads((RESULTS / f"{_file_of(command)}.jsonl").read_text().splitlines()[0])
        assert first["cpu"] == CPUS[machine], figure
