"""`python -m benchmarks`: runs every benchmark and writes benchmarks/results/NAME.jsonl."""

import subprocess
import sys
from pathlib import Path

_NAMES = (
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
    "metrics",
)
_RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Returns the exit status: 1 where a benchmark failed."""
    _RESULTS.mkdir(exist_ok=True)
    failed = []
    for name in _NAMES:
        print(f"# {name}", file=sys.stderr, flush=True)
        out = _RESULTS / f"{name}.jsonl"
        # each in a process of its own, so that none sees what another imported
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--out", str(out)]).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
