"""`python -m benchmarks.gpu --out FILE`: what one GPU does with a model that is larger than its memory, in ten minutes.

gpu.environment             versions, the card, its memory
gpu.copy.SIZE               GB/s from pinned memory to the device
gpu.tests                   the tests that use a GPU if there is one
gpu.exactness.FAMILY        largest difference of a logit from transformers' on the CPU, float32, over the largest
gpu.graphs.FAMILY           whether decode was captured as CUDA graphs, and gave the logits that it gives without them
gpu.model.STRATEGY.decode   tokens/s of one sequence
gpu.model.STRATEGY.first_N  s until the first token of a prompt of N tokens
gpu.model.STRATEGY.beams_N  steps/s of N beams
gpu.graphs.STRATEGY         the same of the large model
gpu.trace                   share of the decode time in which the device computes, copies, and both

Parts run in that order. Each writes its lines as it ends, and a run with the same --out skips the parts that are in the
file, so that a run that was cut short goes on where it stopped. Once --budget-seconds are over, no part begins. A file
of another card, or of a run that only imitated one, is refused.

The model has Mixtral-8x7B's shape and as many layers as --layers, with random weights, written to --checkpoint. Name a
directory that lasts: without one, each run writes the model again, 2.8 GB for each layer. As large a share of its
experts is resident as 24 GB hold of the whole model. STRATEGY is one of

ours            measured costs, experts that follow the load, prefetching, both sides at once
all_streamed    every expert is copied to the GPU, as DeepSpeed does
lru_streamed    the same, and those used last stay, as mixtral-offloading does
static_layers   the first layers' experts are on the GPU, the CPU computes all others, as llama.cpp does
paper           Fiddler's rule with fixed residency, and the CPU's experts first, then the GPU's

With --imitate or --device cpu everything is small, and figures mean nothing: it shows that all of it runs.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from benchmarks.gpu.parts import FAMILIES, copies, environment, exactness, tests
from benchmarks.gpu.results import OtherCardError, Results
from benchmarks.gpu.setting import LARGE, SMALL, Setting
from benchmarks.gpu.strategies import STRATEGIES, measure
from benchmarks.gpu.trace import trace
from tools.command_line import run

_BUDGET_SECONDS = 600.0


def main(
    *,
    out: Annotated[Path | None, typer.Option(help="File of the results, which a later run continues.")] = None,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="Where the dense part is computed.")] = "cuda",
    imitate: Annotated[bool, typer.Option("--imitate", help="Imitate a CUDA device on the CPU.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Directory of the model; written if it is missing.")] = None,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the model; 2.8 GB each.")] = LARGE.num_layers,
    budget_seconds: Annotated[float, typer.Option(help="After so many seconds no part begins.")] = _BUDGET_SECONDS,
) -> None:
    """Runs the parts that are not done."""
    if device == "cuda" and not imitate and not torch.cuda.is_available():
        raise typer.BadParameter("PyTorch finds no CUDA device; --imitate or --device cpu runs without one")
    with contextlib.ExitStack() as stack:
        directory = checkpoint or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fiddler-")))
        if imitate:
            from tests.support.imitated_cuda import imitated_cuda

            stack.enter_context(imitated_cuda("eager"))
        is_real = device == "cuda" and not imitate
        size = LARGE.with_layers(layers) if is_real else SMALL
        setting = Setting(
            torch.device(device, 0) if device == "cuda" else torch.device("cpu"), size, directory, is_real
        )
        if is_real:
            setting.check_disk()
        try:
            results = stack.enter_context(Results.open(out, setting.card))
        except OtherCardError as error:
            raise typer.BadParameter(f"--out {out}: {error}; name another file") from None
        _run(setting, results, time.monotonic() + budget_seconds)


def _run(setting: Setting, results: Results, deadline: float) -> None:
    parts: dict[str, Callable[[], None]] = {
        "environment": lambda: environment(setting, results),
        "copy": lambda: copies(setting, results),
        "tests": lambda: tests(setting, results),
    }
    for family in FAMILIES if setting.is_real else FAMILIES[:1]:
        parts[f"exactness.{family}"] = lambda family=family: exactness(setting, results, family)  # type: ignore[misc]
    for strategy in STRATEGIES:
        parts[f"model.{strategy}"] = lambda strategy=strategy: measure(setting, results, strategy)  # type: ignore[misc]
    parts["trace"] = lambda: trace(setting, results)
    failed = []
    for name, part in parts.items():
        if name in results.done:
            continue
        if time.monotonic() > deadline:
            print(
                f"gpu: no time was left for {name} and what follows; run it again with the same --out", file=sys.stderr
            )
            break
        began = time.monotonic()
        print(f"gpu: {name}, {max(0, deadline - began):.0f} s left", file=sys.stderr, flush=True)
        try:
            part()
        except Exception as error:  # whatever a device that was never tried may raise; the next part may work
            failed.append(name)
            results.record(f"{name}.failed", error=f"{type(error).__name__}: {error}".splitlines()[0])
        else:
            results.end(name, time.monotonic() - began)
    if failed:
        print(f"gpu: failed: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    run(main, __doc__)
