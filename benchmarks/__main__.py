"""`python -m benchmarks`: runs every benchmark, or those that are named, one after another.

Each writes OUT/NAME.jsonl, over what is there. All of them take about an hour on 2 cores; `python -m benchmarks.NAME
--help` says what one measures.
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from tools.command_line import run

NAMES = (
    "hop",
    "startup",
    "memory",
    "kernel",
    "attention",
    "dense",
    "families",
    "large_start",
    "convert",
    "end_to_end",
    "quality",
    "orchestration",
    "loss",
    "serving",
    "overload",
    "metrics",
    "gateway",
    "structured",
)
_RESULTS = Path(__file__).parent / "results"


def _known(names: list[str] | None) -> list[str] | None:
    for name in names or ():
        if name not in NAMES:
            raise typer.BadParameter(f"{name!r} is no benchmark; known: {', '.join(NAMES)}")
    return names


def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", callback=_known, help=f"Of {', '.join(NAMES)}.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Directory of the results.")] = _RESULTS,
) -> None:
    """Runs them; exits with 1 if a benchmark failed."""
    out.mkdir(exist_ok=True)
    failed = []
    for name in names or NAMES:
        print(f"# {name}", file=sys.stderr, flush=True)
        # in separate processes, so that none is affected by another's imports
        command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out / f"{name}.jsonl")]
        if subprocess.run(command).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    run(main, __doc__)
