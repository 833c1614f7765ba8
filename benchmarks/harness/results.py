"""The format of results: one JSON object per line, the machine first. Options that benchmarks share."""

import json
import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Annotated, Any

import typer

Out = Annotated[Path | None, typer.Option(help="Also write the results to this file.")]
Append = Annotated[bool, typer.Option("--append", help="Add to that file, for a benchmark that is run in parts.")]
Quick = Annotated[bool, typer.Option("--quick", help="Measure less, to try the benchmark out.")]
Tier = Annotated[str | None, typer.Option(help="The native kernel's tier. Unset: the CPU's best.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Directory of the checkpoint with two layers of Mixtral's; written if it is missing, and kept."),
]
"""Options that several benchmarks have."""

Field = str | int | float
_DIGITS = 5
_ENVIRONMENT = ("ONEDNN_MAX_CPU_ISA",)  # settings of libraries that change the results


class Report:
    """Writes results to standard output, and to a file if there is one."""

    def __init__(self, file: IO[str] | None) -> None:
        """Writes the line that describes the machine."""
        self._file = file
        self._write({"name": "machine", **_machine()})

    def samples(self, name: str, values: Sequence[float], unit: str, **more: Field) -> None:
        """Writes one result, whose value is the samples' median.

        Args:
            name: BENCHMARK.CASE.QUANTITY.
            values: At least one sample.
            unit: "ms", "s", "bytes", "GB/s", ..., or "ratio".
            more: Further fields, e.g. a bound.
        """
        ordered = sorted(values)
        median = statistics.median(ordered)
        spread = {
            "median": median,
            "min": ordered[0],
            "max": ordered[-1],
            "p10": quantile(ordered, 0.1),
            "p90": quantile(ordered, 0.9),
        }
        rounded = {key: _significant(value) for key, value in spread.items()}
        self._write(
            {"name": name, "value": rounded["median"], "unit": unit, "n": len(ordered), **rounded, **more},
        )

    def record(self, name: str, **content: Any) -> None:
        """Writes a line that is not a sample of a quantity.

        Args:
            name: BENCHMARK.WHAT.
            content: The fields, of types that JSON has.
        """
        self._write({"name": name, **content})

    def _write(self, result: Mapping[str, Any]) -> None:
        line = json.dumps(result)
        print(line, flush=True)
        if self._file:
            print(line, file=self._file, flush=True)


@contextmanager
def report(out: Path | None, append: bool) -> Iterator[Report]:
    """Opens a benchmark's report.

    Args:
        out: The file to write in addition to standard output. An interrupted run leaves it unchanged.
        append: Whether to keep what the file already holds.
    """
    if out is None:
        yield Report(None)
        return
    unfinished = out.with_suffix(".partial")
    try:
        earlier = out.read_text() if append and out.exists() else ""
        with unfinished.open("w") as file:
            file.write(earlier)
            yield Report(file)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)


def _machine() -> dict[str, Field]:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        **{package: version(package) for package in ("torch", "transformers", "grpcio", "protobuf")},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def quantile(ordered: Sequence[float], share: float) -> float:
    """The sample that has this share of all samples, which must ascend, below it."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _significant(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}")
