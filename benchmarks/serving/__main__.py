"""`python -m benchmarks.serving`: the cost of serving several sequences at once, and the latencies that callers see.

serving.MODEL.CASE.experts               ms of a decode step from sending its rows until their sums have arrived
serving.MODEL.CASE.kernel                ms of these in which the CPU expert service computes; the rest is transport
serving.MODEL.CASE.floor                 ms to read each distinct expert of the step once
serving.MODEL.CASE.experts_over_floor    their ratio, step by step
serving.MODEL.CASE.dense                 ms of the rest of the forward, in PyTorch: attention, routers, norms, head
serving.MODEL.CASE.overhead              ms of a step without the model's forward: scheduling, sampling, beams, events
serving.MODEL.CASE.overhead_over_step    the overhead's share of the step
serving.MODEL.streams8.over_stream1      tokens per second of eight streams over those of one, through the client
serving.MODEL.short_prompt.chunks        chunks of prompts that are computed until a short prompt has its first token
                                         that arrives while a long one is computed
serving.MODEL.short_prompt_grown.chunks  the same if the long prompt was alone and its chunk grew to the whole prompt
serving.MODEL.long_prompt.CHUNKS         tokens per second of a long prompt that is alone, in usual or in grown chunks
serving.MODEL.together8.last             seconds to the last first token of eight prompts of 64 tokens sent at once
serving.MODEL.together8.last_over_alone  the same over the first token of such a prompt that is alone
serving.MODEL.together8.total            seconds until all eight have ended
serving.MODEL.together8.packed_over_apart  their steps, packed, over one prompt after the other
serving.MODEL.loadN.time_to_first_token  seconds, with N concurrent callers
serving.MODEL.loadN.inter_token          seconds between two tokens of a stream

CASE is stream1, streams8 (greedy), sampled8 (temperature and top-p), beam4 or beam16. MODEL is demo (models/demo) or
mixtral_2_layers: two layers of Mixtral-8x7B's shape with random weights, written to --checkpoint, where the next run
finds them, or to a temporary directory. The floor's bandwidth is that of reading the same weights with as many threads
as the CPU expert service has and computing nothing, before and after the steps of each case and round. For single
steps, the engine runs in this process and the experts in another. Latencies and the rates of streams are measured
through a pair of services. All compute in bfloat16 on the CPU.

--models and --parts select what is run; with --append, a long run can be made of short ones. --tiny tries the benchmark
out.
"""

from fiddler import process

process.prepare()  # as in the services; otherwise this process's OpenMP threads would occupy their cores

import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated  # noqa: E402

import typer  # noqa: E402

from benchmarks.harness import mixtral  # noqa: E402
from benchmarks.harness.disk import check_missing  # noqa: E402
from benchmarks.harness.results import Append, Checkpoint, Out, report  # noqa: E402
from benchmarks.harness.targets import Judge, Target  # noqa: E402
from benchmarks.serving.load import measure_load  # noqa: E402
from benchmarks.serving.steps import measure_steps  # noqa: E402
from benchmarks.serving.together import measure_together  # noqa: E402
from benchmarks.serving.workload import models  # noqa: E402
from tools.command_line import run  # noqa: E402

_MIXTRAL = "serving.mixtral_2_layers"

TARGETS = {
    **{
        f"{_MIXTRAL}.{case}.experts_over_floor": Target(1.3, at_least=False)
        for case in ("stream1", "streams8", "beam4", "beam16")
    },
    f"{_MIXTRAL}.streams8.over_stream1": Target(1.9),
    f"{_MIXTRAL}.together8.last_over_alone": Target(3, at_least=False),
    f"{_MIXTRAL}.together8.packed_over_apart": Target(0.5, at_least=False),
    f"{_MIXTRAL}.short_prompt.chunks": Target(2, at_least=False),
    f"{_MIXTRAL}.streams8.overhead_over_step": Target(0.05, at_least=False),
    f"{_MIXTRAL}.sampled8.overhead_over_step": Target(0.05, at_least=False),
    "serving.demo.streams8.overhead": Target(1.0, at_least=False),
    "serving.demo.sampled8.overhead": Target(1.0, at_least=False),
    "serving.demo.beam4.overhead": Target(1.0, at_least=False),
}


def main(
    out: Out = None,
    append: Append = False,
    rounds: Annotated[int, typer.Option(help="Rounds through all cases.")] = 3,
    checkpoint: Checkpoint = None,
    names: Annotated[str, typer.Option("--models", help="Names between commas. Unset: all.")] = "",
    parts: Annotated[
        str, typer.Option(help="steps, together or load, or several between commas.")
    ] = "steps,together,load",
    tiny: Annotated[bool, typer.Option("--tiny", help="Only a small model, to try the benchmark out.")] = False,
) -> None:
    """Runs the benchmark."""
    if not tiny and mixtral.NAME in (names or mixtral.NAME).split(","):
        check_missing(checkpoint, {mixtral.NAME: mixtral.NUM_BYTES}, remedy=mixtral.REMEDY)
    with report(out, append) as results, tempfile.TemporaryDirectory(prefix="fiddler-") as temporary:
        judge = Judge(results, TARGETS)
        for model in models(checkpoint or Path(temporary), tiny, names.split(",") if names else None):
            if "steps" in parts.split(","):
                measure_steps(judge, model, rounds)
            if "together" in parts.split(","):
                measure_together(judge, model, rounds)
            if "load" in parts.split(","):
                measure_load(judge, model, rounds)
        judge.summarise()


if __name__ == "__main__":
    run(main, __doc__)
