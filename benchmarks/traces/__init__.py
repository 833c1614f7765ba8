"""Routing traces: which experts each token chose, step by step, recorded from a model or drawn from a distribution.

A trace has the selections only. It does not have where experts were resident or what they cost, so one trace can be
replayed with every placement and on every machine. `record.py` records one, `synthetic.py` draws others.
"""

import gzip
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FORMAT = 1
RECORDED = Path(__file__).with_name("demo.jsonl.gz")

Phase = Literal["prefill", "decode"]
Ids = npt.NDArray[np.int16]


class TraceError(Exception):
    """A file is not a trace."""


@dataclass(frozen=True, eq=False)
class Step:
    """The selections of one forward: `ids[layer][row]` are the experts that the row chose, best first."""

    phase: Phase
    topic: str
    ids: Ids
    """[layers, rows, k]"""

    @property
    def rows(self) -> int:
        """Number of tokens in the step."""
        return int(self.ids.shape[1])

    def counts(self, layer: int, num_experts: int) -> list[int]:
        """Rows by expert in one layer."""
        counts: list[int] = np.bincount(self.ids[layer].reshape(-1), minlength=num_experts).tolist()
        return counts


@dataclass(frozen=True, eq=False)
class Generation:
    """One request: the experts of its prompt's tokens, and those of its generated tokens, computed one by one."""

    topic: str
    prompt: Ids
    """[layers, prompt tokens, k]"""
    output: Ids
    """[layers, generated tokens, k]"""


@dataclass(frozen=True, eq=False)
class Trace:
    """Generations of one model in order. Generations of a topic follow each other."""

    name: str
    num_experts: tuple[int, ...]
    """Number of experts by layer."""
    top_k: int
    provenance: str
    generations: tuple[Generation, ...]

    @cached_property
    def topics(self) -> tuple[str, ...]:
        """The topics in order of appearance."""
        return tuple(dict.fromkeys(generation.topic for generation in self.generations))

    def steps(self, batch_size: int = 1) -> Iterator[Step]:
        """The steps of a server with `batch_size` requests at once: the prompts of a batch, then its decode steps."""
        for group in self._groups(batch_size):
            for generation in group:
                yield Step("prefill", generation.topic, generation.prompt)
            yield from _lockstep(group)

    def decode(self, batch_size: int = 1) -> Iterator[Step]:
        """Decode steps of `batch_size` rows, each from another generation of the same topic."""
        for group in self._groups(batch_size):
            yield from _lockstep(group)

    def prefill(self, num_rows: int) -> Iterator[Step]:
        """Prefill steps of `num_rows` rows: consecutive tokens of a topic, across generations.

        A topic with too few tokens is repeated until it fills a step. A shorter last step is dropped.
        """
        for topic, group in itertools.groupby(self.generations, key=lambda generation: generation.topic):
            tokens = np.concatenate([part for one in group for part in (one.prompt, one.output)], axis=1)
            tokens = np.tile(tokens, (1, -(-num_rows // tokens.shape[1]), 1))
            for begin in range(0, tokens.shape[1] - num_rows + 1, num_rows):
                yield Step("prefill", topic, tokens[:, begin : begin + num_rows])

    def _groups(self, batch_size: int) -> Iterator[tuple[Generation, ...]]:
        """Generations that are served together. Those that do not fill a batch are dropped."""
        for _, group in itertools.groupby(self.generations, key=lambda generation: generation.topic):
            members = tuple(group)
            for begin in range(0, len(members) - batch_size + 1, batch_size):
                yield members[begin : begin + batch_size]

    def save(self, path: Path) -> None:
        """Writes a header line and a line for each step, gzipped. The same trace gives the same bytes."""
        header = {
            "format": FORMAT,
            "name": self.name,
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "provenance": self.provenance,
        }
        lines = itertools.chain([header], self._lines())
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        path.write_bytes(gzip.compress(text.encode(), mtime=0))

    def _lines(self) -> Iterator[dict[str, Any]]:
        for number, generation in enumerate(self.generations):
            common = {"generation": number, "topic": generation.topic}
            yield {**common, "phase": "prefill", "ids": generation.prompt.tolist()}
            for token in range(generation.output.shape[1]):
                yield {**common, "phase": "decode", "ids": generation.output[:, token : token + 1].tolist()}

    @classmethod
    def load(cls, path: Path = RECORDED) -> "Trace":
        """Reads a file that `save` wrote.

        Raises:
            TraceError: The file is not a trace of this format.
        """
        try:
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()
            header, *steps = (json.loads(line) for line in lines)
            if header["format"] != FORMAT:
                raise TraceError(f"{path}: format {header['format']} is not {FORMAT}")
            generations = tuple(
                _generation(list(group)) for _, group in itertools.groupby(steps, key=lambda step: step["generation"])
            )
            return cls(header["name"], tuple(header["num_experts"]), header["top_k"], header["provenance"], generations)
        except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{path}: not a trace: {error}") from None


def _lockstep(group: Iterable[Generation]) -> Iterator[Step]:
    """Decode steps of generations that begin together, until the shortest ends."""
    group = tuple(group)
    for token in range(min(generation.output.shape[1] for generation in group)):
        ids = np.concatenate([generation.output[:, token : token + 1] for generation in group], axis=1)
        yield Step("decode", group[0].topic, ids)


def _generation(lines: list[dict[str, Any]]) -> Generation:
    prefill, *decode = (np.array(line["ids"], dtype=np.int16) for line in lines)
    return Generation(lines[0]["topic"], prefill, np.concatenate(decode, axis=1))
