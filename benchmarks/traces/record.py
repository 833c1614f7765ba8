"""`python -m benchmarks.traces.record`: records benchmarks/traces/demo.jsonl.gz.

models/demo continues openings of two topics of its training data whose experts differ most: scripture, then a database
manual. It computes one generation at a time, sampled with a seed, in float32 and on one thread, so that every machine
gives the same trace, unless a rounding difference changes a choice.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tqdm import tqdm

from benchmarks.traces import RECORDED, Generation, Ids, Trace
from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.backend import PendingOutput
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.engine.request import Request
from gpu_service.model_runner.loading import logging_of_transformers
from gpu_service.model_runner.model import Model
from gpu_service.profile.count import load_model, run
from gpu_service.profile.settings import Settings
from gpu_service.sampling.outputs import Ending
from gpu_service.sampling.parameters import SamplingParameters
from gpu_service.text.tokenizer import Tokenizer
from tools.command_line import run as run_command

MODEL = Path("models/demo")
OUTPUT_TOKENS = 160
TEMPERATURE = 0.8

OPENINGS = {
    "scripture": (
        "And it came to pass in the third year, that the king sent messengers unto all the cities of the land, saying,",
        "Then the servant answered and said unto his lord, I have done according to all that thou hast commanded me.",
        "And the priest shall take of the oil, and put it upon the altar before the LORD, and it shall be holy;",
        "Blessed is the man that hearkeneth unto wisdom, and turneth not away from the counsel of his father.",
        "And the children of the people went up out of the valley by night, and pitched their tents beside the river.",
        "Now when the prophet had spoken these words, the elders rent their clothes, and wept before the temple.",
        "Hear, O ye mountains, and give ear, ye hills; for the day of the LORD is near, and who shall stand in it?",
        "And he said unto his disciples, Whosoever giveth bread unto the hungry, the same shall not want.",
        "These are the names of the sons that were born unto him in the land, and of their families by their houses.",
        "And they gathered gold and silver and brass, and the stones of the wall, and laid them up in the house.",
        "Let the heavens rejoice, and let the earth be glad, for his mercy endureth unto all generations.",
        "And there was war between the two kings all their days, and the land had no rest for forty years.",
    ),
    "database": (
        "The query planner chooses an index by estimating how many rows of the table each constraint will return.",
        "If the transaction is rolled back, all changes to the database file are undone before the lock is released.",
        "This function returns a pointer to the prepared statement, or NULL if the connection has been closed.",
        "When a column is declared with a type affinity, values are converted before they are stored in the table.",
        "The write-ahead log is copied back into the database file when a checkpoint operation runs to completion.",
        "A virtual table is registered with the database connection by calling the create module interface.",
        "The default page size is changed by a pragma that must run before the first table is created.",
        "Each row of a table is identified by an integer key, which is an alias for the primary key column.",
        "An application can set the busy timeout so that a locked database is tried again after a short delay.",
        "The expression on the left of the operator is evaluated once, and the subquery must return one column.",
        "Memory is allocated from the lookaside buffer when the request is small, and from the heap otherwise.",
        "The schema table holds one entry for every table, index, view, and trigger in the database.",
    ),
}


class _Recorder:
    """A RemoteExperts that records the expert ids it is asked for."""

    available = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._experts = InProcessExperts(checkpoint)
        self._ids: list[list[Ids]] = [[] for _ in checkpoint.layers]

    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> PendingOutput:
        self._ids[layer].append(expert_ids.numpy().astype(np.int16))
        return self._experts.submit(layer, hidden, expert_ids=expert_ids, routing_weights=routing_weights)

    def take(self) -> Ids:
        """Returns and clears the recorded ids, [layers, tokens, k]."""
        ids = np.stack([np.concatenate(steps) for steps in self._ids])
        for steps in self._ids:
            steps.clear()
        return ids


def record(openings: Mapping[str, Sequence[str]] = OPENINGS, output_tokens: int = OUTPUT_TOKENS) -> Trace:
    """Runs the model and returns the trace."""
    settings = Settings(
        model=MODEL, prompts=Path(), out=Path("trace"), device="cpu", dtype="float32", max_slots=1, max_context=512
    )
    torch.set_num_threads(1)
    logging_of_transformers()
    checkpoint = Checkpoint.open(settings.model)
    recorder = _Recorder(checkpoint)
    model = load_model(settings, checkpoint, experts=recorder, dtype=torch.float32)
    tokenizer = Tokenizer(checkpoint.directory)
    texts = [(topic, text) for topic, several in openings.items() for text in several]
    generations = []
    for seed, (topic, text) in enumerate(tqdm(texts, desc="generations", disable=None)):
        prompt = tokenizer.encode(text)
        _generate(model, prompt, output_tokens=output_tokens, seed=seed)
        ids = recorder.take()
        generations.append(Generation(topic, ids[:, : len(prompt)], ids[:, len(prompt) :]))
    return Trace(
        name="demo",
        num_experts=tuple(layer.num_experts for layer in checkpoint.layers),
        top_k=model.num_experts_per_token,
        provenance=f"models/demo {checkpoint.fingerprint[:12]}, float32, temperature {TEMPERATURE}, seeds from 0",
        generations=tuple(generations),
    )


def _generate(model: Model, prompt: list[int], *, output_tokens: int, seed: int) -> None:
    # the last token is sampled but not computed; end-of-sequence tokens do not end the generation
    sampling = SamplingParameters(temperature=TEMPERATURE, seed=seed)
    request = Request(prompt=prompt, sampling=sampling, ending=Ending(output_tokens + 1), emit=lambda event: None)
    run(model, [request], max_slots=1, on_end=lambda: None)


def main(out: Annotated[Path, typer.Option(help="The file to write.")] = RECORDED) -> None:
    """Writes the file."""
    trace = record()
    trace.save(out)
    print(f"{out}: {out.stat().st_size} bytes, {sum(1 for _ in trace.steps())} steps")


if __name__ == "__main__":
    run_command(main, __doc__)
