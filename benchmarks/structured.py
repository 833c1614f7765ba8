"""`python -m benchmarks.structured`: what structured output costs and saves, with a pair and a schema.

structured.mask             ms to compute one mask and to apply it to a row of logits
structured.mask_of_step     the same over a decode step without a constraint
structured.forced_steps     steps with forced tokens computed together, over those with each token by itself
structured.forced_seconds   seconds of the whole output likewise
"""

import json
import os
import time
from pathlib import Path
from typing import Annotated
from urllib.request import urlopen

import torch
import typer
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.results import Append, Out, Quick, report
from client import Client, Complete, GenerationChunk
from gpu_service.api.requests.constraints import compiled, grammar_of_schema
from gpu_service.sampling.constraint import Constraint
from gpu_service.sampling.outputs import Ending
from gpu_service.text.tokenizer import Tokenizer
from pair import Pair
from tools.command_line import run

_MODEL = Path("models/demo")
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


def main(
    out: Out = None,
    append: Append = False,
    rounds: Annotated[int, typer.Option(help="Outputs of each kind.")] = 10,
    model: Annotated[Path, typer.Option(help="Directory of the checkpoint.")] = _MODEL,
    quick: Quick = False,
) -> None:
    """Runs the benchmark."""
    rounds = min(rounds, 2) if quick else rounds
    with (
        report(out, append) as results,
        open(os.devnull, "wb") as log,
        Pair(model, log=log) as pair,
        Client(pair.target) as client,
    ):
        info = client.model_info()
        plain = [_seconds_of_step(client) for _ in range(rounds)]
        masks = _mask_seconds(model, info.vocab_size, frozenset(info.eos_token_ids))
        results.samples("structured.mask", [1e3 * seconds for seconds in masks], "ms")
        results.samples("structured.mask_of_step", [mask / step for mask in masks for step in plain], "ratio")
        pairs = [
            [_output(client, pair.gpu_metrics_port, seed, each) for each in (False, True)] for seed in range(rounds)
        ]
        for place, name in enumerate(("steps", "seconds")):
            ratios = [ahead[place] / stepwise[place] for ahead, stepwise in pairs]
            results.samples(f"structured.forced_{name}", ratios, "ratio")


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


def _mask_seconds(model: Path, vocab_size: int, eos_ids: frozenset[int]) -> list[float]:
    """Of a string's characters, where most tokens are possible."""
    vocabulary = Tokenizer(model).guidance.vocabulary(vocab_size, eos_ids)
    grammar = grammar_of_schema("json_schema", json.dumps({"type": "string"}), vocabulary)
    matcher = compiled("json_schema", grammar, vocabulary)
    constraint = Constraint(matcher, ending=Ending(10**6, eos_ids=eos_ids), eos_ids=eos_ids, vocab_size=vocab_size)
    logits = torch.randn(1, vocab_size)
    seconds = []
    for number in range(_MASKS):
        started = time.perf_counter()
        allowed, _ = constraint.allowed()
        token_id = int(logits.roll(number).masked_fill(~allowed, -torch.inf).argmax())
        seconds.append(time.perf_counter() - started)
        if token_id in eos_ids or constraint.forced is not None:
            break
        constraint.add(token_id)
        if constraint.is_complete:
            break
    return seconds


if __name__ == "__main__":
    run(main, __doc__)
