"""`python -m benchmarks`: runs every benchmark and writes benchmarks/results/NAME.jsonl."""

import subprocess
import sys
from pathlib import Path

import typer

from tools.command_line import run

NAMES = (
    "hop",
    "startup",
    "memory",
    "kernel",
    "families",
    "large_start",
    "end_to_end",
    "orchestration",
    "loss",
    "serving",
    "overload",
    "metrics",
    "gateway",
    "structured",
)
_RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Runs them; exits with 1 if a benchmark failed."""
    _RESULTS.mkdir(exist_ok=True)
    failed = []
    for name in NAMES:
        print(f"# {name}", file=sys.stderr, flush=True)
        out = _RESULTS / f"{name}.jsonl"
        # in separate processes, so that none is affected by another's imports
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--out", str(out)]).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    run(main, __doc__)
