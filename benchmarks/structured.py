"""`python -m benchmarks.structured`: what structured output costs and saves, with a pair and a schema.

structured.MODEL.mask             ms to compute one mask and to apply it to a row of logits
structured.MODEL.step             ms of a decode step without a constraint, as the client is told
structured.MODEL.mask_of_step     the mask over the step
structured.MODEL.forced_steps     steps with forced tokens computed together, over those with each token by itself
structured.MODEL.forced_seconds   seconds of the whole output likewise

MODEL is demo (models/demo, 3,072 tokens in its vocabulary) or mixtral_2_layers: two layers of Mixtral-8x7B's shape with
random weights, of --checkpoint or written to a temporary directory, and a vocabulary of 32,000 tokens, made from the
sources of Python's library. All compute in bfloat16 on the CPU. --quick measures demo only.
"""

from fiddler import process

process.prepare()  # as in the services; otherwise this process's OpenMP threads would occupy their cores

import json  # noqa: E402
import os  # noqa: E402
import sysconfig  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated  # noqa: E402
from urllib.request import urlopen  # noqa: E402

import torch  # noqa: E402
import typer  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from benchmarks.harness import mixtral  # noqa: E402
from benchmarks.harness.disk import check_missing  # noqa: E402
from benchmarks.harness.results import Append, Checkpoint, Out, Quick, report  # noqa: E402
from benchmarks.harness.targets import Judge, Target  # noqa: E402
from benchmarks.serving.workload import models  # noqa: E402
from client import Client, Complete, GenerationChunk, ModelInfo  # noqa: E402
from gpu_service.api.requests.constraints import compiled, grammar_of_schema  # noqa: E402
from gpu_service.sampling.constraint import Constraint  # noqa: E402
from gpu_service.sampling.outputs import Ending  # noqa: E402
from gpu_service.text.tokenizer import Tokenizer  # noqa: E402
from pair import Pair  # noqa: E402
from tests.support.checkpoints import write_tokenizer  # noqa: E402
from tests.support.pairs import DEMO  # noqa: E402
from tools.command_line import run  # noqa: E402

TARGETS = {
    "structured.mixtral_2_layers.mask_of_step": Target(0.02, at_least=False),
    "structured.mixtral_2_layers.forced_steps": Target(1.0, at_least=False),
    "structured.demo.forced_steps": Target(1.0, at_least=False),
}
_SCHEMA = {
    "type": "object",
    "properties": {
        "name_of_the_speaker": {"type": "string", "maxLength": 20},
        "age_in_years": {"type": "integer", "minimum": 0, "maximum": 120},
        "favourite_colours": {
            "type": "array",
            "items": {"enum": ["red", "green", "blue"]},
            "minItems": 2,
            "maxItems": 4,
        },
    },
    "required": ["name_of_the_speaker", "age_in_years", "favourite_colours"],
    "additionalProperties": False,
}
_PROMPT = "It was a fine morning, and the king said"
_MASKS = 200
_MIXTRAL_TOKENS = 32_000
_SOURCES = 600
"""Files of Python's library, some megabytes."""


def main(
    out: Out = None,
    append: Append = False,
    rounds: Annotated[int, typer.Option(help="Outputs of each kind and model.")] = 10,
    checkpoint: Checkpoint = None,
    quick: Quick = False,
) -> None:
    """Runs the benchmark."""
    if not quick:
        check_missing(checkpoint, {mixtral.NAME: mixtral.NUM_BYTES}, remedy=mixtral.REMEDY)
    with report(out, append) as results, tempfile.TemporaryDirectory(prefix="fiddler-") as temporary:
        judge = Judge(results, TARGETS)
        _measure(judge, "demo", DEMO, 2 if quick else rounds)
        if not quick:
            _measure(judge, mixtral.NAME, _mixtral(checkpoint or Path(temporary), Path(temporary) / "linked"), rounds)
        judge.summarise()


def _measure(judge: Judge, name: str, model: Path, rounds: int) -> None:
    with (
        open(os.devnull, "wb") as log,
        Pair(model, gpu_arguments=("--device", "cpu"), log=log) as pair,
        Client(pair.target) as client,
    ):
        steps = [_seconds_of_step(client) for _ in range(rounds)]
        masks = _mask_seconds(model, client.model_info())
        judge.samples(f"structured.{name}.mask", [1e3 * seconds for seconds in masks], "ms")
        judge.samples(f"structured.{name}.step", [1e3 * seconds for seconds in steps], "ms")
        judge.samples(f"structured.{name}.mask_of_step", [mask / step for mask in masks for step in steps], "ratio")
        pairs = [
            [_output(client, pair.gpu_metrics_port, seed, each) for each in (False, True)] for seed in range(rounds)
        ]
    for place, what in enumerate(("steps", "seconds")):
        ratios = [ahead[place] / stepwise[place] for ahead, stepwise in pairs]
        judge.samples(f"structured.{name}.forced_{what}", ratios, "ratio")


def _mixtral(checkpoint: Path, folder: Path) -> Path:
    """A folder with the checkpoint's weights, linked, and a vocabulary of Mixtral's size."""
    (model,) = models(checkpoint, tiny=False, wanted=[mixtral.NAME])
    folder.mkdir()
    for file in model.directory.iterdir():
        if not file.name.startswith("tokenizer"):
            (folder / file.name).symlink_to(file.resolve())
    write_tokenizer(folder, _MIXTRAL_TOKENS, _sources())
    return folder


def _sources() -> Iterator[str]:
    """Text of which a vocabulary is made: words, code and comments."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py"))[:_SOURCES]:
        yield path.read_text(errors="replace")


def _seconds_of_step(client: Client) -> float:
    *_, end = client.generate(_PROMPT, max_tokens=32, ignore_eos=True)
    assert isinstance(end, Complete)
    return end.decode_seconds / (end.completion_tokens - 1)


def _output(client: Client, metrics_port: int, seed: int, one_by_one: bool) -> tuple[float, float]:
    """The steps and seconds of one output."""
    before, started = _num_steps(metrics_port), time.monotonic()
    events = client.generate(
        _PROMPT, json_schema=_SCHEMA, temperature=1.0, seed=seed, logprobs=0 if one_by_one else None
    )
    text = "".join(event.text for event in events if isinstance(event, GenerationChunk))
    seconds = time.monotonic() - started
    json.loads(text)
    return _num_steps(metrics_port) - before, seconds


def _num_steps(metrics_port: int) -> float:
    with urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == "fiddler_step_seconds_count")


def _mask_seconds(model: Path, info: ModelInfo) -> list[float]:
    """Of a string's characters, where most tokens are possible."""
    eos_ids = frozenset(info.eos_token_ids)
    vocabulary = Tokenizer(model).guidance.vocabulary(info.vocab_size, eos_ids)
    grammar = grammar_of_schema("json_schema", json.dumps({"type": "string"}), vocabulary)
    matcher = compiled("json_schema", grammar, vocabulary)
    logits = torch.randn(1, info.vocab_size)
    seconds: list[float] = []
    while len(seconds) < _MASKS:
        constraint = Constraint(
            matcher, ending=Ending(10**6, eos_ids=eos_ids), eos_ids=eos_ids, vocab_size=info.vocab_size
        )
        while len(seconds) < _MASKS and not constraint.is_complete:
            if constraint.forced is not None:
                constraint.add(constraint.forced)
                continue
            started = time.perf_counter()
            allowed, _ = constraint.allowed()
            token_id = int(logits.roll(len(seconds)).masked_fill(~allowed, -torch.inf).argmax())
            seconds.append(time.perf_counter() - started)
            if token_id in eos_ids:
                break
            constraint.add(token_id)
    return seconds


if __name__ == "__main__":
    run(main, __doc__)
