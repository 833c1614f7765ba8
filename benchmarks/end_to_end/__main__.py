"""`python -m benchmarks.end_to_end`: tokens per second of a real pair and of transformers, on the same weights.

end_to_end.MODEL.decode.SYSTEM            tokens per second after the first, as the caller receives them
end_to_end.MODEL.prefill_512.SYSTEM       prompt tokens per second until the first token arrives
end_to_end.MODEL.CASE.over_transformers_EXPERTS  the pair over transformers, round by round

MODEL is demo (models/demo) or mixtral_2_layers: two layers of Mixtral-8x7B's shape with random weights, written to
--checkpoint, where the next run finds them, or to a temporary directory. The pair is two processes, which the client
calls over gRPC. transformers is a greedy loop over the model's forward with its own cache, in another process, without
transformers' generate; EXPERTS is its experts_implementation. All compute in bfloat16 on the CPU. A round goes through
all systems in turn, and the others wait meanwhile.
"""

import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.end_to_end.reference import Reference, Timing
from benchmarks.harness.results import Append, Checkpoint, Out, report
from benchmarks.harness.rounds import ratios
from benchmarks.harness.targets import Judge, Target
from client import Client, GenerationChunk
from pair import Pair
from tests.support import checkpoints
from tests.support.large_checkpoint import write_mixtral
from tools.command_line import run

_DEMO = Path(__file__).parents[2] / "models" / "demo"
_DTYPE = "bfloat16"
_PROMPT_TOKENS = 512
_SHORT_PROMPT_TOKENS = 16
_DECODED = 25
_PAUSE_SECONDS = 0.3  # until the threads of the system that was measured last sleep
_EXPERTS = ("eager", "default")
_OURS = "pair"

TARGETS = {
    f"end_to_end.{model}.{case}.over_transformers_{experts}": Target(bound)
    for model in ("demo", "mixtral_2_layers")
    for case, bound in (("decode", 1.5), ("prefill_512", 2.5))
    for experts in _EXPERTS
}


def main(
    out: Out = None,
    append: Append = False,
    rounds: Annotated[int, typer.Option(help="Rounds through all systems.")] = 7,
    checkpoint: Checkpoint = None,
) -> None:
    """Runs the benchmark."""
    with report(out, append) as results, tempfile.TemporaryDirectory(prefix="fiddler-") as temporary:
        judge = Judge(results, TARGETS)
        _measure(judge, "demo", _DEMO, rounds=rounds)
        directory = (checkpoint or Path(temporary)) / "mixtral_2_layers"
        if not (directory / "tokenizer.json").exists():
            directory.mkdir(parents=True, exist_ok=True)
            write_mixtral(directory, hidden=4096, inner=14336, num_layers=2, num_heads=32, vocab_size=32000)
            checkpoints.write_tokenizer(directory)
        _measure(judge, "mixtral_2_layers", directory, rounds=rounds)
        judge.summarise()


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
            for case, num_prompt, num_tokens in (
                ("decode", _SHORT_PROMPT_TOKENS, _DECODED),
                ("prefill_512", _PROMPT_TOKENS, 1),
            ):
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
