"""One step of the engine: computes a batch and gives every request its part of the result.

Everything here runs in the engine's thread. A failure in the part of a single request, its sampler, its beams or its
stop texts, fails that request and no other.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import structlog
import torch

from fiddler import logs
from gpu_service.engine import prompt_reports, request_metrics
from gpu_service.engine.batches.batch import Batch, OnStep
from gpu_service.engine.events import Best, Failed, Token
from gpu_service.engine.generation import Answer, Generation
from gpu_service.engine.preparation import prepare
from gpu_service.engine.request import Request
from gpu_service.engine.request_ids import RequestIds
from gpu_service.engine.scheduler import Scheduler
from gpu_service.errors import (
    CallError,
    ExpertServiceError,
    NeverFitsError,
    NonFiniteError,
    OverloadedError,
    QueueFullError,
    panics_as_errors,
)
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.model_runner.threads import as_few_as_pay
from gpu_service.sampling.beam_search import BeamSearch
from gpu_service.sampling.logits import non_finite_rows, rows_of
from gpu_service.sampling.outputs import FinishReason, TokenLogprobs
from gpu_service.sampling.sampler import NON_FINITE, Sampler, choose

_log = structlog.get_logger(__name__)


class Stepper:
    """Computes batches and reports the results to requests."""

    def __init__(
        self, model: Model, scheduler: Scheduler, *, ids: RequestIds, on_failure: Callable[[Exception], None]
    ) -> None:
        """Starts without requests.

        Args:
            model: Computes logits.
            scheduler: Decides what is computed next.
            ids: The ids of requests under way; requests that end are removed.
            on_failure: Called with the exception that failed a whole step.
        """
        self._model = model
        self._scheduler = scheduler
        self._ids = ids
        self._on_failure = on_failure
        self.on_step: OnStep = lambda batch, began_at, seconds: None
        self._answers: dict[Request, Answer] = {}
        self._reason: Exception | None = None

    def add(self, answer: Answer) -> None:
        """Starts a request, or fails it."""
        request = answer.request
        if self._reason:
            self._ids.end(request)
            request.emit(Failed(self._reason))
            return
        self._answers[request] = answer
        with self._isolated(answer):
            prepare(answer, self._model)
        try:
            if request in self._answers:
                self._scheduler.add(answer)
        except (QueueFullError, NeverFitsError) as error:
            self._fail(answer, error)

    def cancel(self, request: Request, reason: FinishReason) -> None:
        """Ends a request, if it has not ended."""
        if (answer := self._answers.get(request)) is None:
            return
        if answer.search:
            with self._isolated(answer):
                self._finish_search(answer, answer.search, reason)
            return
        ends = [each.finished(reason) for each in answer.generations if not each.is_finished]
        self._scheduler.remove(answer)
        self._forget(answer)
        for end in ends:
            request.emit(end)

    def fail_all(self, error: Exception) -> None:
        """Fails every request, and those that are added later."""
        self._reason = error
        for answer in list(self._answers.values()):
            self._forget(answer)
            answer.request.emit(Failed(error))

    def step(self) -> bool:
        """Computes one batch. Returns False if there was nothing to compute."""
        self._end_dropped()
        if (batch := self._scheduler.next_batch()) is None:
            return False
        with logs.about_requests(answer.request.request_id for answer in batch.answers):
            self._compute(batch)
        self._end_dropped()
        return True

    def _end_dropped(self) -> None:
        """Ends the requests that waited too long."""
        while dropped := self._scheduler.waiting.take_dropped():
            for answer in dropped:
                deadline = answer.request.deadline
                if deadline is not None and time.monotonic() >= deadline:
                    self.cancel(answer.request, FinishReason.DEADLINE)
                else:
                    self._fail(answer, OverloadedError("it waited so long that it could not be computed in its time"))

    def _compute(self, batch: Batch) -> None:
        try:
            with panics_as_errors():
                logits = self._forward(batch)
        except Exception as error:
            self._fail_step(batch, error)
            return
        self._scheduler.commit(batch)
        with as_few_as_pay(logits.numel()):
            self._advance(batch, logits)

    def _forward(self, batch: Batch) -> torch.Tensor:
        now = time.monotonic()
        for generation in batch.generations:
            generation.answer.started_at = generation.answer.started_at or now
        logits = self._model.compute(batch.spans)
        seconds = time.monotonic() - now
        request_metrics.observe_step(batch, seconds)
        self.on_step(batch, now, seconds)
        return logits

    def _advance(self, batch: Batch, logits: torch.Tensor) -> None:
        """Advances every generation by its rows of the [rows, vocab] logits."""
        # asking the device is a wait; where every row is sampled, the answer comes with the tokens
        is_told_later = all(part.is_sampled for part in batch.parts if part.span.num_logits)
        self._fail_non_finite(batch, [] if is_told_later else non_finite_rows(logits))
        rows: dict[Generation, int] = {}
        for part, own in zip(batch.parts, batch.logit_rows, strict=True):
            if not part.is_prompt:
                rows[part.generation] = own.start
                continue
            if part.span.logits is Logits.ALL and not part.generation.is_finished:
                with self._isolated(part.generation.answer):
                    prompt_reports.collect_logprobs(part, logits[own])
            prompt_reports.report_progress(part)
            if part.ends_prompt and part.span.num_logits:  # none if it had been computed before
                rows |= dict.fromkeys(part.generation.answer.generations, own.stop - 1)
        # of a generation that is behind, the next token is known
        rows = {each: row for each, row in rows.items() if not (each.is_finished or each.is_behind)}
        sampled = [each for each in rows if each.answer.search is None]
        if sampled:
            self._sample(sampled, rows_of(logits, [rows[each] for each in sampled]))
        if len(sampled) < len(rows):
            self._search_all(rows, logits)

    def _fail_non_finite(self, batch: Batch, found: Sequence[int]) -> None:
        """Fails the requests whose logits were found not to be finite, or whose experts' sums are not."""
        parts = {*batch.parts_of(found), *self._model.take_non_finite()}
        for answer in dict.fromkeys(batch.parts[number].generation.answer for number in sorted(parts)):
            self._fail(answer, NonFiniteError(NON_FINITE), non_finite=True)

    def _sample(self, generations: Sequence[Generation], logits: torch.Tensor) -> None:
        """Gives each generation the token that its sampler chooses from its row of logits."""
        outcomes = choose(
            logits,
            [cast("Sampler", generation.sampler) for generation in generations],  # none is a beam
            [generation.output for generation in generations],
            num_top=[generation.request.logprobs for generation in generations],
        )
        for generation, outcome in zip(generations, outcomes, strict=True):
            if not generation.is_finished:  # else another generation of its request has just failed it
                self._deliver(generation, outcome)

    def _deliver(self, generation: Generation, outcome: TokenLogprobs | Exception) -> None:
        with self._isolated(generation.answer):
            if isinstance(outcome, Exception):
                raise outcome
            self._add(generation, outcome)
            # log probabilities of tokens that were not computed yet are not known, so they come one by one
            while (token_id := self._forced(generation)) is not None:
                self._add(generation, TokenLogprobs(token_id, None))

    def _forced(self, generation: Generation) -> int | None:
        """The token that must come next, if it need not be computed before it is told."""
        if generation.is_finished or generation.constraint is None or generation.request.logprobs is not None:
            return None
        return generation.constraint.forced

    def _add(self, generation: Generation, token: TokenLogprobs) -> None:
        """Gives a generation a token, and ends it if the token does."""
        request = generation.request
        generation.output.append(token.token_id)
        stop = generation.matcher.add(token.token_id) if generation.matcher else None
        self._observe(generation)
        request.emit(Token(generation.index, token.token_id, None if request.logprobs is None else token))
        reason = request.ending.reason(token.token_id, len(generation.output)) if stop is None else FinishReason.STOP
        if generation.constraint is not None and reason in (None, FinishReason.LENGTH):
            generation.constraint.add(token.token_id)
            if generation.constraint.is_complete:
                reason = FinishReason.STOP
        if reason:
            self._finish(generation, reason, stop)

    def _search_all(self, rows: Mapping[Generation, int], logits: torch.Tensor) -> None:
        """Continues the beams among generations with their rows of the logits, request by request."""
        for answer in dict.fromkeys(generation.answer for generation in rows):
            if answer.search is not None and not answer.is_finished:
                self._search(answer, answer.search, logits, [rows[each] for each in answer.generations])

    def _search(self, answer: Answer, search: BeamSearch, logits: torch.Tensor, rows: list[int]) -> None:
        beam, beams = answer.request.beam, answer.generations
        with self._isolated(answer):
            step = search.step(logits, rows)
            for fork in step.forks:
                source, target = beams[fork.source], beams[fork.target]
                self._scheduler.fork(source, target, fork.start)
                target.output[:] = source.output
            for generation, token_id in zip(beams, step.token_ids, strict=False):  # no tokens if the search has ended
                generation.output.append(token_id)
            self._observe(beams[0])
            if search.is_done:
                self._finish_search(answer, search)
            elif beam and beam.stream_best:
                best = search.best()
                answer.request.emit(Best(best.token_ids, best.score))

    def _observe(self, generation: Generation) -> None:
        """Counts a token and records its time."""
        request_metrics.observe_token(generation, now := time.monotonic())
        generation.answer.first_token_at = generation.answer.first_token_at or now
        generation.last_token_at = now

    def _finish(self, generation: Generation, reason: FinishReason, stop: str | None) -> None:
        answer = generation.answer
        self._scheduler.finish(generation)
        if answer.is_finished and self._forget(answer):
            reason, stop = FinishReason.CANCELLED, None
        answer.request.emit(generation.finished(reason, stop))

    def _finish_search(self, answer: Answer, search: BeamSearch, reason: FinishReason | None = None) -> None:
        """Ends a request with its best beams. A given reason replaces their own."""
        results = search.results()
        self._scheduler.remove(answer)
        if self._forget(answer):
            reason = FinishReason.CANCELLED
        for index, beam in enumerate(results):
            end = answer.finished_beam(index, beam.token_ids, score=beam.score, reason=reason or beam.reason)
            answer.request.emit(end)

    def _forget(self, answer: Answer) -> bool:
        """Returns whether the request was aborted, and so must end as cancelled."""
        self._answers.pop(answer.request, None)
        return not self._ids.end(answer.request)

    @contextmanager
    def _isolated(self, answer: Answer) -> Iterator[None]:
        """Lets an exception fail this request alone. A fault of the device still fails everything."""
        try:
            with panics_as_errors():
                yield
        except torch.AcceleratorError:
            raise
        except Exception as error:
            exc_info = None if isinstance(error, CallError) else error  # a caller's error says everything
            _log.error("request failed", request_id=answer.request.request_id, error=str(error), exc_info=exc_info)
            self._fail(answer, error, non_finite=isinstance(error, NonFiniteError))

    def _fail(self, answer: Answer, error: Exception, *, non_finite: bool = False) -> None:
        if answer.request not in self._answers:
            return
        self._scheduler.remove(answer, non_finite=non_finite)
        self._forget(answer)
        answer.request.emit(Failed(error))

    def _fail_step(self, batch: Batch, error: Exception) -> None:
        is_expected = isinstance(error, ExpertServiceError)  # its message says everything
        _log.error(
            "step failed", requests=len(batch.answers), error=str(error), exc_info=None if is_expected else error
        )
        self._on_failure(error)
        for answer in batch.answers:
            self._fail(answer, error, non_finite=True)
        if isinstance(error, torch.AcceleratorError):
            raise error  # see _isolated
