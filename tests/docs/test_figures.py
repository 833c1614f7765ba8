"""Figures of README and docs/operations.md against benchmarks/results, and against each other."""

import json
import re
from collections.abc import Iterator

from tests.support.pages import ROOT, text_of

RESULTS = ROOT / "benchmarks" / "results"
CPUS = {
    "Xeon": "Intel(R) Xeon(R) Processor",
    "Xeon without AMX": "Intel(R) Xeon(R) Processor",  # its virtual machine hides the tiles, and not its name
    "EPYC": "AMD EPYC",
}
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


OPERATIONS = text_of("docs/operations.md")
_MIXTRAL_EXPERT_BYTES = 3 * 4096 * 14336 * 2
_EXPERTS_OF_TWO_LAYERS = 2 * 2


def _rows_of_operations() -> list[list[str]]:
    """Rows of its tables that name a benchmark: what, figure, machine, command."""
    rows = [line.strip("|").split("|") for line in OPERATIONS.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if "python -m benchmarks." in row[-1]]


def _shares_of_the_bound(file: str) -> list[float]:
    lines = map(json.loads, (RESULTS / f"{file}.jsonl").read_text().splitlines()[1:])
    return [line["median"] for line in lines if line["name"].endswith("fraction_of_read_bandwidth")]


def test_every_figure_of_operations_is_in_the_results_of_its_command_and_machine() -> None:
    rows = _rows_of_operations()
    assert len(rows) >= 2
    for what, figure, machine, command in rows:
        file = _file_of(command)
        assert _is_rounded(figure, _shares_of_the_bound(file)), what
        first = json.loads((RESULTS / f"{file}.jsonl").read_text().splitlines()[0])
        assert first["cpu"] == CPUS[machine], what


def test_sentences_of_operations_repeat_the_figures_of_readme() -> None:
    shown = {_file_of(command): figure for figure, _, command in reversed(_rows())}
    # "decoded 12.7 tokens/s (`python -m benchmarks.end_to_end`), which is 17.9 GB/s"
    text = " ".join(OPERATIONS.split())
    found = re.findall(r"([\d.]+) tokens/s \(`(python -m benchmarks\.\w+)`\), which is ([\d.]+) GB/s", text)
    assert found
    for rate, command, bandwidth in found:
        assert shown[_file_of(command)].startswith(f"{rate} tokens/s")
        read = float(rate) * _EXPERTS_OF_TWO_LAYERS * _MIXTRAL_EXPERT_BYTES
        assert f"{read / 1e9:.1f}" == bandwidth


def test_the_first_screen_repeats_the_figures_of_the_table() -> None:
    first = text_of("README.md").split("\n## ")[0]
    (times,) = re.findall(r"decode ([\d.]+) times as fast", " ".join(first.split()))
    figure, *_ = (figure for figure, _, command in _rows() if _file_of(command) == "end_to_end")
    assert f" {times} times transformers" in figure
