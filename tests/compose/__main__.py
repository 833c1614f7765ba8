"""`python -m tests.compose`: runs every phase, prints its duration, and prints the logs if one fails."""

import sys
import time
import traceback
from collections.abc import Callable

from tests.compose import any_job, bad_setups, by_name, images
from tests.compose.load import MAX_SLOTS
from tests.compose.losses import Losses
from tests.compose.phases import COSTS_FILE, Phases
from tests.compose.stack import ComposeError, Stack, attempt

PROJECT = "fiddler-compose-test"
_SETTINGS = {
    # tokens are compared with transformers', which are exact only in float32
    "FIDDLER_CPU_DTYPE": "float32",
    "FIDDLER_GPU_DTYPE": "float32",
    # some experts resident, some remote, and prefetching, so that every route and every panel has data
    "FIDDLER_GPU_GPU_EXPERT_MEMORY": "0.004",
    "FIDDLER_GPU_PREFETCH": "on",
    "FIDDLER_GPU_COSTS": COSTS_FILE,
    "FIDDLER_GPU_MAX_SLOTS": str(MAX_SLOTS),
}


def main() -> int:
    """Returns the exit status: 1 if a phase failed, 2 without Docker."""
    needs = attempt("docker", "compose", "version")
    if needs.returncode or attempt("docker", "info").returncode:
        print("compose-test: needs a running Docker engine with Compose v2", file=sys.stderr)
        return 2
    began = time.monotonic()
    stack = Stack(PROJECT, **_SETTINGS)
    phases = Phases(stack)
    losses = Losses(phases)
    stack.down("--volumes")  # left by a test that was killed
    steps: list[Callable[[], str | None]] = [
        *(phases.build, images.check_all, phases.rules, phases.start, phases.costs, phases.processes),
        *(phases.idle_panels, phases.generate, phases.http, phases.load, phases.exported),
        *(losses.all_remote, losses.kill, losses.stopped, losses.down, any_job.answered, by_name.served_by_name),
        bad_setups.check_all,
    ]
    try:
        for step in steps:
            _run(step)
    except Exception as error:
        print(f"compose-test: {error}" if isinstance(error, ComposeError) else traceback.format_exc(), file=sys.stderr)
        print(stack.attempt("ps", "--all").stdout, stack.attempt("logs", "--no-color", "--tail", "60").stdout)
        return 1
    finally:
        stack.down("--volumes")
    print(f"compose-test: passed in {time.monotonic() - began:.0f} s")
    return 0


def _run(step: Callable[[], str | None]) -> None:
    name = f"{step.__module__.rpartition('.')[2]}.{step.__name__}"
    began = time.monotonic()
    print(f"compose-test: {name} ...", end=" ", flush=True)
    try:
        result = step()
    except BaseException:
        print(f"FAILED after {time.monotonic() - began:.1f} s", flush=True)
        raise
    print(f"{time.monotonic() - began:.1f} s{f' ({result})' if result else ''}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
