"""`python -m benchmarks.end_to_end`: tokens per second of a real pair and of transformers, on the same weights.

end_to_end.MODEL.decode.SYSTEM            tokens per second after the first, as the caller receives them
end_to_end.MODEL.prefill_512.SYSTEM       prompt tokens per second until the first token arrives
end_to_end.MODEL.CASE.over_transformers_EXPERTS  the pair over transformers, round by round
end_to_end.mixtral_2_layers.FORMAT.CASE.pair       the same with experts in int8, fp8 or int4 (--format)
end_to_end.mixtral_2_layers.FORMAT.CASE.over_bf16  over the pair on the bf16 checkpoint, round by round

MODEL is demo (models/demo) or mixtral_2_layers: two layers of Mixtral-8x7B's shape with random weights, written to
--checkpoint, where the next run finds them, or to a temporary directory. The pair is two processes, which the client
calls over gRPC. transformers is a greedy loop over the model's forward with its own cache, in another process, without
transformers' generate; EXPERTS is its experts_implementation. All compute in bfloat16 on the CPU. A round goes through
all systems in turn, and the others wait meanwhile.
"""

import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.end_to_end import coded
from benchmarks.end_to_end.reference import Reference, Timing
from benchmarks.harness import mixtral
from benchmarks.harness.disk import check_missing
from benchmarks.harness.results import Append, Checkpoint, Out, report
from benchmarks.harness.rounds import ratios
from benchmarks.harness.targets import Judge, Target
from client import Client, GenerationChunk
from pair import Pair
from tools.command_line import run

_DEMO = Path(__file__).parents[2] / "models" / "demo"
_DTYPE = "bfloat16"
_PROMPT_TOKENS = 512
_SHORT_PROMPT_TOKENS = 16
_DECODED = 25
_CASES = (("decode", _SHORT_PROMPT_TOKENS, _DECODED), ("prefill_512", _PROMPT_TOKENS, 1))
_PAUSE_SECONDS = 0.3  # until the threads of the system that was measured last sleep
_EXPERTS = ("eager", "default")
_OURS = "pair"

TARGETS = {
    f"end_to_end.{model}.{case}.over_transformers_{experts}": Target(bound)
    for model in ("demo", "mixtral_2_layers")
    for case, bound in (("decode", 1.5), ("prefill_512", 2.5))
    for experts in _EXPERTS
}


def _known(formats: list[str] | None) -> list[str] | None:
    if unknown := set(formats or ()) - coded.FORMATS.keys():
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: known are {', '.join(coded.FORMATS)}")
    return formats


def main(
    out: Out = None,
    append: Append = False,
    rounds: Annotated[int, typer.Option(help="Rounds through all systems.")] = 7,
    checkpoint: Checkpoint = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", callback=_known, help="Compares experts in this format with bf16 instead; repeatable."
        ),
    ] = None,
) -> None:
    """Runs the benchmark."""
    sizes = {_name(each): coded.num_bytes(each) for each in formats or ()}
    check_missing(checkpoint, {mixtral.NAME: mixtral.NUM_BYTES, **sizes}, remedy=mixtral.REMEDY)
    with report(out, append) as results, tempfile.TemporaryDirectory(prefix="fiddler-") as temporary:
        judge = Judge(results, TARGETS)
        if not formats:
            _measure(judge, "demo", _DEMO, rounds=rounds)
        directory = mixtral.write((checkpoint or Path(temporary)) / mixtral.NAME)
        if formats:
            _measure_formats(judge, directory, formats, rounds=rounds)
        else:
            _measure(judge, mixtral.NAME, directory, rounds=rounds)
        judge.summarise()


def _name(format_name: str) -> str:
    return f"{mixtral.NAME}_{format_name}"


def _measure_formats(judge: Judge, plain: Path, formats: list[str], *, rounds: int) -> None:
    """Pairs on the same model in several formats, one of which computes at a time."""
    models = {"bf16": plain}
    for name in formats:
        models[name] = plain.with_name(_name(name))
        if not (models[name] / "tokenizer.json").exists():
            coded.write(plain, models[name], name)
    speeds: dict[tuple[str, str], list[float]] = defaultdict(list)
    flags = ("--dtype", _DTYPE)
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        clients: dict[str, Client] = {}
        for name, model in models.items():
            pair = Pair(model, log=log, gpu_arguments=("--device", "cpu", *flags), cpu_arguments=flags)
            stack.enter_context(pair)
            clients[name] = stack.enter_context(Client(pair.target))
        for number in range(-1, rounds):
            for case, num_prompt, num_tokens in _CASES:
                prompt = [3 + (position * 37 + number * 11) % 250 for position in range(num_prompt)]
                for name in list(clients)[:: 1 if number % 2 else -1]:
                    time.sleep(_PAUSE_SECONDS)
                    first, later = _generate(clients[name], prompt, num_tokens)
                    if number >= 0:
                        speeds[case, name].append(num_prompt / first if num_tokens == 1 else 1 / later)
    for (case, name), values in speeds.items():
        judge.samples(f"end_to_end.mixtral_2_layers.{name}.{case}.pair", values, "tokens/s")
        if name != "bf16":
            over = ratios(values, speeds[case, "bf16"])
            judge.samples(f"end_to_end.mixtral_2_layers.{name}.{case}.over_bf16", over, "ratio")


def _measure(judge: Judge, name: str, model: Path, *, rounds: int) -> None:
    speeds: dict[tuple[str, str], list[float]] = defaultdict(list)
    flags = ("--dtype", _DTYPE)
    with (
        tempfile.TemporaryFile() as log,
        Reference(model, _DTYPE) as reference,
        Pair(model, log=log, gpu_arguments=("--device", "cpu", *flags), cpu_arguments=flags) as pair,
        Client(pair.target) as client,
    ):
        for number in range(-1, rounds):
            for case, num_prompt, num_tokens in _CASES:
                # a new prompt in every round, the same for all systems
                prompt = [3 + (position * 37 + number * 11) % 250 for position in range(num_prompt)]
                for system in (_OURS, *_EXPERTS) if number % 2 else (*_EXPERTS[::-1], _OURS):
                    time.sleep(_PAUSE_SECONDS)
                    if system == _OURS:
                        first, later = _generate(client, prompt, num_tokens)
                    else:
                        experts = reference.default_experts if system == "default" else system
                        first, later = reference.generate(experts, prompt, num_tokens)
                    if number >= 0:
                        speeds[case, system].append(num_prompt / first if num_tokens == 1 else 1 / later)
        default = reference.default_experts
    _report(judge, name, speeds, default)


def _generate(client: Client, prompt: list[int], num_tokens: int) -> Timing:
    """Generates greedily with the pair; timed in the caller."""
    began = time.perf_counter()
    arrivals: list[float] = []
    with client.generate(prompt, max_tokens=num_tokens, temperature=0) as generation:
        for event in generation:
            if isinstance(event, GenerationChunk):
                arrivals += [time.perf_counter()] * len(event.token_ids)
    if len(arrivals) == 1:
        return arrivals[0] - began, 0
    # an end-of-sequence token may come early
    return arrivals[0] - began, (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)


def _report(judge: Judge, name: str, speeds: dict[tuple[str, str], list[float]], default: str) -> None:
    for (case, system), values in speeds.items():
        label = system if system == _OURS else f"transformers_{system}"
        more = {"experts_implementation": default} if system == "default" else {}
        judge.samples(f"end_to_end.{name}.{case}.{label}", values, "tokens/s", **more)
    for case in ("decode", "prefill_512"):
        for system in _EXPERTS:
            values = ratios(speeds[case, _OURS], speeds[case, system])
            judge.samples(f"end_to_end.{name}.{case}.over_transformers_{system}", values, "ratio")


if __name__ == "__main__":
    run(main, __doc__)
