"""Beam search of one request: finds what transformers' generate(num_beams=...) finds without sampling, token for token.

The search decides which token each row continues with and which rows must become copies of others. It moves no keys or
values itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessor

from gpu_service.sampling import logits_processors
from gpu_service.sampling.logits import rows_of
from gpu_service.sampling.outputs import Ending, FinishReason
from gpu_service.sampling.parameters import BeamParameters

_MINUS_INFINITY = -1.0e9
"""The value that transformers uses for it: finite, so that scores added to it can still be compared."""


@dataclass(frozen=True, slots=True)
class Fork:
    """A row that continues another row's beam."""

    source: int
    target: int
    start: int
    """The first position at which the two rows differ."""


@dataclass(frozen=True, slots=True)
class BeamStep:
    """How the rows continue after one step. Both lists are empty when the search has ended."""

    forks: list[Fork] = field(default_factory=list)
    """Rows that become copies of others first. No source is a target, so their order does not matter."""
    token_ids: list[int] = field(default_factory=list)
    """[rows]: the token that each row continues with."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A beam, finished or not."""

    token_ids: tuple[int, ...]
    score: float
    reason: FinishReason | None = None
    """None while it is not finished."""


@dataclass(slots=True)
class _Candidates:
    """The best continuations of all beams, best first; the tensors are [candidates] on the CPU."""

    logprobs: torch.Tensor
    """Of the whole texts."""
    parents: list[int]
    """The beam that each one continues."""
    token_ids: list[int]
    reasons: list[FinishReason | None]
    """Why each one is finished; None if it is not."""
    ends: torch.Tensor
    """Whether each one is finished."""


@dataclass(slots=True)
class _Finished:
    """The finished beams, best first. An empty place has a score that every beam exceeds."""

    scores: torch.Tensor
    """[beams]"""
    is_there: torch.Tensor
    """[beams] bool"""
    hypotheses: list[Hypothesis | None] = field(default_factory=list)


class BeamSearch:
    """The beams of one request. A beam stays in its row for as long as it lives."""

    def __init__(
        self,
        parameters: BeamParameters,
        *,
        ending: Ending,
        preceding: Sequence[int],
        prompt_length: int,
        processors: Sequence[LogitsProcessor] = (),
    ) -> None:
        """Begins the search; all rows hold the prompt.

        Args:
            parameters: How to search.
            ending: When a beam ends.
            preceding: The tokens that every beam continues.
            prompt_length: Positions of the cache that the prompt takes in every row.
            processors: What changes log probabilities, as `logits_processors.processors` builds it.
        """
        self._parameters = parameters
        self._ending = ending
        self._preceding = list(preceding)
        self._processors = processors
        self._num_beams = parameters.num_beams
        # enough for all beams to continue even if some candidates end
        self._num_candidates = max(2, 1 + len(ending.end_ids)) * self._num_beams
        self._outputs: list[list[int]] = [[] for _ in range(self._num_beams)]  # by row
        self._num_made = 0
        self._rows = list(range(self._num_beams))  # by beam
        # all beams but the first start with a hopeless score, so that the same text is not found several times
        self._scores = torch.full((self._num_beams,), _MINUS_INFINITY)
        self._scores[0] = 0
        self._finished = _Finished(
            torch.full((self._num_beams,), _MINUS_INFINITY),
            torch.zeros(self._num_beams, dtype=torch.bool),
            [None] * self._num_beams,
        )
        self._prompt_length = prompt_length
        self._shared = [[prompt_length] * self._num_beams for _ in range(self._num_beams)]
        self.is_done = False

    def step(self, logits: torch.Tensor, rows: Sequence[int]) -> BeamStep:
        """Continues every beam by one token.

        Args:
            logits: [rows, vocab] float32.
            rows: For each row of this request, its row of the logits.
        """
        candidates = self._candidates(rows_of(logits, [rows[row] for row in self._rows]))
        self._finish(candidates)
        next_scores = candidates.logprobs + candidates.ends * _MINUS_INFINITY
        self._scores, chosen = next_scores.topk(self._num_beams)
        self._num_made += 1
        self.is_done = self._ends(candidates)
        if self.is_done:
            return BeamStep()
        kept = chosen.tolist()
        forks = self._assign([candidates.parents[each] for each in kept])
        for row, candidate in zip(self._rows, kept, strict=True):
            self._outputs[row].append(candidates.token_ids[candidate])
        return BeamStep(forks, [output[-1] for output in self._outputs])

    def best(self) -> Hypothesis:
        """The best beam so far."""
        running, finished = self._running(0), self._finished.hypotheses[0]
        return finished if finished is not None and finished.score >= running.score else running

    def results(self) -> list[Hypothesis]:
        """The best beams, best first, as many as were asked for. Before the end, unfinished beams count too."""
        found = [each for each in self._finished.hypotheses if each is not None]
        wanted = self._parameters.num_return_sequences
        if not self.is_done or len(found) < wanted:
            found += [self._running(beam) for beam in range(self._num_beams)]
            found.sort(key=lambda each: -each.score)
        return found[:wanted]

    def _running(self, beam: int) -> Hypothesis:
        score = self._scores[beam] / self._penalty(max(self._num_made, 1))
        return Hypothesis(tuple(self._outputs[self._rows[beam]]), float(score))

    def _penalty(self, num_tokens: int) -> float:
        penalty: float = num_tokens**self._parameters.length_penalty
        return penalty

    def _candidates(self, logits: torch.Tensor) -> _Candidates:
        """[beams, vocab] -> the best continuations."""
        scores = (self._scored(logits) + self._scores.to(logits.device)[:, None]).view(-1)
        if self._num_beams == 1:
            # transformers runs greedy search here: the first of equal maxima wins, and the first end ends the search
            places = scores.argmax(dim=0, keepdim=True)
            logprobs = scores[places]
        else:
            logprobs, places = scores.topk(min(self._num_candidates, len(scores)))
        places = places.cpu()
        token_ids = (places % logits.shape[-1]).tolist()
        reasons = [self._ending.reason(token_id, self._num_made + 1) for token_id in token_ids]
        return _Candidates(
            logprobs.cpu(),
            (places // logits.shape[-1]).tolist(),
            token_ids,
            reasons,
            torch.tensor([reason is not None for reason in reasons]),
        )

    def _scored(self, logits: torch.Tensor) -> torch.Tensor:
        """[beams, vocab] logits -> log probabilities, changed as the request asks."""
        if not self._processors:
            return logits.log_softmax(dim=-1)
        texts = [[*self._preceding, *self._outputs[row]] for row in self._rows]
        history = torch.tensor(texts, device=logits.device)
        if self._num_beams == 1:  # greedy search changes logits, and beam search log probabilities
            return logits_processors.apply(self._processors, history, logits).log_softmax(dim=-1)
        return logits_processors.apply(self._processors, history, logits.log_softmax(dim=-1))

    def _finish(self, candidates: _Candidates) -> None:
        """Keeps the best of the finished beams and of the first candidates that finish now."""
        ends = candidates.ends.clone()
        ends[self._num_beams :] = False  # later candidates only let beams continue; they are not good enough to finish
        # in every step, even if nothing ends: topk may swap beams of equal score, as it does in transformers
        scores = candidates.logprobs / self._penalty(self._num_made + 1)
        scores += ~ends * _MINUS_INFINITY
        finished = self._finished
        merged, places = torch.cat([finished.scores, scores]).topk(self._num_beams)
        hypotheses = list(finished.hypotheses)
        self._finished = _Finished(
            merged,
            torch.cat([finished.is_there, ends])[places],
            [
                hypotheses[place] if place < self._num_beams else self._hypothesis(candidates, ends, scores, place)
                for place in places.tolist()
            ],
        )

    def _hypothesis(
        self, candidates: _Candidates, ends: torch.Tensor, scores: torch.Tensor, place: int
    ) -> Hypothesis | None:
        index = place - self._num_beams
        if not ends[index]:
            return None
        token_ids = (*self._outputs[self._rows[candidates.parents[index]]], candidates.token_ids[index])
        return Hypothesis(token_ids, float(scores[index]), candidates.reasons[index])

    def _ends(self, candidates: _Candidates) -> bool:
        """Whether the search has ended after `_num_made` tokens."""
        finished = self._finished
        if self._parameters.early_stopping is True and bool(finished.is_there.all()):
            return True
        if bool(candidates.ends.all()):
            return True
        length = self._num_made
        if self._parameters.early_stopping == "never" and self._parameters.length_penalty > 0:
            length = self._ending.max_tokens
        best_possible = self._scores[0] / self._penalty(length)
        worst = torch.where(finished.is_there, finished.scores.min(), _MINUS_INFINITY)
        return not bool((best_possible > worst).any())

    def _assign(self, parents: list[int]) -> list[Fork]:
        """Gives each beam a row. One child of each parent keeps its row; the others take rows whose beams ended.

        Args:
            parents: For each beam, the beam that it continues.
        """
        length = self._prompt_length + self._num_made - 1  # positions computed: the token chosen now is not among them
        sources = [self._rows[parent] for parent in parents]
        free = set(self._rows) - set(sources)
        forks, rows, taken = [], [], set[int]()
        for source in sources:
            row = source
            if source in taken:
                row = max(free, key=lambda target: self._shared[source][target])
                free.remove(row)
                forks.append(Fork(source, row, self._shared[source][row]))
                self._become(source, row, length)
            taken.add(source)
            rows.append(row)
        self._rows = rows
        return forks

    def _become(self, source: int, target: int, length: int) -> None:
        self._outputs[target][:] = self._outputs[source]
        shared = self._shared
        for row in range(self._num_beams):
            if row != target:
                shared[target][row] = shared[row][target] = length if row == source else shared[source][row]
