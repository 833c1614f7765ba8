"""`python -m benchmarks.loss`: kills the CPU expert service at random moments during concurrent generations.

loss.generations.right      generations with the same tokens as without a loss
loss.generations.wrong      generations with other tokens
loss.generations.failed     generations that ended with an error
loss.generations.hung       generations that did not end within a minute
loss.stall.killed           s from a SIGKILL until every generation had its next token
loss.stall.undisturbed      the same from a moment at which nothing happened
loss.noticed                s from a SIGKILL until the GPU service's health reported that the experts are lost
loss.recovery               s from the moment that the restarted CPU expert service served until the GPU service used it

The model is tiny, in float32 on the CPU, where any difference in an expert changes the tokens. The service is killed at
a random moment after it was in use again, and restarted after a random time. The exit status is 1 if a generation was
not right.
"""

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness.results import Append, Out, report
from client import Client
from tests.support.losses import Generations, lose_at_random, tokens_of
from tests.support.pairs import start, write_tiny
from tools.command_line import run

_CONCURRENT = 8
_NUM_TOKENS = 200
_LONGEST_SECONDS = 1.5
_UNDISTURBED_SECONDS = 0.25  # apart


def main(
    out: Out = None,
    append: Append = False,
    kills: Annotated[int, typer.Option(help="How often the service is killed.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the prompts and the moments.")] = 0,
) -> None:
    """Runs the benchmark."""
    with report(out, append) as results, tempfile.TemporaryDirectory() as parent:
        prompts = _prompts(seed)
        with tempfile.TemporaryFile() as log, start(write_tiny(Path(parent) / "tiny"), log=log) as pair:
            with Client(pair.target) as client:
                expected = [tokens_of(client, prompt, _NUM_TOKENS) for prompt in prompts]
            with Generations(pair.target, prompts, expected) as generations:
                quiet = []
                for _ in range(kills):
                    quiet.append(time.monotonic())
                    time.sleep(_UNDISTURBED_SECONDS)
                losses = lose_at_random(pair, kills, seed=seed, longest_seconds=_LONGEST_SECONDS)
        results.samples("loss.generations.right", [generations.num_right], "generations")
        bad = {"wrong": generations.wrong, "failed": generations.failed, "hung": generations.hung}
        for name, cases in bad.items():
            results.samples(f"loss.generations.{name}", [len(cases)], "generations")
            print("\n".join(cases), end="\n" if cases else "", file=sys.stderr)
        results.samples("loss.stall.undisturbed", [generations.stall_seconds(moment) for moment in quiet], "s")
        results.samples("loss.stall.killed", [generations.stall_seconds(loss.killed_at) for loss in losses], "s")
        results.samples("loss.noticed", [loss.noticed_at - loss.killed_at for loss in losses], "s")
        results.samples("loss.recovery", [loss.recovery_seconds for loss in losses], "s")
    if any(bad.values()):
        raise typer.Exit(1)


def _prompts(seed: int) -> list[list[int]]:
    """Of different lengths, so that kills fall into prefills and decode steps of many shapes."""
    tokens = random.Random(seed)
    return [[tokens.randrange(3, 300) for _ in range(4 + 12 * index)] for index in range(_CONCURRENT)]


if __name__ == "__main__":
    run(main, __doc__)
