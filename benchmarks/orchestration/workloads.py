"""The requests to the simulated server: prompts and tokens whose experts come from a trace.

Every workload begins with a request that warms caches up and is not counted. The popularity that strategies start with
is counted on other generations of the trace's first topic.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice

import numpy as np

from benchmarks.orchestration.batches import Batch
from benchmarks.orchestration.models import Model
from benchmarks.traces import RECORDED, Generation, Ids, Trace, synthetic
from gpu_service.placement.popularity import Popularity

PROMPT_TOKENS = 512
STEPS = 32
"""Decode steps of a generation."""
_TOPICS = ("first", "second")
_PROFILED = 2
"""Generations of the first topic that popularity is counted on. No request uses them."""
_GENERATIONS = _PROFILED + 16
"""Of each topic, for sixteen beams and two prompts of 4096 rows."""


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt, and decode steps that each compute one token for all rows."""

    prompt: Batch
    steps: tuple[Batch, ...]


@dataclass(frozen=True)
class Workload:
    """A named list of requests. The first is the warm-up."""

    name: str
    title: str
    requests: Callable[[Trace], list[Request]]
    with_policies: bool = False
    """Whether the placement policies are compared with it."""

    @property
    def is_prompt(self) -> bool:
        """Whether only prompts are computed."""
        return self.name.startswith("prefill")


def workloads(quick: bool) -> list[Workload]:
    """All workloads, or three that take little time."""
    prompts = [512] if quick else [512, 1024, 2048, 4096]
    beams = [4] if quick else [4, 8, 16]
    return [
        Workload("decode", "decode, one row", lambda trace: _decode(trace, _TOPICS[:1], each=3), not quick),
        *([] if quick else [_SHIFT]),
        *(_prefill(rows) for rows in prompts),
        *(_beams(rows) for rows in beams),
    ]


def popularity(trace: Trace) -> Popularity:
    """The popularity, counted on the generations of the first topic that no request uses."""
    profiled = [part for one in _of(trace, 0)[:_PROFILED] for part in (one.prompt, one.output)]
    ids = np.concatenate(profiled, axis=1)
    counts = tuple(
        tuple(np.bincount(layer.reshape(-1), minlength=experts).tolist())
        for layer, experts in zip(ids, trace.num_experts, strict=True)
    )
    return Popularity(ids.shape[1], counts)


@cache
def trace_of(model: Model, seed: int) -> Trace:
    """A model's trace: the recorded one, or one drawn for its shape."""
    if model.routing == "recorded":
        return Trace.load(RECORDED)
    distributions = {"mixtral": synthetic.MIXTRAL, "fine_grained": synthetic.FINE_GRAINED}[model.routing]
    routing = replace(distributions, num_layers=model.moe_layers, num_experts=model.experts, top_k=model.top_k)
    return synthetic.generate(
        routing,
        _TOPICS,
        num_generations=_GENERATIONS,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=STEPS,
        seed=seed,
    )


def _decode(trace: Trace, topics: tuple[str, ...], each: int) -> list[Request]:
    return [one for topic, _ in enumerate(topics) for one in islice(_generations(trace, topic, 1), each)]


_SHIFT = Workload(
    "decode_shift", "decode, the topic shifts", lambda trace: _decode(trace, _TOPICS, each=3), with_policies=True
)


def _beams(rows: int) -> Workload:
    return Workload(
        f"beams_{rows}",
        f"decode, {rows} rows",
        lambda trace: list(islice(_generations(trace, 0, rows), 2)),
        with_policies=rows == 8,
    )


def _prefill(rows: int) -> Workload:
    return Workload(
        f"prefill_{rows}",
        f"prompt of {rows}",
        lambda trace: list(islice(_prompts(trace, rows), 3)),
        with_policies=rows == 2048,
    )


def _generations(trace: Trace, topic: int, rows: int) -> Iterator[Request]:
    """Prompts with decode steps of `rows` rows. The beams of a prompt are other generations of its topic."""
    usable = _of(trace, topic)[_PROFILED:]
    for begin in range(len(usable)):
        group = [usable[(begin + beam) % len(usable)] for beam in range(rows)]
        tokens = min(one.output.shape[1] for one in group)
        steps = [np.stack([one.output[:, token] for one in group], axis=1) for token in range(tokens)]
        yield _request(trace, group[0].prompt, steps)


def _prompts(trace: Trace, rows: int) -> Iterator[Request]:
    tokens = [part for one in _of(trace, 0)[_PROFILED:] for part in (one.prompt, one.output)]
    ids = np.concatenate(tokens, axis=1)
    for begin in range(0, ids.shape[1] - rows + 1, rows):
        yield _request(trace, ids[:, begin : begin + rows])


def _request(trace: Trace, prompt: Ids, steps: Sequence[Ids] = ()) -> Request:
    num_experts = trace.num_experts[0]
    return Request(Batch(prompt, num_experts), tuple(Batch(ids, num_experts) for ids in steps))


def _of(trace: Trace, topic: int) -> list[Generation]:
    return [one for one in trace.generations if one.topic == trace.topics[topic % len(trace.topics)]]
