"""`python -m benchmarks.hop`: round trips of a decode and a prefill message, by variant, and the ratio to a raw socket.

hop.MESSAGE.VARIANT.round_trip  ms from submitting a message until its answer is unpacked
hop.MESSAGE.VARIANT.submit      ms of these until `submit` returns
hop.MESSAGE.VARIANT.over_raw    round trip over the raw socket's, in the same round
hop.MESSAGE.step.STEP           ms of each step of our own code, in one process without gRPC
"""

import statistics
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness.results import Append, Out, Report, report
from benchmarks.hop.children import Ends
from benchmarks.hop.variants import VARIANTS
from tools.command_line import run

_COUNTS = {"decode_8KiB": 150, "prefill_4MiB": 8}
_MILLISECONDS = 1e3

_Samples = dict[tuple[str, str], list[list[tuple[float, float]]]]
"""By message and variant, for each round: seconds of submit and of the round trip."""


def main(
    out: Out = None,
    append: Append = False,
    rounds: Annotated[int, typer.Option(help="Rounds through all variants.")] = 20,
) -> None:
    """Runs the benchmark."""
    with report(out, append) as results, ExitStack() as stack:
        parent = "/dev/shm" if Path("/dev/shm").is_dir() else None
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fiddler-hop-", dir=parent)))
        _prepare(directory)
        ends = [stack.enter_context(Ends(variant, directory)) for variant in VARIANTS]
        print(f"hop: {len(ends)} variants are up", file=sys.stderr)
        samples = _measure(ends, rounds)
        for message in _COUNTS:
            _report_variants(results, message, samples)
        _report_steps(results, directory)


def _prepare(directory: Path) -> None:
    from fiddler import process

    process.prepare()
    from benchmarks.hop.messages import write_checkpoint

    write_checkpoint(directory)


def _measure(ends: list[Ends], rounds: int) -> _Samples:
    samples: _Samples = defaultdict(list)
    for _ in range(rounds):
        for message, count in _COUNTS.items():
            for pair in ends:
                samples[message, pair.variant.name].append(pair.measure(message, count))
    return samples


def _report_variants(out: Report, message: str, samples: _Samples) -> None:
    raw = [_median_round_trip(part) for part in samples[message, "raw"]]
    for variant in VARIANTS:
        rounds = samples[message, variant.name]
        flat = [sample for part in rounds for sample in part]
        name = f"hop.{message}.{variant.name}"
        out.samples(f"{name}.round_trip", [_MILLISECONDS * total for _, total in flat], "ms")
        if variant.name == "raw":
            continue
        if variant.transport != "unary":
            out.samples(f"{name}.submit", [_MILLISECONDS * submit for submit, _ in flat], "ms")
        ratios = [_median_round_trip(part) / floor for part, floor in zip(rounds, raw, strict=True)]
        out.samples(f"{name}.over_raw", ratios, "ratio")


def _median_round_trip(samples: list[tuple[float, float]]) -> float:
    return statistics.median(total for _, total in samples)


def _report_steps(out: Report, directory: Path) -> None:
    from benchmarks.hop import steps

    for message in _COUNTS:
        for step, seconds in steps.measure(directory, message).items():
            out.samples(f"hop.{message}.step.{step}", [_MILLISECONDS * value for value in seconds], "ms")


if __name__ == "__main__":
    run(main, __doc__)
