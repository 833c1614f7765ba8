"""Beam search of one request: what transformers' generate(num_beams=...) finds without sampling, token for token.

It says which beam each row goes on with and which rows have to become copies of others; it moves no keys or values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from gpu_service.engine.request import Request
from gpu_service.sampling import logits_processors
from gpu_service.sampling.logits import rows_of
from gpu_service.sampling.outputs import FinishReason

_MINUS_INFINITY = -1.0e9
"""What transformers calls so: scores are added to it and still compared."""


@dataclass(frozen=True, slots=True)
class Fork:
    """A row that goes on with another row's beam."""

    source: int
    target: int
    start: int
    """The first position at which they differ."""


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
    """Beams."""
    token_ids: list[int]
    ends: torch.Tensor
    """Whether it is finished."""


@dataclass(slots=True)
class _Finished:
    """The finished beams, best first; empty places have a score that anything beats."""

    scores: torch.Tensor
    """[beams]"""
    is_there: torch.Tensor
    """[beams] bool"""
    hypotheses: list[Hypothesis | None] = field(default_factory=list)


class BeamSearch:
    """The beams of one request. A beam keeps to its row as long as it lives."""

    def __init__(self, request: Request, outputs: Sequence[list[int]], device: torch.device) -> None:
        """Begins the search; all rows hold the prompt.

        Args:
            request: What was asked; it has beams.
            outputs: What each row has generated: empty lists, which the search fills.
            device: Where logits come from.

        Raises:
            ValueError: A logits processor refuses its parameter.
        """
        assert request.beam is not None
        self._request = request
        self._parameters = request.beam
        self._num_beams = request.beam.num_beams
        self._end_ids = sorted(request.eos_ids | request.stop_ids)
        self._processors = logits_processors.processors(
            request.sampling, len(request.preceding), request.min_tokens, self._end_ids, device
        )
        self._outputs = outputs
        self._num_made = 0
        self._rows = list(range(self._num_beams))  # of each beam
        # all but the first begin hopeless, so that the same text is not found several times
        self._scores = torch.full((self._num_beams,), _MINUS_INFINITY)
        self._scores[0] = 0
        self._finished = _Finished(
            torch.full((self._num_beams,), _MINUS_INFINITY),
            torch.zeros(self._num_beams, dtype=torch.bool),
            [None] * self._num_beams,
        )
        self._shared = [[len(request.prompt)] * self._num_beams for _ in range(self._num_beams)]
        self.is_done = False

    def step(self, logits: torch.Tensor, rows: Sequence[int]) -> list[Fork]:
        """Continues every beam by one token, which is appended to its row's output.

        Args:
            logits: [rows, vocab] float32.
            rows: Which of them are this request's, by its own rows.

        Returns:
            The rows that go on with another row's beam. No source is a target, so that their order does not matter.
        """
        candidates = self._candidates(rows_of(logits, [rows[row] for row in self._rows]))
        self._finish(candidates)
        next_scores = candidates.logprobs + candidates.ends * _MINUS_INFINITY
        self._scores, chosen = next_scores.topk(self._num_beams)
        self._num_made += 1
        self.is_done = self._ends(candidates)
        if self.is_done:
            return []
        kept = chosen.tolist()
        forks = self._assign([candidates.parents[each] for each in kept])
        for row, candidate in zip(self._rows, kept, strict=True):
            self._outputs[row].append(candidates.token_ids[candidate])
        return forks

    def best(self) -> Hypothesis:
        """The best beam so far."""
        running, finished = self._running(0), self._finished.hypotheses[0]
        return finished if finished is not None and finished.score >= running.score else running

    def results(self) -> list[Hypothesis]:
        """The best beams, best first, as many as were asked for; before the end those that are not finished, too."""
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
        """[beams, vocab] -> the best continuations: enough for all beams to go on even where some candidates end."""
        scores = (self._scored(logits) + self._scores.to(logits.device)[:, None]).view(-1)
        if self._num_beams == 1:
            # greedy search to transformers: of several that are the largest the first, and the first end is the end
            places = scores.argmax(dim=0, keepdim=True)
            logprobs = scores[places]
        else:
            count = max(2, 1 + len(self._end_ids)) * self._num_beams
            logprobs, places = scores.topk(min(count, len(scores)))
        places = places.cpu()
        token_ids = places % logits.shape[-1]
        ends = torch.isin(token_ids, torch.tensor(self._end_ids, dtype=torch.int64))
        if self._num_made + 1 >= self._request.max_tokens:
            ends = torch.ones_like(ends)
        return _Candidates(logprobs.cpu(), (places // logits.shape[-1]).tolist(), token_ids.tolist(), ends)

    def _scored(self, logits: torch.Tensor) -> torch.Tensor:
        """[beams, vocab] logits -> log probabilities, changed as the request wants it."""
        if not self._processors:
            return logits.log_softmax(dim=-1)
        texts = [[*self._request.preceding, *self._outputs[row]] for row in self._rows]
        history = torch.tensor(texts, device=logits.device)
        if self._num_beams == 1:  # greedy search changes logits, and beam search log probabilities
            return logits_processors.apply(self._processors, history, logits).log_softmax(dim=-1)
        return logits_processors.apply(self._processors, history, logits.log_softmax(dim=-1))

    def _finish(self, candidates: _Candidates) -> None:
        """Keeps the best of those that had finished and those of the first candidates that do so now."""
        ends = candidates.ends.clone()
        ends[self._num_beams :] = False  # the others are there for beams to go on, and are not good enough
        # in every step, even where nothing ends: topk may exchange beams of one score, and does so in transformers, too
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
        last = candidates.token_ids[index]
        token_ids = (*self._outputs[self._rows[candidates.parents[index]]], last)
        reason = FinishReason.LENGTH
        if last in self._end_ids:
            reason = FinishReason.EOS if last in self._request.eos_ids else FinishReason.STOP
        return Hypothesis(token_ids, float(scores[index]), reason)

    def _ends(self, candidates: _Candidates) -> bool:
        """Whether the search is over, now that num_made tokens are made."""
        finished = self._finished
        if self._parameters.early_stopping is True and bool(finished.is_there.all()):
            return True
        if bool(candidates.ends.all()):
            return True
        length = self._num_made
        if self._parameters.early_stopping == "never" and self._parameters.length_penalty > 0:
            length = self._request.max_tokens
        best_possible = self._scores[0] / self._penalty(length)
        worst = torch.where(finished.is_there, finished.scores.min(), _MINUS_INFINITY)
        return not bool((best_possible > worst).any())

    def _assign(self, parents: list[int]) -> list[Fork]:
        """Gives each beam a row: its parent's, for one child of each; the others take rows whose beams ended.

        Args:
            parents: The beam before, for each beam.
        """
        length = len(self._request.prompt) + self._num_made - 1  # positions computed: not that of the token chosen now
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
