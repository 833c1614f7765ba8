"""The command line; what is measured is said in the package."""

from fiddler import process

process.prepare()  # as in the services: otherwise this process's OpenMP threads take the cores from theirs

import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import benchmarks.serving  # noqa: E402
from benchmarks.harness.results import report  # noqa: E402
from benchmarks.harness.targets import Judge, Target  # noqa: E402
from benchmarks.serving.load import measure_load  # noqa: E402
from benchmarks.serving.steps import measure_steps  # noqa: E402
from benchmarks.serving.workload import models  # noqa: E402

_MIXTRAL = "serving.mixtral_2_layers"

TARGETS = {
    **{
        f"{_MIXTRAL}.{case}.experts_over_floor": Target(1.3, at_least=False)
        for case in ("stream1", "streams8", "beam4", "beam16")
    },
    f"{_MIXTRAL}.streams8.over_stream1": Target(1.9),
    f"{_MIXTRAL}.short_prompt.chunks": Target(2, at_least=False),
    f"{_MIXTRAL}.streams8.overhead_over_step": Target(0.05, at_least=False),
    f"{_MIXTRAL}.sampled8.overhead_over_step": Target(0.05, at_least=False),
    "serving.demo.streams8.overhead": Target(1.0, at_least=False),
    "serving.demo.sampled8.overhead": Target(1.0, at_least=False),
    "serving.demo.beam4.overhead": Target(1.0, at_least=False),
}


def main() -> None:
    """Runs the benchmark."""
    options = ("--rounds", 3), ("--checkpoint", ""), ("--models", ""), ("--parts", "steps,load"), ("--tiny", False)
    with (
        report(benchmarks.serving.__doc__, *options) as (out, arguments),
        tempfile.TemporaryDirectory(prefix="fiddler-") as temporary,
    ):
        judge = Judge(out, TARGETS)
        wanted = arguments.models.split(",") if arguments.models else None
        for model in models(Path(arguments.checkpoint or temporary), arguments.tiny, wanted):
            if "steps" in arguments.parts.split(","):
                measure_steps(judge, model, arguments.rounds)
            if "load" in arguments.parts.split(","):
                measure_load(judge, model, arguments.rounds)
        judge.summarise()


if __name__ == "__main__":
    main()
