"""`python -m benchmarks.soak`: a pair under load for a long time, with cancels, deadlines and kills.

soak.MODEL.right        requests that were read to the end and have the result that they have alone
soak.MODEL.wrong        requests with another result
soak.MODEL.hung         requests that had not ended long after their time
soak.MODEL.errors       requests that ended with an error that they should not have
soak.MODEL.refused      requests that were refused because too many waited
soak.MODEL.cancelled    requests that their callers cancelled at a random moment
soak.MODEL.expired      requests with a short deadline that they did not meet
soak.MODEL.kills        SIGKILLs of the CPU expert service, at random moments
soak.MODEL.SERVICE.memory_slope   MiB per hour of the process, after the first quarter of the run
soak.MODEL.SERVICE.peak           MiB
soak.MODEL.flat         1 if memory, descriptors and threads of both services are flat

Requests of every kind arrive at random moments, at half of the rate that callers who wait for each other reach. A
request has the same result however busy the machine is; if it is too slow for the rate, fewer requests arrive. Flat
means that the medians of the last quarter of the run are not above those of the second quarter by more than 48 MiB, 16
descriptors and 8 threads; runs of less than five minutes are not judged. The exit status is 1 if a request was wrong,
hung or failed, or the run was not flat. MODEL is demo (models/demo), in float32 on the CPU. --tiny tries the benchmark
out on a small model.
"""

from fiddler import process

process.prepare()  # as in the services

import asyncio  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated  # noqa: E402

import typer  # noqa: E402

from benchmarks.harness.results import Append, Out, Report, report  # noqa: E402
from benchmarks.soak.load import Counts, Soak  # noqa: E402
from benchmarks.soak.processes import Watch  # noqa: E402
from pair import Pair  # noqa: E402
from tests.support.pairs import DEMO, write_tiny  # noqa: E402
from tools.command_line import run  # noqa: E402

_SAMPLES = 400
_LONGEST_BETWEEN_SAMPLES_SECONDS = 5.0
_LEAST_JUDGED_SECONDS = 300.0  # sooner, memory still grows into what the load needs


def main(
    out: Out = None,
    append: Append = False,
    minutes: Annotated[float, typer.Option(help="How long requests arrive.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Of the requests and of all moments.")] = 0,
    kill_seconds: Annotated[float, typer.Option(help="The mean time between two kills.")] = 30.0,
    tiny: Annotated[bool, typer.Option("--tiny", help="Only a small model, to try the benchmark out.")] = False,
) -> None:
    """Runs the benchmark."""
    seconds = 60 * minutes
    with report(out, append) as results, tempfile.TemporaryDirectory(prefix="fiddler-") as temporary:
        name, directory = ("tiny", write_tiny(Path(temporary) / "tiny")) if tiny else ("demo", DEMO)
        flags = ("--dtype", "float32")
        gpu_arguments = ("--device", "cpu", *flags, "--max-slots", "8", "--max-context", "512")
        with (
            tempfile.TemporaryFile() as log,
            Pair(directory, log=log, gpu_arguments=gpu_arguments, cpu_arguments=flags) as pair,
            Watch(pair, min(_LONGEST_BETWEEN_SAMPLES_SECONDS, seconds / _SAMPLES)) as watch,
        ):
            soak = Soak(pair, seed=seed, kill_seconds=kill_seconds)
            counts = asyncio.run(soak.run(seconds, settle_seconds=seconds / 20))
        is_good = _report(results, f"soak.{name}", counts, watch, is_long=seconds >= _LEAST_JUDGED_SECONDS)
    if not is_good:
        raise typer.Exit(1)


def _report(results: Report, name: str, counts: Counts, watch: Watch, *, is_long: bool) -> bool:
    """Writes the results; returns whether all is well."""
    print("\n".join(counts.problems), end="\n" if counts.problems else "", file=sys.stderr)
    for what, count in counts.by_outcome.items():
        results.samples(f"{name}.{what}", [count], "requests")
    results.samples(f"{name}.kills", [counts.kills], "kills")
    grown = []
    for service, samples in watch.samples.items():
        results.samples(f"{name}.{service}.memory_slope", [samples.mib_per_hour()], "MiB/hour")
        results.samples(f"{name}.{service}.peak", [max(samples.mib, default=0.0)], "MiB")
        grown += [f"{service}: {problem}" for problem in samples.problems() if is_long]
    print("\n".join(grown), end="\n" if grown else "", file=sys.stderr)
    if is_long:
        results.samples(f"{name}.flat", [int(not grown)], "yes or no")
    return not grown and not any(counts.by_outcome[each] for each in ("wrong", "hung", "errors"))


if __name__ == "__main__":
    run(main, __doc__)
